"""Ablation dare-last (TOSEM 2024): DARE at the last layer, the softmax.

    python dare/get_ats.py --choose_layer predictions
    python dare/dare-last.py --dataset digits --model lenet

Reads what dare.py reads, and writes tuned/dare-last_<layer>_per<per>_lr<lr_rate>_run<run>/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import tune_study
from train import params
from train.shared.flags import options, run_script
from train.shared.graph import calls_of
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = params.lr_rate  # None: the network's own (train/params.py)
epoch = params.tune_epochs
per = params.per
run = 0


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    settings = {
        "method": "dare-last",
        "choose_layer": calls_of(study.classifier)[-1].path,
        "per": args.per,
        "lr_rate": args.lr_rate or params.tuning_rate(args.model),
        "run": args.run,
    }
    tune_study(study, settings, args.epoch)


if __name__ == "__main__":
    run_script(main)
