"""Step 7: control models, which show what each component of DARE is worth.

    python dare/controls.py --dataset digits --model lenet
    python dare/controls.py --dataset digits --model lenet --control self,swa --lr_rate 1e-4

The adversarial samples were made against the original, so any model that differs from it gets some
of them right. Reads what dare.py reads; random and swa also read the mined checkpoints. Writes
tuned/control-<name>_* as dare.py does; swa and a control that is the original write one epoch. The
controls:

- self: DARE, but the targets are the original's own activations. It lacks the mined history. If no
  layer up to the chosen one behaves differently in training (batch normalisation, dropout, noise),
  its loss is 0, and it is the original itself.
- random: DARE, but every image takes its target from a random historical checkpoint. It lacks the
  choice of the best one.
- batchnorm: DARE's passes over the images, but no weight is trained. Only the statistics of batch
  normalisation are updated. Without batch normalisation it is the original itself.
- finetune: cross-entropy on the same images, layers, optimizer, epochs and rates. It lacks the
  regression, the slice and the key neurons.
- swa: the mean of the mined checkpoints' weights (stochastic weight averaging).

One more control exists already, and test.py only scores it: control-seed, the final models of other
training seeds (Study.other_seeds).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dare.dare import tune_study
from dare.get_ats import MinedImages, record_activations
from dare.methods import CONTROLS, METHODS
from train import params
from train.fine_tuning import fine_tune
from train.fit import random_stream, seed_random_layers
from train.shared.artifacts import atomic_write, check, set_attributes, sha256
from train.shared.checkpoints import load_weights, save_weights
from train.shared.flags import chosen_names, options, run_script
from train.shared.graph import layers_by_path, up_to
from train.shared.log import progress, stage
from train.shared.paths import targets_path, tuned_folder, weights_path
from train.shared.study import Study
from train.utils import Rows, pixels

dataset = "digits"
model = "lenet"
seed = 0
control = "all"  # self, random, batchnorm, finetune, swa, a list with commas, or all
lr_rate = params.lr_rate  # as in dare.py
epoch = params.tune_epochs  # as in dare.py
per = params.per  # as in dare.py
choose_layer = params.choose_layer  # as in dare.py
run = 0  # as in dare.py

BATCH_NORM_IMAGES = 10_000  # images of x_train from which swa estimates batch statistics


# Every control is called as control(study, epochs, settings), with its method and the settings that
# dare/methods.py lists for it, and writes the models of this method.


def control_self(study, epochs, settings):
    """DARE towards the original's own activations."""
    layers = up_to(study.classifier, settings["choose_layer"]).layers
    if not any(is_batch_norm(layer) or random_stream(layer) for layer in layers):
        # Tuning would turn the rounding of a loss of 0 into steps of full size.
        keep_original(study, settings, epochs)
        return

    def the_original(mined):
        return [study.checkpoint], np.zeros(len(mined.index), int)

    make_targets(study, settings["choose_layer"], "self", the_original)
    tune_study(study, settings, epochs, "self")


def control_random(study, epochs, settings):
    """DARE towards a random historical checkpoint for each image, whether it is right or wrong."""

    def random_checkpoints(mined):
        paths = list(study.mined_checkpoints(settings["choose_layer"]).values())
        rng = np.random.default_rng([study.seed, settings["run"], 6])
        return paths, rng.integers(len(paths), size=len(mined.index))

    targets = f"random_run{settings['run']}"
    make_targets(study, settings["choose_layer"], targets, random_checkpoints)
    tune_study(study, settings, epochs, targets)


def control_batchnorm(study, epochs, settings):
    """DARE's passes over the images, without moving a weight."""
    if any(map(is_batch_norm, up_to(study.classifier, settings["choose_layer"]).layers)):
        tune_study(study, settings, epochs)
    else:
        keep_original(study, settings, epochs)


def control_finetune(study, epochs, settings):
    """Cross-entropy on the mined images, up to DARE's layer and in DARE's batches."""
    layer = settings["choose_layer"]
    images = study.mined_images(layer)
    loss = "categorical_crossentropy"
    fine_tune(study, *images, settings, epochs, loss, last_layer=layer, batch=params.batch)


def control_swa(study, epochs, settings):
    """The mean of the mined checkpoints' weights (Izmailov et al. 2018)."""
    folder = tuned_folder(study.folder, "control-swa")
    path = weights_path(folder, 1)
    with stage(folder / "tune.log", "control-swa", study.names) as log:
        mined = study.mined_checkpoints()
        provenance = study.provenance | {"method": "control-swa", "epoch": 1, "run": 0}
        provenance |= {"first": min(mined), "last": max(mined)}
        log["idle"] = check(path, provenance)
        if not log["idle"]:
            average_weights(study.original(), list(mined.values()))
            seed_random_layers(study.classifier, (study.seed,))
            estimate_batch_norm(study.classifier, study.data("train")[0][:BATCH_NORM_IMAGES])
            save_weights(study.classifier, path, provenance)


# A new control is a function above, and a row here and in the table of methods.
FUNCTIONS = {
    "self": control_self,
    "random": control_random,
    "batchnorm": control_batchnorm,
    "finetune": control_finetune,
    "swa": control_swa,
}


# ---------------------------------------------------------- controls that are the original itself


def is_batch_norm(layer):
    return type(layer).__name__ == "BatchNormalization"


def keep_original(study, settings, epochs):
    """Save the original's weights as the last epoch of a control that cannot differ from it."""
    folder = tuned_folder(study.folder, **settings)
    path = weights_path(folder, epochs)
    provenance = study.provenance | settings | {"is_original": True, "epoch": epochs}
    with stage(folder / "tune.log", settings["method"], study.names | settings) as log:
        print(f"{settings['method']} is the original: nothing that it tunes can change.")
        log["idle"] = check(path, provenance)
        if not log["idle"]:
            save_weights(study.original(), path, provenance)


# ----------------------------------------------------------------------------- targets and weights


def make_targets(study, choose_layer, name, choose):
    """Write ats_<layer>_<name>.h5: the mined images, with other checkpoints' activations.

    The images are in the order of their new checkpoints. Their epoch and probabilities stay those
    of mining.

    choose: function (MinedImages) -> (paths of checkpoints, int (n,): which of them each image
        takes its target from).
    """
    path = targets_path(study.folder, choose_layer, name)
    logged = study.names | {"choose_layer": choose_layer}
    with stage(path.with_suffix(".log"), f"targets {name}", logged) as log:
        with study.open_targets(choose_layer) as file:
            mined = MinedImages.read(file)
            made_from = {"choose_layer": choose_layer, "ats_sha256": sha256(file.filename)}
        provenance = study.provenance | made_from
        log["idle"] = check(path, provenance)
        if log["idle"]:
            return
        paths, chosen = choose(mined)
        order = np.argsort(chosen, kind="stable")  # so that each checkpoint is loaded once
        images = Rows(study.data("validation")[0], mined.index[order])
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, provenance)
            for field in ("index", "epoch", "probability", "final_probability"):
                file[field] = getattr(mined, field)[order]
            record_activations(file, study.classifier, choose_layer, images, chosen[order], paths)


def average_weights(classifier, paths):
    """Load the mean of several checkpoints' weights into the classifier."""
    total = None
    for path in paths:
        weights = load_weights(classifier, path).get_weights()
        total = weights if total is None else [t + w for t, w in zip(total, weights, strict=True)]
    classifier.set_weights([t / len(paths) for t in total])


def estimate_batch_norm(classifier, x, batch=250):
    """Set the statistics of batch normalisation to their mean over batches of x (n, h, w, c)."""
    layers = list(filter(is_batch_norm, layers_by_path(classifier).values()))
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for i, first in enumerate(progress(range(0, len(x), batch), desc="batch normalisation")):
        for layer in layers:
            layer.momentum = i / (i + 1)  # the moving average is then the plain mean
        classifier(pixels(x[first : first + batch]), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def main(argv=None):
    args = options(__doc__, argv, globals(), control=CONTROLS)
    study = Study.open(args)
    settings = {
        "choose_layer": study.layer(args.choose_layer),
        "per": args.per,
        "lr_rate": args.lr_rate or params.tuning_rate(args.model),
        "run": args.run,
    }
    for name in chosen_names(args.control, CONTROLS):
        method = f"control-{name}"
        own = {setting: settings[setting] for setting in METHODS[method].settings}
        FUNCTIONS[name](study, args.epoch, {"method": method} | own)


if __name__ == "__main__":
    run_script(main)
