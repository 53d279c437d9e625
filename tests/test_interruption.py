"""kill -9 at random moments of every stage: the same command goes on, and every artifact ends the same, byte for byte."""

import csv
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT, write_data

KILLS = 2  # of each stage
STAGES = ("train", "nnslicer", "get_ats", "generate_adv", "dare", "fintune_adv", "controls", "test")

# Runs the stages from one on; a thread kills the process `delay` seconds into the stage `victim`.
DRIVER = """
import sys, os, signal, threading, time, importlib
import conftest, train.files
from pathlib import Path
train.files.HOME = Path(sys.argv[1])
begin, victim, delay = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
from adv import fintune_adv, generate_adv
from dare import controls, dare, get_ats, nnslicer, test
from train.train import train as train_network
study = ["--dataset", "toy", "--model", "tiny"]
generate_adv.CHUNK = 16
mains = [
    lambda: train_network("toy", "tiny", 0, 8),
    lambda: nnslicer.main(study),
    lambda: get_ats.main(study),
    lambda: generate_adv.main([*study, "--attack", "fgsm,pgd", "--samples", "60"]),
    lambda: dare.main([*study, "--epoch", "4", "--lr_rate", "1e-3"]),
    lambda: fintune_adv.main([*study, "--attack", "pgd", "--epoch", "4"]),
    lambda: controls.main([*study, "--epoch", "4", "--lr_rate", "1e-3"]),
    lambda: test.main(study),
]
for number, main in enumerate(mains[begin:], begin):
    if number == victim:
        threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
    begun = time.time()
    main()
    print("STAGE", number, time.time() - begun, flush=True)
    if number == victim:
        os.kill(os.getpid(), signal.SIGKILL)  # it was faster than the time before: killed right behind its last write
"""


def drive(home, begin=0, victim=-1, delay=0):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", DRIVER, str(home), str(begin), str(victim), str(delay)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def artifacts(home):
    """{path: content} of what a study leaves; of log.csv without the seconds. Logs of the stages tell when and where."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.name == "log.csv":
            found[name] = [row[:-1] for row in csv.reader(path.read_text().splitlines())]
        elif path.is_file() and path.suffix not in (".log", ".keras"):
            found[name] = path.read_bytes()
    return found


def test_every_stage_killed_at_random_moments(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for home in alone, killed:
        write_data(home)
    result = drive(alone)
    assert result.returncode == 0, result.stderr
    seconds = [float(line.split()[2]) for line in result.stdout.splitlines() if line.startswith("STAGE")]
    assert len(seconds) == len(STAGES)

    seed, begin = np.random.SeedSequence().entropy, 0  # other moments every time
    print(f"moments from seed {seed}")  # shown where the test fails
    rng = np.random.default_rng(seed)
    for victim in range(len(STAGES)):
        for _ in range(KILLS):
            result = drive(killed, begin, victim, rng.random() * seconds[victim])
            assert result.returncode == -9, result.stdout + result.stderr
            begin = victim
    result = drive(killed, begin)
    assert result.returncode == 0, result.stderr

    expected, found = artifacts(alone), artifacts(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
