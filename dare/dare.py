"""Step 6: DARE. Tune the regression model on the mined targets, inside the slice.

    python dare/dare.py --dataset digits --model lenet --lr_rate 1e-3
    python dare/dare.py --dataset digits --model lenet --batches 1     # as the released code does

Reads data/<dataset>/, and of models/<dataset>_<model>_seed<N>/ the final checkpoint,
slice_<per>.h5 and ats_<layer>.h5. Writes the classifier after every epoch to
tuned/dare_<layer>_per<per>_lr<lr_rate>_run<run>/model.001.weights.h5 ..., and log.csv. The
variants dare-s.py, dare-sl.py and dare-last.py, and controls.py, call what is here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dare.get_ats import Mined
from dare.nnslicer import key_neurons, load_slice
from train import params
from train.artifacts import epochs_in, fingerprint, sha256, slice_path, targets_path, tuned_folder
from train.backend import keras, ops
from train.fit import fit
from train.flags import UserError, options, run_script
from train.log import stage
from train.study import Study
from train.utils import Batches, Rows, pixels, set_seed, up_to

dataset = "digits"
model = "lenet"
seed = 0
lr_rate = None  # None: 1e-4 for alexnet, 1e-3 for lenet, 1e-6 for vgg (train/params.py)
epoch = 10  # epochs of tuning; more than before go on from there
per = 0.95  # the slice to use
choose_layer = None  # None: that of the network in train/params.py
batches = None  # None: an epoch is all images; 1: one batch and a new Adam for each, as released
run = 0  # number of the run: seed of the tuning


class InsideSlice(keras.constraints.Constraint):
    """Puts the weights outside the slice back after every update (ASE 2022).

    mask: bool (n_in, n_out), shared by all taps of a kernel. kernel: the weights before tuning.
    """

    def __init__(self, mask, kernel):
        self.mask, self.kernel = ops.convert_to_tensor(mask), ops.convert_to_tensor(kernel)

    def __call__(self, w):
        return ops.where(self.mask, ops.convert_to_tensor(w), self.kernel)


def transform(classifier, layer, masks=None):
    """The isomorphic regression model of a classifier (ASE 2022, model transformation).

    A copy of its layers up to `layer`, whose activations become the output, with the same weights
    and without the regularisers of training. masks: {layer name: bool (n_in, n_out)}, the slice,
    outside of which no kernel can move; None: all weights can.
    """

    def without_regularisers(original):
        config = original.get_config()
        config |= {name: None for name in config if name.endswith("_regularizer")}
        return type(original).from_config(config)

    part = up_to(classifier, layer)
    regression = keras.models.clone_model(part, clone_function=without_regularisers)
    synchronise(part, regression)
    for copy in regression.layers:
        if masks and copy.name in masks:
            before = ops.copy(ops.convert_to_tensor(copy.kernel))
            copy.kernel.constraint = InsideSlice(masks[copy.name], before)
    return regression


def synchronise(regression, classifier):
    """Copy the weights of the regression model back into the classifier (ASE 2022).

    The layers after the chosen one, which the regression model lacks, stay as they are. Called the
    other way round it brings a regression model to where its classifier is.
    """
    names = {layer.name for layer in regression.layers}
    for layer in classifier.layers:
        if layer.name in names and layer.weights:
            layer.set_weights(regression.get_layer(layer.name).get_weights())
            if hasattr(layer, "finalize_state"):  # a Normalization that was adapted
                layer.finalize_state()


def regression_loss(activation, target, key):
    """Mean squared difference over the key neurons of each image's class (ASE 2022).

    activation, target: (batch, ..., neurons). key: 1 for a key neuron, else 0, (batch, 1...,
    neurons): a key channel counts at all its positions. Returns (batch,).
    """
    axes = tuple(range(1, len(activation.shape)))
    positions = int(np.prod(activation.shape[1:-1]))
    difference = (activation - target) * key
    return ops.sum(ops.square(difference), axis=axes) / (positions * ops.sum(key, axis=axes))


def tune(
    classifier, layer, mined, x, y, folder, lr_rate, epochs,
    masks=None, key=None, batches=None, seed=(0,), provenance=None,
):  # fmt: skip
    """Transform, tune and synchronise (ASE 2022).

    Args:
        classifier: the trained network; ends with the tuned weights. layer: the chosen layer.
        mined: Mined, whose index points into images x (n, h, w, c) and int labels y (n,), and
            whose activations are the targets.
        folder: gets the classifier after every epoch, and log.csv.
        lr_rate, epochs: of Adam; lr_rate None: no weight moves, only batch normalisation follows.
        masks: {layer name: bool (n_in, n_out)}, the slice; None: all weights may move (dare-s).
        key: bool (classes, neurons), the key neurons; None: all neurons (dare-s).
        batches: an epoch has so many batches of 128, and an Adam of its own; None: all images.
        provenance: what refuses the folder for another tuning; default: the arguments themselves.

    Returns:
        the classifier.

    Raises:
        UserError: targets of another shape; what `fit` refuses.
    """
    set_seed(*seed)
    if provenance is None:
        provenance = {
            "choose_layer": layer,
            "lr_rate": lr_rate,
            "batches": batches,
            "seed": str(seed),
        }
        slice_arrays = [*(masks or {}).values(), *([] if key is None else [key])]
        provenance["sha256"] = fingerprint(*classifier.get_weights(), mined.index, *slice_arrays)
    regression = transform(classifier, layer, masks)
    if lr_rate is None:
        for weight in regression.trainable_variables:
            weight.trainable = False
    shape = regression.output_shape[1:]
    if mined.activation.shape[1:] != shape:
        raise UserError(
            f"the targets have shape {mined.activation.shape[1:]} and layer {layer} has {shape}: "
            f"mine again with dare/get_ats.py."
        )
    neurons = (*[1] * (len(shape) - 1), shape[-1])
    key = np.ones((int(np.max(y)) + 1, shape[-1]), bool) if key is None else np.asarray(key)
    key = key.astype("float32").reshape(len(key), *neurons)
    labels = np.asarray(y)[mined.index]

    def make(rows, _):
        images = pixels(x[mined.index[rows]])
        target = mined.activation[rows].astype("float32")
        return (images, target, key[labels[rows]]), np.zeros(len(rows), "float32")

    # Keras minimises what a model gives: here, the loss of every image.
    target, key_of_image = keras.Input(shape, name="target"), keras.Input(neurons, name="key")
    loss = regression_loss(regression.output, target, key_of_image)
    trained = keras.Model([regression.inputs[0], target, key_of_image], loss)
    trained.compile(keras.optimizers.Adam(lr_rate or 1.0), loss=lambda _, value: value)
    shuffled = Batches(len(labels), make, params.batch, (*seed, 1), most=batches)

    fit(
        trained, shuffled, folder, epochs, provenance, classifier, synchronise,
        extendable=True, new_optimizer=batches is not None,
    )  # fmt: skip
    return classifier


def key_neurons_of(classifier, layer, slices, per):
    """bool (classes, neurons): key neurons of `layer`, by what the sliced layer before it gives.

    Raises UserError for a layer that has no neurons of its own.
    """
    names = [known.name for known in classifier.layers]
    sliced = [name for name in names[: names.index(layer) + 1] if name in slices]
    neurons = classifier.get_layer(layer).output.shape[-1]
    if not sliced or slices[sliced[-1]].contribution.shape[1] != neurons:
        raise UserError(
            f"--choose_layer {layer} has no neurons of its own: choose a dense or convolutional "
            f"layer, or what follows it."
        )
    return key_neurons(slices[sliced[-1]].contribution, per)


def read_slice(study, layer, per):
    """(masks, key neurons, SHA-256) of the study's slice file, as `tune` takes them."""
    path, step = slice_path(study.folder, per), study.command("dare/nnslicer.py", per=f"{per:g}")
    with study.open_checked(path, step, per=per) as file:
        slices = load_slice(file)
    masks = {name: sliced.mask for name, sliced in slices.items()}
    return masks, key_neurons_of(study.classifier, layer, slices, per), sha256(path)


def open_targets(study, layer):
    """The study's open ats file of a layer, for `with`."""
    step = study.command("dare/get_ats.py", choose_layer=layer)
    return study.open_checked(targets_path(study.folder, layer), step, choose_layer=layer)


def modified_images(study, layer):
    """(images, labels, what to record of them) that mining a layer found, for tune_baseline."""
    with open_targets(study, layer) as file:
        index, provenance = file["index"][()], {"ats_sha256": sha256(file.filename)}
    x, y = study.data("validation")
    return Rows(x, index), y[index], provenance


def tuned_rate(lr_rate, model, released=False):
    """Adam's learning rate: the one asked for, or that of the network in train/params.py."""
    return lr_rate or params.rate_of(model, released)


def tune_study(
    study,
    epochs,
    method,
    choose_layer,
    per=None,
    batches=None,
    lr_rate=None,
    run=0,
    targets=open_targets,
):
    """Tune a study's classifier into the folder that its settings name; see `tune`.

    per: None: no slice. targets: (study, layer) -> an open file of targets.
    """
    layer = choose_layer
    settings = {"method": method, "choose_layer": layer, "per": per, "batches": batches}
    settings |= {"lr_rate": lr_rate, "run": run}
    folder = tuned_folder(study.folder, **settings)
    x, y = study.data("validation")
    with stage(folder / "tune.log", method, study.names | settings | {"epochs": epochs}) as record:
        provenance, before = study.provenance | settings, epochs_in(folder)
        masks = key = None
        if per is not None:
            masks, key, provenance["slice_sha256"] = read_slice(study, layer, per)
        with targets(study, layer) as file:
            provenance["ats_sha256"] = sha256(file.filename)
            tune(
                study.original(), layer, Mined.read(file), x, y, folder, lr_rate, epochs,
                masks, key, batches, (study.seed, run), provenance,
            )  # fmt: skip
        record.idle = epochs_in(folder) == before


def main(argv=None):
    args = options(__doc__, argv, globals())
    study, released = Study.open(args), args.batches == 1
    tune_study(
        study,
        args.epoch,
        method="dare-released" if released else "dare",
        choose_layer=study.layer(args.choose_layer),
        per=args.per,
        batches=args.batches,
        lr_rate=tuned_rate(args.lr_rate, args.model, released),
        run=args.run,
    )


if __name__ == "__main__":
    run_script(main)
