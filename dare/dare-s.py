"""Ablation dare-s: DARE without slicing, and so without key neurons.

All weights up to the chosen layer are trained, and the loss covers all neurons of that layer.

    python dare/dare-s.py --dataset digits --model lenet

Reads what dare.py reads except the slice, and writes tuned/dare-s_<layer>_lr<lr_rate>_run<run>/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import tune_study
from train import params
from train.shared.flags import options, run_script
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = params.lr_rate  # None: the network's own (train/params.py)
epoch = params.tune_epochs
choose_layer = params.choose_layer  # None: the network's chosen layer (train/params.py)
run = 0


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    settings = {
        "method": "dare-s",
        "choose_layer": study.layer(args.choose_layer),
        "lr_rate": args.lr_rate or params.tuning_rate(args.model),
        "run": args.run,
    }
    tune_study(study, settings, args.epoch)


if __name__ == "__main__":
    run_script(main)
