"""Step 7: the baseline, adversarial training: tune the classifier on the training part of one attack's samples.

    python adv/fintune_adv.py --dataset digits --model alexnet --attack fgsm

Reads the final checkpoint of models/<dataset>_<model>/ and adv/<attack>.h5 there. Writes at-<attack>/, as dare.py does. Only
samples on which the attack succeeded are used. Cross-entropy, first layers frozen (params.frozen), Adam.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dare.dare import dataset, model, seed, study_arguments, tune_classifier
from train import params
from train.files import ATTACKS, UserError, artifact, options, run, sha256, stage, tuned_folder

attack = "all"
lr_rate = 1e-4
epoch = 20
run_number = 0


def main(argv=None):
    constants = {"attack": attack, "lr_rate": lr_rate, "epoch": epoch, "run": run_number}
    names = options(__doc__, argv, dataset=dataset, model=model, seed=seed, **constants).attack
    for name in ATTACKS if names == "all" else names.split(","):
        one_attack(name, *study_arguments(__doc__, argv, **constants))


def one_attack(name, args, folder, classifier, made_from, changed):
    """Adversarial training on the samples of one attack; the arguments are study_arguments'."""
    target, path = tuned_folder(folder, f"at-{name}", args.run, **changed), folder / "adv" / f"{name}.h5"
    step = f"python adv/generate_adv.py --dataset {args.dataset} --model {args.model} --seed {args.seed} --attack {name}"
    same = {k: made_from[k] for k in ("checkpoint_sha256", "data_sha256")}
    with stage(target / "tune.log", f"at-{name}", **vars(args) | {"attack": name}):
        with artifact(path, step, **same) as file:
            rows = np.flatnonzero((file["split"][()] == 0) & file["success"][()])
            images, labels = file["image"][()], file["label"][()]
        if not len(rows):
            raise UserError(f"{path} has no successful sample in its training part: make more (--samples).")
        made_from |= {"method": f"at-{name}", "adv_sha256": sha256(path)}
        frozen = params.frozen[params.family(args.model)]
        loss, seed = "categorical_crossentropy", (args.seed, args.run)
        tune_classifier(classifier, images, labels, rows, target, loss, args.lr_rate, args.epoch, frozen, None, seed, made_from)


if __name__ == "__main__":
    run(main)
