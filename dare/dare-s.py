"""Ablation dare-s: DARE without slicing. All weights up to the chosen layer move, and all its neurons count.

    python dare/dare-s.py --dataset digits --model alexnet

Reads and writes what dare.py does, without the slice; the folder is dare-s.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import tune_from_artifacts
from train.files import run

lr_rate = None  # None: 1e-3 for alexnet, 1e-6 for vgg
epoch = 10
choose_layer = None
run_number = 0


def main(argv=None):
    constants = {"lr_rate": lr_rate, "epoch": epoch, "choose_layer": choose_layer, "run": run_number}
    tune_from_artifacts("dare-s", __doc__, argv, sliced=False, **constants)


if __name__ == "__main__":
    run(main)
