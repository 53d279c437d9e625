"""Step 7: the baseline, adversarial training: tune the classifier on samples of one attack.

    python adv/fintune_adv.py --dataset digits --model lenet --attack fgsm

Reads the final checkpoint of models/<dataset>_<model>_seed<N>/ and adv/<attack>.h5 there. Of the
samples, those of the training part on which the attack succeeded are used. Cross-entropy, Adam,
first layers frozen (train/params.py). Writes the classifier after every epoch to
tuned/at-<attack>_lr<lr_rate>_run<run>/model.001.weights.h5 ..., and log.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adv import ATTACKS
from train import params
from train.artifacts import samples_path, sha256
from train.fit import tune_baseline
from train.flags import UserError, chosen_names, options, run_script
from train.study import Study

dataset = "digits"
model = "lenet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, several with commas, or all; a model for each
lr_rate = 1e-4
epoch = 20  # epochs of tuning; more than before go on from there
run = 0  # number of the run: seed of the tuning


def training_samples(study, attack):
    """Images float32 (n, h, w, c) and labels (n,) to train on, and the SHA-256 of their file."""
    path = samples_path(study.folder, attack)
    with study.open_checked(path, study.command("adv/generate_adv.py", attack=attack)) as file:
        rows = (file["split"][()] == 0) & file["success"][()]
        images, labels = file["image"][()][rows], file["label"][()][rows]
    if not len(images):
        raise UserError(
            f"{path} has no successful sample in its training part: make more (--samples)."
        )
    return images, labels, sha256(path)


def adversarially_train(study, attack, lr_rate, epochs, run):
    """Tune the study's classifier on the samples of one attack, into a folder of its own."""
    images, labels, adv_sha256 = training_samples(study, attack)
    settings = {"method": f"at-{attack}", "lr_rate": lr_rate, "run": run}
    tune_baseline(
        study, images, labels, "categorical_crossentropy", epochs, settings,
        {"adv_sha256": adv_sha256}, frozen=params.frozen.get(study.model, 0),
    )  # fmt: skip


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    study = Study.open(args)
    for name in chosen_names(args.attack, ATTACKS):
        adversarially_train(study, name, args.lr_rate, args.epoch, args.run)


if __name__ == "__main__":
    run_script(main)
