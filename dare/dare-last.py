"""Ablation dare-last (TOSEM 2024): DARE with the last layer, the softmax, as the one whose activations are the targets.

    python dare/get_ats.py --choose_layer predictions
    python dare/dare-last.py --dataset digits --model alexnet

Reads and writes what dare.py does, with ats_<last layer>.h5; the folder is dare-last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import tune_from_artifacts
from train.files import run

lr_rate = None  # None: 1e-3 for alexnet, 1e-6 for vgg
epoch = 10
per = 0.95
run_number = 0


def main(argv=None):
    constants = {"lr_rate": lr_rate, "epoch": epoch, "per": per, "run": run_number}
    tune_from_artifacts("dare-last", __doc__, argv, sliced=True, layer=lambda model: model.layers[-1].name, **constants)


if __name__ == "__main__":
    run(main)
