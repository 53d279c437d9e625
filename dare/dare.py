"""Step 6: DARE. Tune the regression model on the mined targets, inside the slice.

    python dare/dare.py --dataset digits --model lenet --lr_rate 1e-3
    python dare/dare.py --dataset digits --model lenet --batches 1     # as the released code does

Reads data/<dataset>/ and, from models/<dataset>_<model>_seed<N>/, the final checkpoint,
slice_<per>.h5 and ats_<layer>.h5. Writes the classifier after every epoch to
tuned/dare_<layer>_per<per>_lr<lr_rate>_run<run>/model.001.weights.h5 ..., and log.csv; with
--batches N the folder's name also has batches<N>, and with --batches 1 it begins with
dare-released. The variants (dare-s.py, dare-sl.py, dare-last.py) and the controls (controls.py) use
this module's functions.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dare.contributions import kernel_of, key_neurons_of, mask_of_kernel
from dare.get_ats import MinedImages
from dare.nnslicer import load_slice
from train import params
from train.fine_tuning import drop_penalties
from train.fit import Run, fit
from train.fused_batch_norm import faster_class
from train.shared.artifacts import fingerprint, sha256
from train.shared.backend import keras, ops
from train.shared.checks import checked_inputs
from train.shared.flags import UserError, options, run_script
from train.shared.graph import calls_of, layers_by_path, up_to
from train.shared.log import stage
from train.shared.paths import epochs_in, path_text, tuned_folder
from train.shared.study import Study
from train.utils import Batches, pixels

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = params.lr_rate  # of Adam; None: the network's own (train/params.py)
epoch = params.tune_epochs  # of tuning; a larger number than before continues the earlier run
per = params.per  # the slice to use
choose_layer = params.choose_layer  # None: the network's chosen layer (train/params.py)
batches = None  # batches in an epoch, each epoch with a new Adam; None: all images, one Adam
run = 0  # run number, which seeds the tuning

# ------------------------------------------------------------------------------------- the method


class InsideSlice(keras.constraints.Constraint):
    """Restores a kernel's weights outside the slice after every update (ASE 2022).

    Biases and batch normalisation belong to no synapse, so they are trained freely.

    mask: bool, as large as the last two axes of the kernel. kernel: the weights before tuning.
    """

    def __init__(self, mask, kernel):
        self.mask = ops.convert_to_tensor(mask)
        self.kernel = ops.convert_to_tensor(kernel)

    def __call__(self, w):
        return ops.where(self.mask, ops.convert_to_tensor(w), self.kernel)


def transform(classifier, choose_layer, masks=None):
    """The isomorphic regression model of a classifier (ASE 2022, model transformation).

    It is a copy of the layers up to the chosen one, whose activations become the output. It has the
    same weights, of which frozen ones stay frozen, and none of the regularisers of training. It
    computes in float32.

    Args:
        classifier: Keras model. choose_layer: path of the chosen layer, as in "backbone/conv3".
        masks: the slice, {path: bool mask of SlicedLayer}. Kernel weights outside it stay fixed.
            None: all weights are trained.

    Raises:
        UserError: an unknown layer, or a mask for one.
    """
    masks = masks or {}
    if unknown := sorted(masks.keys() - layers_by_path(classifier).keys()):
        raise UserError(f"there is a mask for {unknown[0]}, which is no layer of this network.")
    path_of = {id(call.layer): call.path for call in calls_of(classifier)}

    def copy_layer(layer):
        # Layers are named by their paths, because none is inside an inner model any more.
        config = layer.get_config() | {"name": path_text(path_of[id(layer)])}
        if isinstance(layer, keras.layers.Layer):
            config["dtype"] = "float32"
        if "activation" in config:  # a function of the user's own cannot be read from the config
            config["activation"] = layer.activation
        return faster_class(layer).from_config(config)

    part = up_to(classifier, choose_layer)
    regression = keras.models.clone_model(part, clone_function=copy_layer)
    synchronise(classifier, regression)
    drop_penalties(regression)
    copies = layers_by_path(regression)
    for path, mask in masks.items():
        if copy := copies.get(path_text(path)):
            kernel = kernel_of(copy)
            kernel_before = ops.copy(ops.convert_to_tensor(kernel))
            kernel.constraint = InsideSlice(mask_of_kernel(copy, mask), kernel_before)
    return regression


def synchronise(source, target):
    """Copy the weights of one model into another, layer by layer.

    From the regression model into the classifier after every epoch (ASE 2022), and the other way
    before tuning. Layers that the source lacks, such as those after the chosen one, stay as they
    are.
    """
    sources = {path_text(path): layer for path, layer in layers_by_path(source).items()}
    for path, layer in layers_by_path(target).items():
        same = sources.get(path_text(path))
        if same is not None and layer.weights:
            layer.set_weights(same.get_weights())
            if hasattr(layer, "finalize_state"):  # a Normalization layer that was adapted
                layer.finalize_state()


def regression_loss(target_and_key, activation):
    """Mean squared difference over the key neurons of each image's class (ASE 2022).

    Args:
        target_and_key: (batch, ..., 2 neurons), the target activations and, behind them, 1 for a
            key neuron of the image's class and 0 for others, at all positions.
        activation: (batch, ..., neurons).

    Returns:
        (batch,), the loss of every image.
    """
    target, is_key = ops.split(target_and_key, 2, axis=-1)
    axes = tuple(range(1, len(activation.shape)))
    difference = (activation - target) * is_key
    return ops.sum(ops.square(difference), axis=axes) / ops.sum(is_key, axis=axes)


class NewAdam(keras.callbacks.Callback):
    """Starts every epoch with a new Adam. With --batches 1 that is every batch, as released."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            return
        optimizer = self.model.optimizer
        rate = float(optimizer.learning_rate)
        # A new Adam differs from a used one in these variables: its moments and steps are 0.
        for variable in optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        optimizer.learning_rate = rate


@dataclass
class Tuning:
    """Settings of `tune`.

    choose_layer: path of the chosen layer.
    lr_rate: of Adam; with 0 only the statistics of batch normalisation change (control-batchnorm).
    epochs: a larger number than before continues the earlier run, with the untuned classifier.
    masks: the slice, {path: bool mask of SlicedLayer}; None: all weights are trained (dare-s).
    key_neurons: bool (classes, neurons); None: all neurons count (dare-s).
    batches: an epoch has this many batches and a new Adam; None: an epoch has all images.
    seed: of the order of the images, a tuple of numbers.
    provenance: a folder with another provenance is refused; None: made from the arguments.
    """

    choose_layer: str
    lr_rate: float
    epochs: int
    masks: dict | None = None
    key_neurons: np.ndarray | None = None
    batches: int | None = None
    seed: tuple = (0,)
    provenance: dict | None = None


def tune(classifier, mined, x, y, folder, tuning):
    """Transform, tune and, after every epoch, synchronise (ASE 2022).

    Args:
        classifier: the trained network, tuned in place.
        mined: MinedImages, whose activations are the targets.
        x, y: the images (n, h, w, c) that mined.index refers to, uint8 or as the model takes them,
            and their labels (n,).
        folder: where the classifier is saved after every epoch.
        tuning: Tuning.

    Returns:
        The classifier.

    Raises:
        UserError: targets of another shape than the layer's, no weights to train, or what `fit` or
            `checked_inputs` refuses.
    """
    model, x, y, _ = checked_inputs(classifier, x, y)
    provenance = tuning.provenance or provenance_of(model, mined, tuning)
    regression = transform(model, tuning.choose_layer, tuning.masks)
    if not regression.trainable_variables:
        raise UserError(
            f"no layer up to {tuning.choose_layer} has weights that are trainable: choose a later "
            f"layer, or set trainable = True."
        )
    if not tuning.lr_rate:  # nothing to move; frozen layers would also stop their batch statistics
        for weight in regression.trainable_variables:
            weight.trainable = False
    batches = regression_batches(regression, mined, x, y, tuning)
    # `fit` trains in training mode, so that batch normalisation follows too.
    adam = keras.optimizers.Adam(tuning.lr_rate)
    regression.compile(adam, loss=regression_loss, auto_scale_loss=False)
    run = Run(folder, tuning.epochs, provenance, extendable=True)
    if tuning.batches is not None:
        run.callbacks.append(NewAdam())
    fit(regression, batches, run, model, synchronise)
    return classifier


def regression_batches(regression, mined, x, y, tuning):
    """Shuffled Batches of images, and targets with key neurons as regression_loss takes them."""
    shape = regression.output_shape[1:]
    labels = y[mined.index]
    is_key = tuning.key_neurons
    if is_key is None:
        is_key = np.ones((labels.max() + 1, shape[-1]), bool)
    found = mined.activation.shape[1:], is_key.shape[1:]
    if found != (shape, shape[-1:]):
        raise UserError(
            f"targets and key neurons have shapes {found[0]} and {found[1]}, but layer "
            f"{tuning.choose_layer} has {shape}: mine and find those of this layer."
        )

    def make_batch(rows, _):
        target = mined.activation[rows].astype("float32")
        # (batch, 1..., neurons): a key channel counts at all its positions.
        key = is_key[labels[rows]].reshape(len(rows), *[1] * (len(shape) - 1), -1)
        both = np.concatenate([target, np.broadcast_to(key, target.shape)], axis=-1)
        return pixels(x[mined.index[rows]]), both

    return Batches(len(labels), make_batch, params.batch, (*tuning.seed, 1), tuning.batches)


def provenance_of(classifier, mined, tuning):
    """What a tuned model is made from, for callers without a study."""
    arrays = [*classifier.get_weights(), mined.index, mined.epoch, mined.probability]
    arrays += [*(tuning.masks or {}).values(), tuning.key_neurons]
    known = [array for array in arrays if array is not None]
    # As text, because settings of None are not compared.
    names = ("lr_rate", "batches", "seed")
    settings = {name: str(getattr(tuning, name)) for name in names}
    return settings | {"choose_layer": tuning.choose_layer, "sha256": fingerprint(*known)}


# --------------------------------------------------------------------------- tuning of a study


def read_slice(study, choose_layer, per):
    """Masks {path: bool (n_in, n_out)}, key neurons and SHA-256 of a study's slice file."""
    with study.open_slice(per) as file:
        slices = load_slice(file)
        slice_sha256 = sha256(file.filename)
    masks = {name: sliced.mask for name, sliced in slices.items()}
    return masks, key_neurons_of(study.classifier, choose_layer, slices, per), slice_sha256


def tune_study(study, settings, epochs, targets=None):
    """Tune a study's classifier into the folder that the settings name.

    Args:
        study: train.shared.study.Study.
        settings: method, choose_layer, run and, where the method has them, per (without it, no
            slice), batches and lr_rate (without it, no weight moves).
        epochs: of tuning.
        targets: name of a control's targets, as in Study.open_targets; None: the mined ones.
    """
    folder = tuned_folder(study.folder, **settings)
    choose_layer, per = settings["choose_layer"], settings.get("per")
    x, y = study.data("validation")
    logged = study.names | settings | {"epochs": epochs}
    with stage(folder / "tune.log", settings["method"], logged) as log:
        masks = key_neurons = slice_sha = None
        if per is not None:
            masks, key_neurons, slice_sha = read_slice(study, choose_layer, per)
        epochs_before = epochs_in(folder)
        with study.open_targets(choose_layer, targets) as file:
            made_from = {"slice_sha256": slice_sha, "ats_sha256": sha256(file.filename)}
            made_from["recipe"] = f"batch {params.batch}"
            tuning = Tuning(
                choose_layer, lr_rate=settings.get("lr_rate", 0.0), epochs=epochs, masks=masks,
                key_neurons=key_neurons, batches=settings.get("batches"),
                seed=(study.seed, settings["run"]),
                provenance=study.provenance | settings | made_from,
            )  # fmt: skip
            tune(study.original(), MinedImages.read(file), x, y, folder, tuning)
        log["idle"] = epochs_in(folder) == epochs_before


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    released = args.batches == 1  # what the released code does; it has a learning rate of its own
    settings = {
        "method": "dare-released" if released else "dare",
        "choose_layer": study.layer(args.choose_layer),
        "per": args.per,
        "batches": args.batches,
        "lr_rate": args.lr_rate or params.tuning_rate(args.model, released),
        "run": args.run,
    }
    tune_study(study, settings, args.epoch)


if __name__ == "__main__":
    run_script(main)
