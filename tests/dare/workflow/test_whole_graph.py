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
echo $! >> pids
"""
STUDY = "models/toy_lenet_seed0"
SMALL = "dataset=toy methods=dare attacks=fgsm samples=20 epochs=20 tune_epochs=2 adaptive=false"


def write_images(folder):
    """Digits as a folder of images for data/prepare.py: 200 to train on, 26 to test."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:226], digits.target, strict=False)):
        path = folder / ("train" if i < 200 else "test") / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).resize((28, 28)).save(path)


def test_every_step(home, dry_run):
    """Three jobs as those of a cluster, the others here; then nothing is left, and all is kept."""
    write_images(home / "my images")
    small = [*SMALL.split(), "heldout_attacks=fgsm", "heldout_samples=10", "source=my images"]
    submit = home / "submit.sh"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    cluster = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit)]
    cluster += ["--jobs", "2", "--seconds-between-status-checks", "1"]
    command = [sys.executable, "-m", "snakemake", *SNAKEFILE, *cluster, f"{STUDY}/slice_0.95.h5"]
    environment = os.environ | {"DARE_HOME": str(home)}
    result = subprocess.run(
        [*command, "--config", *small], cwd=home, env=environment, capture_output=True, text=True
    )
    logs = "".join(path.read_text() for path in home.glob("*.log"))
    assert result.returncode == 0, result.stderr + logs
    # Without --cores threads do not depend on this machine.
    assert set(re.findall(r"threads: (\d+)", result.stderr)) == {"4", "8"}
    assert len({*(home / "pids").read_text().split()}) == 3

    done, text = dry_run("--config", *small, only="--nolock")
    assert done, text
    left = ("attack", "attack_held_out", "mine", "dare", "score", "tables", "all")
    assert counts(text) == dict.fromkeys(left, 1)
    assert (home / "models/report.html").exists()
    rows = pd.read_csv(home / STUDY / "robustness.csv")
    assert {*rows["method"]} == {"original", "dare"} and "heldout" in {*rows["split"]}
    assert "Nothing to be done" in dry_run("--config", *small)[1]

    # Other settings that are in no path: the step refuses them, and Snakemake deletes nothing.
    before = {path: path.read_bytes() for path in home.glob("data/toy/[ixy]*")}
    done, text = dry_run("data/toy/info.json", "--config", *small, "limit=100", only="--nolock")
    assert not done and "was prepared with limit None, not 100" in text
    assert {path: path.read_bytes() for path in home.glob("data/toy/[ixy]*")} == before
