"""kill -9 at random moments of random stages: the same command goes on, and ends the same.

Every artifact is compared byte for byte with an undisturbed run's. The moments are others every
time; DARE_SEED=<number> pytest tests/test_interruption.py repeats those of a run that failed.
"""

import csv
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT, write_data

STAGES = (
    "train", "nnslicer", "get_ats", "generate_adv", "dare", "fintune_adv", "controls", "test",
)  # fmt: skip

SHORT = (2, 4)  # the stages that are killed without DARE_LONG=1

# Runs the stages from one on; a thread kills the process `delay` seconds into the stage `victim`.
DRIVER = """
import sys, os, signal, threading, time
import conftest, train.shared.paths
from conftest import TOY
from pathlib import Path
train.shared.paths.HOME = Path(sys.argv[1])
begin, victim, delay = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
from adv import fintune_adv, generate_adv
from dare import controls, dare, get_ats, nnslicer, test
from train.train import train as train_network
generate_adv.CHUNK = 16
mains = [
    lambda: train_network("toy", "tiny", 0, 8),
    lambda: nnslicer.main(TOY),
    lambda: get_ats.main(TOY),
    lambda: generate_adv.main([*TOY, "--attack", "fgsm,pgd", "--samples", "60"]),
    lambda: dare.main([*TOY, "--epoch", "4"]),
    lambda: fintune_adv.main([*TOY, "--attack", "pgd", "--epoch", "4"]),
    lambda: controls.main([*TOY, "--epoch", "4"]),
    lambda: test.main(TOY),
]

def kill():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

for number, main in enumerate(mains[begin:], begin):
    if number == victim:
        threading.Thread(target=kill, daemon=True).start()
    begun = time.time()
    main()
    print("STAGE", number, time.time() - begun, flush=True)
    if number == victim:  # it was faster than the undisturbed run: killed behind its last write
        os.kill(os.getpid(), signal.SIGKILL)
"""


def drive(home, begin=0, victim=-1, delay=0):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", DRIVER, str(home), str(begin), str(victim), str(delay)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def artifacts(home):
    """{path: content} of what a study leaves; of log.csv without the seconds. No stage's log."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.name == "log.csv":
            found[name] = [row[:-1] for row in csv.reader(path.read_text().splitlines())]
        elif path.name.startswith("."):  # the temporary file of a process that was killed
            continue
        elif path.is_file() and path.suffix not in (".log", ".keras"):
            found[name] = path.read_bytes()
    return found


def test_stages_killed_at_random_moments(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for home in alone, killed:
        write_data(home)
    result = drive(alone)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    seconds = [float(line[2]) for line in lines if line[:1] == ["STAGE"]]
    assert len(seconds) == len(STAGES)

    seed = int(os.environ.get("DARE_SEED", np.random.SeedSequence().entropy))
    print(f"repeat these moments with DARE_SEED={seed}")  # shown where the test fails
    rng, begin = np.random.default_rng(seed), 0
    for victim in range(len(STAGES)) if os.environ.get("DARE_LONG") else SHORT:
        result = drive(killed, begin, victim, rng.random() * seconds[victim])
        assert result.returncode == -9, result.stdout + result.stderr
        begin = victim
    result = drive(killed, begin)
    assert result.returncode == 0, result.stderr

    expected, found = artifacts(alone), artifacts(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
