"""The whole graph, in small, with every job as a process of its own; and kill -9 of Snakemake."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT
from dry_runs import SNAKEFILE, counts
from PIL import Image
from sklearn.datasets import load_digits

pytest_plugins = ["dry_runs"]

SUBMIT = """#!/bin/sh
nohup sh "$1" > "$(basename "$1").log" 2>&1 &
echo $! | tee -a pids
"""
SMALL = "dataset=toy methods=dare-s,at-fgsm attacks=fgsm samples=20"
SMALL = f"{SMALL} heldout_samples=10 epochs=20 tune_epochs=2 adv_epochs=2 adaptive=false".split()
SMALL += ["source=my images"]


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
    methods = {"dare-s": "_conv3_lr0.001_run0", "at-fgsm": "_lr0.0001_run0"}
    tuned = {folder.name for folder in (study / "tuned").iterdir()}
    assert tuned == {method + settings for method, settings in methods.items()}
    rows = pd.read_csv(study / "robustness.csv")
    assert {"original", *methods} == {*rows["method"]}
    assert "Nothing to be done" in dry_run("--config", *SMALL)[1]

    # Other settings that are in no path: the step refuses them, and Snakemake deletes nothing.
    samples = study / "adv/fgsm.h5"
    content = samples.read_bytes()
    target = str(samples.relative_to(home))
    more = snakemake(home, target, "--cores", "1", "--config", *SMALL, "samples=21")
    assert more.returncode == 1
    assert re.search(r"fgsm.h5 was made with samples 20, not 21", more.stderr)
    assert samples.read_bytes() == content


@pytest.mark.skipif(not os.environ.get("DARE_LONG"), reason="long: DARE_LONG=1 runs it")
def test_snakemake_killed_at_random_moments(tmp_path):
    """Once as a power cut, which ends the jobs too, and twice alone; it goes on to the same end."""
    write_images(tmp_path / "images")
    small = "dataset=toy methods=dare-s attacks=fgsm heldout_attacks=null samples=20 epochs=20"
    small = f"{small} tune_epochs=2 adaptive=false source={tmp_path / 'images'}".split()
    result = "models/toy_lenet_seed0/robustness.csv"
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "dare/Snakefile"), result]

    def start(home):
        environment = os.environ | {"DARE_HOME": str(home)}
        with open(tmp_path / f"{home.name}.log", "a") as log:
            return subprocess.Popen(
                [*command, "--cores", "2", "--config", *small],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    start_time = time.time()
    assert start(alone).wait() == 0, (tmp_path / "alone.log").read_text()
    seconds = time.time() - start_time
    seed = int(os.environ.get("DARE_SEED", time.time()))
    moments = random.Random(seed)
    for kill in os.killpg, os.kill, os.kill:
        process = start(killed)
        time.sleep(moments.uniform(0.1, 0.5) * seconds)
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
            process.wait()
    assert start(killed).wait() == 0, f"DARE_SEED={seed}\n" + (tmp_path / "killed.log").read_text()
    assert (killed / result).read_text() == (alone / result).read_text(), f"DARE_SEED={seed}"
