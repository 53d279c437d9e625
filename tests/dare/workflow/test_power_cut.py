"""kill -9 of Snakemake while jobs run: the same command goes on, and ends the same."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_whole_graph import write_images

from dare.workflow import locks

SMALL = "dataset=toy methods=dare-s attacks=fgsm samples=20 epochs=20 tune_epochs=2 adaptive=false"
COMMAND = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "dare/Snakefile"), "--cores", "2"]
RESULT = "models/toy_lenet_seed0/robustness.csv"
COMMAND += [RESULT, "--config", *SMALL.split()]


def start(home):
    environment = os.environ | {"DARE_HOME": str(home)}
    source = f"source={home.parent / 'images'}"
    with open(home.parent / f"{home.name}.log", "a") as log:
        return subprocess.Popen(
            [*COMMAND, source], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def test_killed_at_random_moments(tmp_path):
    """Once as a power cut, which ends the jobs too, and twice alone."""
    write_images(tmp_path / "images")
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
    assert (killed / RESULT).read_text() == (alone / RESULT).read_text(), f"DARE_SEED={seed}"
    assert not locks.owner_path(killed).exists()


@pytest.mark.parametrize(
    ("changed", "is_dropped"),
    [({}, False), ({"started": 1.0}, True), ({"pid": 2**30}, True), ({"host": "another"}, False)],
)
def test_only_the_lock_of_a_dead_process_of_this_machine_is_removed(tmp_path, changed, is_dropped):
    lock = tmp_path / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    locks.prepare_to_lock(tmp_path)
    assert lock.exists()  # nobody has said who holds it
    locks.note_owner(tmp_path)
    path = locks.owner_path(tmp_path)
    owner = json.loads(path.read_text())
    assert owner["pid"] == os.getpid() and owner["host"] == platform.node()
    path.write_text(json.dumps(owner | changed))
    locks.prepare_to_lock(tmp_path)
    assert lock.exists() != is_dropped
    is_ours = is_dropped or not changed
    assert (json.loads(path.read_text()) == owner) == is_ours
