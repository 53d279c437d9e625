"""Step 7: models that cost nothing, to compare DARE with. Any other model scores on samples made against the original.

    python dare/controls.py --dataset digits --model alexnet

Reads what dare.py reads, and dare/. Writes, each as dare.py does, under the name that it has in robustness.csv:

- control-checkpoint: the historical checkpoints that were mined, as they are; an "epoch" here is theirs.
- control-swa: the average of their weights, batch normalisation's statistics re-estimated on x_train.
- control-finetune: cross-entropy on the same modified images, the same layers, optimiser and epochs as dare.
- control-noise: for every epoch of dare, a random change of the same weights, of the same norm in every weight tensor.
- control-seed: the final models of other training seeds, where there are any.

They go through the same selection and stand in every table.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
from tqdm import tqdm

from dare.dare import read_mined, study_arguments, tune_classifier
from dare.get_ats import default_layer
from train.files import (
    artifact,
    attributes,
    checkpoint_path,
    epochs_in,
    model_folder,
    pixels,
    run,
    set_attributes,
    sha256,
    stage,
    sweep,
    tuned_folder,
    weights_path,
    whole,
)
from train.utils import final_checkpoint, load_fitting_data, load_weights, save_weights

lr_rate = None  # of control-finetune; None: as dare
epoch = 10  # of control-finetune
run_number = 0

IMAGES = 10_000  # of x_train, that re-estimate batch normalisation


def copy_weights(source, path, **made_from):
    """Copy a checkpoint under another name, with other attributes."""
    with whole(path) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "a") as file:
            for name in list(file.attrs):
                del file.attrs[name]
            set_attributes(file, **made_from)


def average_weights(classifier, paths):
    """Load the mean of several checkpoints' weights into the classifier (Izmailov et al. 2018)."""
    total = None
    for path in paths:
        weights = load_weights(classifier, path).get_weights()
        total = weights if total is None else [t + w for t, w in zip(total, weights, strict=True)]
    classifier.set_weights([t / len(paths) for t in total])


def estimate_batch_norm(classifier, x, batch=250):
    """Set the moving statistics of every batch normalisation to their mean over batches of images x (n, h, w, c)."""
    layers = [layer for layer in classifier.layers if type(layer).__name__ == "BatchNormalization"]
    momentum = [layer.momentum for layer in layers]
    for i, start in enumerate(tqdm(range(0, len(x) if layers else 0, batch), desc="batch normalisation", disable=None)):
        for layer in layers:
            layer.momentum = i / (i + 1)  # so that the moving average is the plain one
        classifier(pixels(x[start : start + batch]), training=True)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


def add_noise(classifier, original, tuned, rng):
    """Move the original weights as far as tuning moved them, tensor by tensor, in a random direction.

    Only what tuning changed is changed: weights outside the slice, and layers after the chosen one, stay. Moving variances
    stay positive.
    """
    noisy = []
    for name, before, after in zip([v.path for v in classifier.weights], original, tuned, strict=True):
        change = after - before
        noise = np.where(change != 0, rng.standard_normal(before.shape), 0).astype(before.dtype)
        length = np.linalg.norm(noise)
        noise *= np.linalg.norm(change) / length if length else 0
        value = before + noise
        noisy.append(np.maximum(value, before * 1e-3) if name.endswith("moving_variance") else value)
    classifier.set_weights(noisy)


def main(argv=None):
    constants = {"lr_rate": lr_rate, "epoch": epoch, "run": run_number}
    args, folder, classifier, made_from, changed = study_arguments(__doc__, argv, **constants)
    same = {k: made_from[k] for k in ("checkpoint_sha256", "data_sha256")}
    here = {k: v for k, v in made_from.items() if k != "lr_rate"}
    layer, final = default_layer(classifier), final_checkpoint(folder)

    def target(name, epoch, **about):
        sub = tuned_folder(folder, name, args.run)
        sub.mkdir(parents=True, exist_ok=True)
        sweep(sub)
        return weights_path(sub, epoch), here | {"method": name, "epoch": epoch} | about

    with stage(folder / "controls.log", "controls", **vars(args)):
        x, y = load_fitting_data(args, "validation", classifier)
        path = folder / f"ats_{layer}.h5"
        with artifact(path, f"python dare/get_ats.py --dataset {args.dataset} --model {args.model}", choose_layer=layer, **same) as file:
            rows, first, last = read_mined(file).index, int(file.attrs["first"]), int(file.attrs["last"])
        mined = [checkpoint_path(folder, e) for e in range(first, last + 1)]
        for e, source in enumerate(mined, first):
            where, about = target("control-checkpoint", e, epochs=last)
            copy_weights(source, where, **about)

        average_weights(classifier, mined)
        estimate_batch_norm(classifier, load_fitting_data(args, "train", classifier)[0][:IMAGES])
        where, about = target("control-swa", 1, epochs=1)
        save_weights(classifier, where, **about)

        others = [model_folder(args.dataset, args.model), *sorted(folder.parent.glob(f"{args.dataset}_{args.model}_seed*"))]
        others = [p for p in others if p != folder and epochs_in(p / "checkpoints")]
        for number, other in enumerate(others, 1):
            where, about = target("control-seed", number, epochs=len(others), other=other.name)
            copy_weights(final_checkpoint(other), where, **about)

        load_weights(classifier, final)
        about = made_from | {"method": "control-finetune", "ats_sha256": sha256(path)}
        where = tuned_folder(folder, "control-finetune", args.run, **changed)
        loss, seeds = "categorical_crossentropy", (args.seed, args.run)
        tune_classifier(classifier, x, y, rows, where, loss, args.lr_rate, args.epoch, until=layer, seed=seeds, made_from=about)

        original = load_weights(classifier, final).get_weights()
        dare = tuned_folder(folder, "dare", args.run, **changed)
        with_dare = epochs_in(dare)
        for e in tqdm(with_dare, desc="noise", disable=None):
            source = weights_path(dare, e)
            tuned = load_weights(classifier, source).get_weights()
            add_noise(classifier, original, tuned, np.random.default_rng([*seeds, e, 4]))
            where, about = target("control-noise", e, epochs=with_dare[-1], dare_sha256=sha256(source), lr_rate=attributes(source)["lr_rate"])
            save_weights(classifier, where, **about)


if __name__ == "__main__":
    run(main)
