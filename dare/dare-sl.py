"""Ablation dare-sl: DARE without slicing and without the transformation to a regression model.

    python dare/dare-sl.py --dataset digits --model lenet

The classifier itself is tuned on the same modified images with their labels: mean squared error on
the softmax, first layers frozen (train/params.py). Reads the final checkpoint and ats_<layer>.h5
(for its images) and writes tuned/dare-sl_lr<lr_rate>_run<run>/ as dare.py does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import modified_images, tuned_rate
from train import params
from train.fit import tune_baseline
from train.flags import options, run_script
from train.study import Study

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = None  # None: 1e-4 for alexnet, 1e-3 for lenet, 1e-6 for vgg
epoch = 10
run = 0


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    images, labels, provenance = modified_images(study, study.mined_layer())
    rate = tuned_rate(args.lr_rate, args.model)
    settings = {"method": "dare-sl", "lr_rate": rate, "run": args.run}
    frozen = params.frozen.get(args.model, 0)
    tune_baseline(study, images, labels, "mse", args.epoch, settings, provenance, frozen=frozen)


if __name__ == "__main__":
    run_script(main)
