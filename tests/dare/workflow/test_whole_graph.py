"""The whole graph, in small, with every job as a process of its own."""

import os
import re
import subprocess
import sys

import pandas as pd
from dry_runs import SNAKEFILE, counts
from PIL import Image
from sklearn.datasets import load_digits

pytest_plugins = ["dry_runs"]

SUBMIT = """#!/bin/sh
nohup sh "$1" > "$(basename "$1").log" 2>&1 &
echo $! | tee -a pids
"""
SMALL = "dataset=toy methods=dare-s,at-fgsm,control-noise attacks=fgsm samples=20"
SMALL = f"{SMALL} epochs=20 tune_epochs=2 adv_epochs=2 adaptive=false".split() + [
    "source=my images",
    "one_process=false",
]


def write_images(folder):
    """Digits as a folder of images for data/prepare.py: 200 to train on, 26 to test."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:226], digits.target, strict=False)):
        path = folder / ("train" if i < 200 else "test") / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).resize((28, 28)).save(path)


def snakemake(home, *flags):
    command = [sys.executable, "-m", "snakemake", *SNAKEFILE, *flags]
    environment = os.environ | {"DARE_HOME": str(home)}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def test_whole_graph_on_a_cluster(home, dry_run):
    """Every job as a process of its own; then nothing is left to do, and nothing is overwritten."""
    write_images(home / "my images")
    submit = home / "submit.sh"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    cluster = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit)]
    quick = ["--jobs", "2", "--seconds-between-status-checks", "1"]
    _, planned = dry_run("--config", *SMALL)
    result = snakemake(home, *quick, *cluster, "--config", *SMALL)
    logs = "".join(path.read_text() for path in home.glob("*.log"))
    assert result.returncode == 0, result.stderr + logs
    assert (home / "models/report.html").exists()
    study = home / "models/toy_lenet_seed0"
    # Without --cores threads do not depend on this machine.
    assert set(re.findall(r"threads: (\d+)", result.stderr)) == {"4", "8"}
    pids = (home / "pids").read_text().split()
    assert len(pids) == len(set(pids)) == sum(counts(planned).values()) - 1  # `all` does nothing
    methods = {
        "dare": "_conv3_per0.95_lr0.001_run0",
        "dare-s": "_conv3_lr0.001_run0",
        "control-noise": "_conv3_per0.95_lr0.001_run0",
        "at-fgsm": "_lr0.0001_run0",
    }
    tuned = {folder.name for folder in (study / "tuned").iterdir()}
    assert tuned == {method + settings for method, settings in methods.items()}
    rows = pd.read_csv(study / "robustness.csv")
    assert {"original", "control-checkpoint", *methods} == {*rows["method"]}
    assert "Nothing to be done" in dry_run("--config", *SMALL)[1]

    # Other settings that are in no path: the step refuses them, and Snakemake deletes nothing.
    samples = study / "adv/fgsm.h5"
    content = samples.read_bytes()
    target = str(samples.relative_to(home))
    more = snakemake(home, target, "--cores", "1", "--config", *SMALL, "samples=21")
    assert more.returncode == 1
    assert re.search(r"fgsm.h5 was made with samples 20, not 21", more.stderr)
    assert samples.read_bytes() == content
