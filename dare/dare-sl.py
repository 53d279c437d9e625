"""Ablation dare-sl: DARE without slicing and without the transformation to a regression model.

    python dare/dare-sl.py --dataset digits --model alexnet

The classifier itself is tuned on the same modified images with their labels: mean squared error on the softmax, first
layers frozen. Reads the final checkpoint and ats_<layer>.h5 (for its images), writes dare-sl/ as dare.py does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.dare import read_mined, study_arguments, tune_classifier
from dare.get_ats import default_layer
from train import params
from train.files import artifact, run, sha256, stage, tuned_folder
from train.utils import load_fitting_data

lr_rate = None  # None: 1e-3 for alexnet, 1e-6 for vgg
epoch = 10
run_number = 0


def main(argv=None):
    args, folder, classifier, made_from, changed = study_arguments(__doc__, argv, lr_rate=lr_rate, epoch=epoch, run=run_number)
    x, y = load_fitting_data(args, "validation", classifier)
    target = tuned_folder(folder, "dare-sl", args.run, **changed)
    with stage(target / "tune.log", "dare-sl", **vars(args)):
        path = folder / f"ats_{default_layer(classifier)}.h5"
        same = {k: made_from[k] for k in ("checkpoint_sha256", "data_sha256")}
        with artifact(path, f"python dare/get_ats.py --dataset {args.dataset} --model {args.model}", **same) as file:
            rows = read_mined(file).index
        made_from |= {"method": "dare-sl", "ats_sha256": sha256(path)}
        frozen = params.frozen[params.family(args.model)]
        tune_classifier(classifier, x, y, rows, target, "mse", args.lr_rate, args.epoch, frozen, None, (args.seed, args.run), made_from)


if __name__ == "__main__":
    run(main)
