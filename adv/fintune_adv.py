"""Step 7: adversarial training, the baseline: tune the classifier on the samples of one attack.

The name of this file is spelled as in the released code.

    python adv/fintune_adv.py --dataset digits --model lenet --attack fgsm

Reads the final checkpoint of models/<dataset>_<model>_seed<N>/ and adv/<attack>.h5 there. It tunes
on the training part of the samples, those on which the attack succeeded: cross-entropy, Adam, the
first layers frozen (train/params.py). Writes the classifier after every epoch to
tuned/at-<attack>_lr<lr_rate>_run<run>/model.001.weights.h5 ..., and log.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adv import ATTACKS
from train import params
from train.fine_tuning import fine_tune
from train.shared.artifacts import sha256
from train.shared.flags import UserError, chosen_names, options, run_script
from train.shared.paths import samples_path
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, a list with commas, or all; one model for each
lr_rate = params.adv_lr_rate
epoch = params.adv_epochs  # of tuning; a larger number than before continues the earlier run
run = 0  # run number, which seeds the tuning


def training_samples(study, attack):
    """The successful samples in the training part of an attack: images, labels, provenance."""
    path = samples_path(study.folder, attack)
    with study.open_checked(path, study.command("adv/generate_adv.py", attack=attack)) as file:
        rows = (file["split"][()] == 0) & file["success"][()]
        images = file["image"][()][rows]
        labels = file["label"][()][rows]
    if not len(images):
        raise UserError(
            f"{path} has no successful sample in its training part: make more (--samples)."
        )
    return images, labels, {"adv_sha256": sha256(path)}


def adversarially_train(study, attack, lr_rate, epochs, run):
    """Tune a study's classifier on the samples of one attack, in a folder named after it."""
    settings = {"method": f"at-{attack}", "lr_rate": lr_rate, "run": run}
    frozen = params.frozen.get(study.model, 0)
    samples = training_samples(study, attack)
    fine_tune(study, *samples, settings, epochs, "categorical_crossentropy", frozen)


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    study = Study.open(args)
    for name in chosen_names(args.attack, ATTACKS):
        adversarially_train(study, name, args.lr_rate, args.epoch, args.run)


if __name__ == "__main__":
    run_script(main)
