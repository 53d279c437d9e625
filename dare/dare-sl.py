"""Ablation dare-sl: DARE without slicing and without the transformation to a regression model.

    python dare/dare-sl.py --dataset digits --model lenet

The classifier itself is tuned on the mined images and their labels: mean squared error on the
softmax, by Adam (`fine_tune` in train/fine_tuning.py), with the first 5 layers of AlexNet or 20 of
VGG frozen (`frozen` in train/params.py). Reads the final checkpoint and, for its images,
ats_<layer>.h5. Writes tuned/dare-sl_lr<lr_rate>_run<run>/ as dare.py does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import params
from train.fine_tuning import fine_tune
from train.shared.flags import options, run_script
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = params.lr_rate  # None: the network's own (train/params.py)
epoch = params.tune_epochs
run = 0


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    rate = args.lr_rate or params.tuning_rate(args.model)
    settings = {"method": "dare-sl", "lr_rate": rate, "run": args.run}
    frozen = params.frozen.get(args.model, 0)
    fine_tune(study, *study.mined_images(), settings, args.epoch, "mse", frozen)


if __name__ == "__main__":
    run_script(main)
