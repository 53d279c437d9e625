"""Step 3: slice the network, that is, find the synapses and neurons that matter (NNSlicer).

    python dare/nnslicer.py --dataset digits --model lenet --per 0.95

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
slice_<per>.h5 there, with mask, class_mask, contribution and relative_activation of every dense and
convolutional layer. The slicer works on any feed-forward chain of the Keras layers in SLICED and
PASSED_ON; it knows no layer names and no shapes.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dare.slicing.ranking import largest, map_blocks
from train import params
from train.arrays import check_arrays
from train.artifacts import already_made, atomic_write, set_attributes, slice_path
from train.backend import keras, ops
from train.flags import UserError, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import predict

dataset = "digits"
model = "lenet"
seed = 0
per = params.per  # share of each neuron's synapses in the slice; a larger `per`, a larger slice

# Layers with synapses.
SLICED = ("Dense", "Conv1D", "Conv2D", "Conv3D")
# Layers that pass contributions on unchanged: they change the scale, sign or resolution of a
# channel, but not which channel it is. Flatten adds up the positions of a channel. After global
# pooling a channel has no positions, and before it its activation is their mean.
PASSED_ON = (
    *("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization"),
    *("GroupNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "ZeroPadding2D", "Flatten"),
    *(f"{kind}Pooling{d}D" for kind in ("Max", "Average") for d in (1, 2, 3)),
    *(f"{kind}Pooling{d}D" for kind in ("GlobalMax", "GlobalAverage") for d in (1, 2, 3)),
)

IMAGES_AT_ONCE = 2048  # images whose activations are in memory at a time


@dataclass
class SlicedLayer:
    """The slice of one dense or convolutional layer, with n_in inputs and n_out neurons.

    mask: bool (n_in, n_out), the synapses in the model's slice. All taps of a kernel share one.
    class_mask: bool (classes, n_in, n_out), the synapses in the slice of each class.
    contribution: float32 (classes, n_out), CONTRIB of each neuron to each class.
    relative_activation: float32 (classes, n_out), D of each neuron.
    """

    mask: np.ndarray
    class_mask: np.ndarray
    contribution: np.ndarray
    relative_activation: np.ndarray


def slice_model(model, x, y, per):
    """The slices of a classifier (NNSlicer, FSE 2020, section 4).

    Args:
        model: a chain of Keras layers of the kinds above that ends in one output for each class.
        x: images (n, h, w, c), uint8 or float32 pixels as the model takes them.
        y: int labels (n,), with images of every class.
        per: share of each neuron's synapses in the slice, in (0, 1].

    Returns:
        {layer name: SlicedLayer}, from the first layer to the last.

    Raises:
        UserError: a layer that the slicer cannot handle, a class without images, a wrong `per`, or
            what check_arrays refuses.
    """
    if not 0 < per <= 1:
        raise UserError(f"per is {per}, not a share in (0, 1].")
    layers = layer_chain(model)
    check_arrays(x, y, model)
    return slice_backwards(layers, relative_activations(model, layers, x, y), per)


def layer_chain(model):
    """The layers from the model's input to its output.

    Raises UserError if they do not form a chain, or one is of a kind that is not handled.
    """
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    tensor = model.inputs[0]
    for layer in layers:
        check_layer(layer)
        if layer.input is not tensor:
            raise UserError(
                f"the slicer cannot handle layer {layer.name}: its input is not the output of the "
                f"layer before it, so the model is not a chain."
            )
        tensor = layer.output
    if not any(is_sliced(layer) for layer in layers):
        raise UserError("the slicer found no dense or convolutional layer in this model.")
    return layers


def check_layer(layer):
    """Raise UserError if the slicer cannot handle a layer."""
    kind = type(layer).__name__
    if kind not in SLICED + PASSED_ON:
        known = ", ".join(SLICED + PASSED_ON)
        raise UserError(
            f"the slicer cannot handle layer {layer.name}, a {kind}: it handles {known}."
        )
    if kind.startswith("Conv") and (layer.groups, layer.data_format) != (1, "channels_last"):
        raise UserError(
            f"the slicer cannot handle layer {layer.name}: convolutions must have one group, "
            f"channels last."
        )


def is_sliced(layer):
    return type(layer).__name__ in SLICED


# --------------------------------------------------------------------------- relative activation


def relative_activations(model, layers, x, y):
    """D of every neuron at the input and output of every layer, in one pass over the images.

    D_n(c) = mean activation of neuron n over the images of class c, minus its mean over all images.
    The activation of a channel is its mean over positions.

    Returns:
        A list of float64 (classes, neurons): D[k] at the input of layers[k], D[k + 1] at its
        output.
    """
    classes = model.outputs[0].shape[-1]
    y = np.asarray(y, "int64")
    counts = np.bincount(y, minlength=classes)
    if len(counts) != classes or not counts.all():
        found = np.unique(y).tolist()
        raise UserError(f"the slicer needs images of all {classes} classes: there are {found}.")

    tensors = [model.inputs[0], *(layer.output for layer in layers)]
    neurons_model = keras.Model(model.inputs[0], [mean_over_positions(t) for t in tensors])
    class_sums = [np.zeros((classes, tensor.shape[-1])) for tensor in tensors]
    for first in progress(range(0, len(x), IMAGES_AT_ONCE), desc="activations"):
        rows = slice(first, first + IMAGES_AT_ONCE)
        is_of_class = np.eye(classes)[y[rows]].T  # (classes, images)
        activations = predict(neurons_model, x[rows])
        for class_sum, activation in zip(class_sums, activations, strict=True):
            class_sum += is_of_class @ activation
    return [
        class_sum / counts[:, None] - class_sum.sum(axis=0) / len(y) for class_sum in class_sums
    ]


def mean_over_positions(tensor):
    """Activations of neurons: (batch, ..., channels) -> (batch, channels)."""
    positions = tuple(range(1, len(tensor.shape) - 1))
    return ops.mean(tensor, axis=positions) if positions else tensor


# -------------------------------------------------------------------- contributions and slices


def slice_backwards(layers, relative_activation, per):
    """Contributions from the output backwards, and the slice of every layer on the way.

    relative_activation: of `relative_activations`. Returns {layer name: SlicedLayer}.
    """
    # CONTRIB_out(c) = D_out(c) for the output neuron of class c, and 0 for the others.
    contribution = np.diag(np.diag(relative_activation[-1]))
    slices = {}
    for k, layer in reversed(list(enumerate(layers))):
        d_in = relative_activation[k]
        d_out = relative_activation[k + 1]
        if is_sliced(layer):
            weights = summed_taps(layer)
            slices[layer.name], contribution = slice_layer(weights, contribution, d_out, d_in, per)
        elif type(layer).__name__ == "Flatten":
            # A channel's contribution is the sum over its positions.
            positions = contribution.reshape(len(contribution), -1, layer.input.shape[-1])
            contribution = positions.sum(axis=1)
    return dict(reversed(slices.items()))


def summed_taps(layer):
    """Weights (n_in, n_out) of a dense or convolutional layer, with a kernel's taps summed."""
    kernel = ops.convert_to_numpy(layer.kernel)
    taps = tuple(range(kernel.ndim - 2))
    return kernel.sum(axis=taps, dtype="float64") if taps else kernel


def slice_layer(weights, contribution, d_out, d_in, per):
    """The slice of one layer, and the contributions of its inputs.

    The local contribution of a synapse j -> i to class c is

        local(c, i, j) = CONTRIB_i(c) * D_i(c) * w_ij * D_j(c)    and
        CONTRIB_j(c)   = sum over i of sign(local(c, i, j)).

    A neuron's slice holds its ceil(per * n_in) synapses with the largest local contribution. For
    the whole model they are ranked by the sum over c of sign(local), ties by the sum over c of
    local / max |local(c, i, :)|.

    CONTRIB_i * D_i is the same for all synapses of neuron i. Only its sign g changes their order,
    so local is computed as g * w * D_j.

    Args:
        weights: (n_in, n_out), taps summed.
        contribution, d_out: float64 (classes, n_out), CONTRIB_i and D_i.
        d_in: float64 (classes, n_in), D_j.
        per: share of each neuron's synapses in the slice.

    Returns:
        SlicedLayer, and CONTRIB_j(c), float64 (classes, n_in).
    """
    classes = len(contribution)
    n_in, n_out = weights.shape
    k = ceil_share(per, n_in)
    d = d_in.astype("float32")  # the precision of activations
    mask = np.empty((n_in, n_out), bool)
    class_mask = np.empty((classes, n_in, n_out), bool)

    def slice_neurons(block, w, ranking):
        """Slice some neurons of the layer; returns their part of CONTRIB_j(c)."""
        g = np.sign(contribution[:, block] * d_out[:, block])  # (classes, neurons)
        largest_local = np.empty((classes, len(w)))
        for c in range(classes):
            local = ranking.local_contribution(g[c], w, d[c])
            class_mask[c, :, block] = ranking.largest(local, k).T
            largest_local[c] = np.maximum(local.max(axis=1), -local.min(axis=1))
        votes = sum_of_signs_over_classes(g, w, d)
        ties = sum_of_shares_over_classes(g, w, d_in, largest_local)
        mask[:, block] = ranking.largest(votes_then_ties(votes, ties, classes), k).T
        return sum_of_signs_over_neurons(g, w, d)

    # The sum over all neurons i is the sum over the blocks.
    contribution_in = sum(map_blocks(slice_neurons, weights)).astype("float64")
    sliced = SlicedLayer(mask, class_mask, contribution.astype("float32"), d_out.astype("float32"))
    return sliced, contribution_in


# Sums of local contributions as products of matrices, because sign(g * w * d) is
# sign(g) * sign(w) * sign(d). g: (classes, neurons). w: (neurons, n_in). d: (classes, n_in).


def sum_of_signs_over_classes(g, w, d):
    """Sum over c of sign(local), float32 (neurons, n_in)."""
    return (g.T.astype("float32") @ np.sign(d)) * np.sign(w)


def sum_of_shares_over_classes(g, w, d, largest_local):
    """Sum over c of local / max |local(c, i, :)|, float64 (neurons, n_in)."""
    share = np.divide(g, largest_local, where=largest_local > 0, out=np.zeros_like(largest_local))
    return (share.T @ d) * w


def sum_of_signs_over_neurons(g, w, d):
    """Sum over i of sign(local), which is CONTRIB_j(c), float32 (classes, n_in)."""
    return np.sign(d) * (g.astype("float32") @ np.sign(w))


def votes_then_ties(votes, ties, classes):
    """One number that ranks by votes, which are whole, and then by ties, which are in +-classes."""
    return 4 * classes * votes.astype("float64") + ties


def ceil_share(per, n):
    """ceil(per * n) of the product as it is written: 0.05 * 20 is 1, whatever its rounding."""
    return int(np.ceil(round(per * n, 9)))


def key_neurons(contribution, per):
    """The ceil(per * n) neurons with the largest contribution to each class: bool (classes, n)."""
    return largest(np.asarray(contribution, "float64"), ceil_share(per, contribution.shape[1]))


# -------------------------------------------------------------------------------- the slice file


def save_slice(path, slices, provenance):
    """Write slices to an HDF5 file, with their provenance as root attributes."""
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        for order, (name, sliced) in enumerate(slices.items()):
            group = file.create_group(name)
            group.attrs["order"] = order
            for field in fields(sliced):
                array = getattr(sliced, field.name)
                compression = "lzf" if array.dtype == bool else None
                group.create_dataset(field.name, data=array, compression=compression)


def load_slice(file):
    """{layer name: SlicedLayer, without class_mask} of an open slice file, from first to last."""
    names = sorted(file, key=lambda name: file[name].attrs["order"])
    arrays = ("mask", "contribution", "relative_activation")
    found = {name: {array: file[name][array][()] for array in arrays} for name in names}
    return {name: SlicedLayer(class_mask=None, **arrays) for name, arrays in found.items()}


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    x, y = study.data("train")
    path = slice_path(study.folder, args.per)
    provenance = study.provenance | {"per": args.per}
    with stage(study.folder / "nnslicer.log", "slice", vars(args) | {"images": len(x)}) as log:
        if already_made(path, provenance):
            log.idle = True
            print(f"{path} already exists.")
            return
        slices = slice_model(study.classifier, x, y, args.per)
        save_slice(path, slices, provenance)
        kept = sum(sliced.mask.sum() for sliced in slices.values())
        total = sum(sliced.mask.size for sliced in slices.values())
        share = f"{100 * kept / total:.1f}%"
        print(f"{path}: {len(slices)} layers, {kept:,} of {total:,} synapses ({share})")


if __name__ == "__main__":
    run_script(main)
