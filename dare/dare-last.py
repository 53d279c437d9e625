"""Ablation dare-last (TOSEM 2024): DARE at the last layer, the softmax.

    python dare/get_ats.py --choose_layer predictions
    python dare/dare-last.py --dataset digits --model lenet

Reads and writes what dare.py does: tuned/dare-last_<layer>_per<per>_lr<lr_rate>_run<run>/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import tune_study, tuned_rate
from train.flags import options, run_script
from train.study import Study

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = None  # None: 1e-4 for alexnet, 1e-3 for lenet, 1e-6 for vgg
epoch = 10
per = 0.95
run = 0


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    rate = tuned_rate(args.lr_rate, args.model)
    last = study.classifier.layers[-1].name
    tune_study(study, args.epoch, "dare-last", last, args.per, lr_rate=rate, run=args.run)


if __name__ == "__main__":
    run_script(main)
