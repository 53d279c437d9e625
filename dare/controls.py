"""Step 7: control models. Each takes one piece of DARE away, so that the rest can be judged.

    python dare/controls.py --dataset digits --model lenet
    python dare/controls.py --dataset digits --model lenet --control noise --lr_rate 1e-4

Any model that differs from the original scores on samples that were made against the original.
Reads what dare.py reads, and tuned/dare_*. Writes as dare.py does, into tuned/control-<name>_*:

- self: DARE's tuning, but the targets are the original's own activations: no history.
- single: the targets are those of one earlier checkpoint for all images: no choice per image.
- batchnorm: the same passes, but no weight moves. Only batch normalisation's statistics follow.
- finetune: cross-entropy on the same images, layers, optimiser, epochs and rates: no regression.
- noise: for every epoch of dare, its weights moved as far, in a random direction.
- swa: the mean of the mined checkpoints' weights.

control-checkpoint (the mined checkpoints as they are) and control-seed (the final models of other
training seeds) need no step of their own: test.py scores these checkpoints where they lie.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dare.dare import modified_images, open_targets, tune_study, tuned_rate
from dare.get_ats import Mined, record_activations
from dare.workflow.methods import CONTROLS
from train import params
from train.artifacts import (
    already_made,
    atomic_write,
    checkpoint_path,
    remove_temporary_files,
    require,
    set_attributes,
    sha256,
    study_folder,
    targets_path,
    tuned_folder,
    weights_path,
)
from train.checkpoints import final_checkpoint, load_weights, save_weights
from train.fit import tune_baseline
from train.flags import UserError, chosen_names, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import pixels

dataset = "digits"
model = "lenet"
seed = 0
control = "all"  # self, single, batchnorm, finetune, noise, swa, several with commas, or all
lr_rate = None  # as dare
epoch = 10  # as dare
per = 0.95  # as dare
choose_layer = None  # as dare
run = 0  # as dare

BATCH_NORM_IMAGES = 10_000  # of x_train, from which swa estimates batch normalisation's statistics


def control_self(study, args, layer, rate):
    """DARE towards the original's own activations."""
    targets = partial(open_targets_of, name="self", choose=lambda mined: study.checkpoint)
    tune_study(study, args.epoch, "control-self", layer, args.per, None, rate, args.run, targets)


def control_single(study, args, layer, rate):
    """DARE towards the activations of the checkpoint that most images chose."""

    def most_chosen(mined):
        return checkpoint_path(study.folder, np.bincount(mined.epoch).argmax())

    targets = partial(open_targets_of, name="single", choose=most_chosen)
    tune_study(study, args.epoch, "control-single", layer, args.per, None, rate, args.run, targets)


def control_batchnorm(study, args, layer, rate):
    """DARE's passes over the images without moving a weight."""
    tune_study(study, args.epoch, "control-batchnorm", layer, run=args.run)


def control_finetune(study, args, layer, rate):
    """Cross-entropy on the modified images, up to DARE's layer, in DARE's batches."""
    images, labels, provenance = modified_images(study, layer)
    settings = {
        "method": "control-finetune",
        "choose_layer": layer,
        "lr_rate": rate,
        "run": args.run,
    }
    tune_baseline(
        study, images, labels, "categorical_crossentropy", args.epoch, settings, provenance,
        until=layer, batch=params.batch,
    )  # fmt: skip


def control_noise(study, args, layer, rate):
    """The original with its weights moved as far as DARE moved them, epoch by epoch."""
    settings = {"choose_layer": layer, "per": args.per, "lr_rate": rate, "run": args.run}
    source = tuned_folder(study.folder, "dare", **settings)
    folder = tuned_folder(study.folder, "control-noise", **settings)
    flags = {"lr_rate": rate, "per": args.per, "choose_layer": layer, "run": args.run}
    require(weights_path(source, args.epoch), study.command("dare/dare.py", **flags))
    original, classifier = study.original().get_weights(), study.classifier
    with stage(folder / "tune.log", "control-noise", study.names | settings) as record:
        remove_temporary_files(folder)
        record.idle = True
        for e in progress(range(1, args.epoch + 1), desc="noise"):
            tuned, path = weights_path(source, e), weights_path(folder, e)
            provenance = study.provenance | settings | {"method": "control-noise", "epoch": e}
            provenance |= {"dare_sha256": sha256(tuned)}
            if not already_made(path, provenance):
                moved = load_weights(classifier, tuned).get_weights()
                rng = np.random.default_rng([study.seed, args.run, e, 4])
                add_noise(classifier, original, moved, rng)
                save_weights(classifier, path, provenance)
                record.idle = False


def control_swa(study, args, layer, rate):
    """The mean of the mined checkpoints' weights (stochastic weight averaging)."""
    folder = tuned_folder(study.folder, "control-swa")
    path = weights_path(folder, 1)
    with stage(folder / "tune.log", "control-swa", study.names) as record:
        remove_temporary_files(folder)
        mined = mined_checkpoints(study)
        provenance = study.provenance | {"method": "control-swa", "epoch": 1, "run": 0}
        provenance |= {"first": min(mined), "last": max(mined)}
        record.idle = already_made(path, provenance)
        if not record.idle:
            average_weights(study.original(), list(mined.values()))
            estimate_batch_norm(study.classifier, study.data("train")[0][:BATCH_NORM_IMAGES])
            save_weights(study.classifier, path, provenance)


MAKE = {
    "self": control_self,
    "single": control_single,
    "batchnorm": control_batchnorm,
    "finetune": control_finetune,
    "noise": control_noise,
    "swa": control_swa,
}


# -------------------------------------------------------- what needs no step, for test.py to score


def mined_checkpoints(study):
    """{epoch: path} of the historical checkpoints that were mined (control-checkpoint)."""
    with open_targets(study, study.mined_layer()) as file:
        first, last = int(file.attrs["first"]), int(file.attrs["last"])
    return {e: checkpoint_path(study.folder, e) for e in range(first, last + 1)}


def other_seeds(study):
    """{seed: path} of the final checkpoints of the same network's other training seeds.

    A seed whose training has not ended does not count.
    """
    pattern = study_folder(study.dataset, study.model, "*").name
    folders = {
        int(folder.name.rsplit("_seed", 1)[1]): folder
        for folder in study.folder.parent.glob(pattern)
        if folder != study.folder
    }
    found = {}
    for seed, folder in sorted(folders.items()):
        with contextlib.suppress(UserError):
            found[seed] = final_checkpoint(folder)
    return found


# ------------------------------------------------------------------------------- targets, weights


def open_targets_of(study, layer, name, choose):
    """The open file of the targets ats_<layer>_<name>.h5, of one checkpoint for all images.

    The images are those that were mined; choose(mined) -> the checkpoint. Made where it is missing.
    """
    path = targets_path(study.folder, f"{layer}_{name}")
    with open_targets(study, layer) as file:
        mined = Mined.read(file)
        checkpoint = choose(mined)
        provenance = study.provenance | {"choose_layer": layer, "ats_sha256": sha256(file.filename)}
        provenance |= {"target_sha256": sha256(checkpoint)}
    if not already_made(path, provenance):
        x, _ = study.data("validation")
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, provenance)
            for field in ("index", "epoch", "probability", "final_probability"):
                file[field] = getattr(mined, field)
            all_of_one = np.zeros(len(mined.index), int)
            record_activations(
                file, study.classifier, layer, x, mined.index, all_of_one, [checkpoint]
            )
    return h5py.File(path, "r")


def average_weights(classifier, paths):
    """Load the mean of several checkpoints' weights into the classifier (Izmailov et al. 2018)."""
    total = None
    for path in paths:
        weights = load_weights(classifier, path).get_weights()
        total = weights if total is None else [t + w for t, w in zip(total, weights, strict=True)]
    classifier.set_weights([t / len(paths) for t in total])


def estimate_batch_norm(classifier, x, batch=250):
    """Set batch normalisation's moving statistics to their mean over batches of x (n, h, w, c)."""
    layers = [layer for layer in classifier.layers if type(layer).__name__ == "BatchNormalization"]
    momentum = [layer.momentum for layer in layers]
    starts = range(0, len(x) if layers else 0, batch)
    for i, first in enumerate(progress(starts, desc="batch normalisation")):
        for layer in layers:
            layer.momentum = i / (i + 1)  # so that the moving average is the plain one
        classifier(pixels(x[first : first + batch]), training=True)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


def add_noise(classifier, original, tuned, rng):
    """Move the original weights as far as tuning did, tensor by tensor, in a random direction.

    original, tuned: lists of arrays, as get_weights gives. Only what tuning changed is changed:
    weights outside the slice, and layers after the chosen one, stay. Batch normalisation's
    statistics stay the original's: they are no weights, and random ones destroy any network.
    """
    noisy = []
    names = [variable.path for variable in classifier.weights]
    for name, before, after in zip(names, original, tuned, strict=True):
        change = np.zeros_like(before) if "/moving_" in name else after - before
        noise = np.where(change != 0, rng.standard_normal(before.shape), 0)
        length = np.linalg.norm(noise)
        scale = np.linalg.norm(change) / length if length else 0
        noisy.append((before + scale * noise).astype(before.dtype))
    classifier.set_weights(noisy)


def main(argv=None):
    args = options(__doc__, argv, globals(), control=CONTROLS)
    study = Study.open(args)
    layer, rate = study.layer(args.choose_layer), tuned_rate(args.lr_rate, args.model)
    for name in chosen_names(args.control, CONTROLS):
        MAKE[name](study, args, layer, rate)


if __name__ == "__main__":
    run_script(main)
