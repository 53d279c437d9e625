"""Step 3: slice the network: the synapses and neurons that matter (NNSlicer, FSE 2020).

    python dare/nnslicer.py --dataset digits --model lenet --per 0.95

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
slice_<per>.h5 there: for every dense and convolutional layer `mask`, `class_mask`, `contribution`
and `relative_activation`. Works on any feed-forward chain of Keras layers of the kinds listed
below; no layer name or shape is written into it.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
from threadpoolctl import ThreadpoolController

from train.artifacts import already_made, atomic_write, set_attributes, slice_path
from train.backend import keras, ops
from train.flags import UserError, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import predict

dataset = "digits"
model = "lenet"
seed = 0
per = 0.95  # share of every neuron's synapses in the slice; larger `per`, larger slice

SLICED = ("Dense", "Conv1D", "Conv2D", "Conv3D")
# Contributions pass these on unchanged: what they change is a channel's scale, sign or resolution,
# not which channel it is. Flatten adds up a channel's positions; after global pooling a channel has
# none, and before it its activation is their mean.
PASSED = (
    *("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization"),
    *("GroupNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "ZeroPadding2D", "Flatten"),
    *(f"{kind}Pooling{d}D" for kind in ("Max", "Average") for d in (1, 2, 3)),
    *(f"{kind}Pooling{d}D" for kind in ("GlobalMax", "GlobalAverage") for d in (1, 2, 3)),
)

IMAGES_AT_ONCE = 2048  # bounds memory: the activations of so many images are added up at a time
SYNAPSES_AT_ONCE = 2**17  # every core ranks so many at a time: they fit its cache


@dataclass
class SlicedLayer:
    """What the slicer knows of one dense or convolutional layer, n_in inputs and n_out neurons.

    mask: bool (n_in, n_out), the synapses of the model's slice; all taps of a kernel share it.
    class_mask: bool (classes, n_in, n_out), those of the slice of each class.
    contribution: float32 (classes, n_out), CONTRIB of each neuron to each class.
    relative_activation: float32 (classes, n_out), D.
    """

    mask: np.ndarray
    class_mask: np.ndarray
    contribution: np.ndarray
    relative_activation: np.ndarray


def slice_model(model, x, y, per):
    """Slices of a classifier (NNSlicer, section 4).

    Args:
        model: a chain of Keras layers of the kinds above, ending in one output per class.
        x: images (n, h, w, c), uint8 or float32 pixels as the model takes them.
        y: int labels (n,), every class present.
        per: share of every neuron's synapses, in (0, 1].

    Returns:
        {layer name: SlicedLayer}, from the first layer to the last.

    Raises:
        UserError: a layer the slicer cannot handle, named; a class without images; a wrong `per`.
    """
    if not 0 < per <= 1:
        raise UserError(f"per is {per}, not a share in (0, 1].")
    layers = chain(model)
    return slice_backwards(layers, relative_activations(model, layers, x, y), per)


def chain(model):
    """The layers from the model's input to its output, each of which takes what the last one gave.

    Raises UserError if they are no chain or one is of a kind not handled.
    """
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    tensor = model.inputs[0]
    for layer in layers:
        kind = type(layer).__name__
        if kind not in SLICED + PASSED:
            known = ", ".join(SLICED + PASSED)
            raise UserError(
                f"the slicer cannot handle layer {layer.name}, a {kind}: it knows {known}."
            )
        if kind.startswith("Conv") and (layer.groups, layer.data_format) != (1, "channels_last"):
            raise UserError(
                f"the slicer cannot handle layer {layer.name}: convolutions must have one group, "
                f"channels last."
            )
        if layer.input is not tensor:
            raise UserError(
                f"the slicer cannot handle layer {layer.name}: it does not take just what the "
                f"layer before it gives, so this is no chain."
            )
        tensor = layer.output
    if not any(is_sliced(layer) for layer in layers):
        raise UserError("the slicer found no dense or convolutional layer in this model.")
    return layers


def is_sliced(layer):
    return type(layer).__name__ in SLICED


def relative_activations(model, layers, x, y):
    """D of every neuron before, between and after the layers, in one pass over the images.

    D_n(c) = mean activation of neuron n over class c, minus that over all images; a channel's
    activation is its mean over positions.

    Returns [float64 (classes, neurons)]: D[k] at the input of layers[k], D[k + 1] at its output.
    """
    classes = model.outputs[0].shape[-1]
    y = np.asarray(y, "int64")
    counts = np.bincount(y, minlength=classes)
    if len(counts) != classes or not counts.all():
        found = np.unique(y).tolist()
        raise UserError(
            f"the slicer needs images of each of the {classes} classes: there are {found}."
        )

    def neurons(tensor):  # (batch, ..., channels) -> (batch, channels)
        positions = tuple(range(1, len(tensor.shape) - 1))
        return ops.mean(tensor, axis=positions) if positions else tensor

    tensors = [model.inputs[0], *(layer.output for layer in layers)]
    probe = keras.Model(model.inputs[0], [neurons(tensor) for tensor in tensors])
    sums = [np.zeros((classes, tensor.shape[-1])) for tensor in tensors]
    for first in progress(range(0, len(x), IMAGES_AT_ONCE), desc="activations"):
        rows = slice(first, first + IMAGES_AT_ONCE)
        of_class = np.eye(classes)[y[rows]].T  # (classes, images)
        for total, activation in zip(sums, predict(probe, x[rows]), strict=True):
            total += of_class @ activation
    return [total / counts[:, None] - total.sum(axis=0) / len(y) for total in sums]


def slice_backwards(layers, relative_activation, per):
    """Contributions from the output backwards, and the slices of every layer they meet."""
    contribution = np.diag(np.diag(relative_activation[-1]))  # CONTRIB_out(c) = D_out(c), else 0
    result = {}
    for k, layer in reversed(list(enumerate(layers))):
        d_in, d_out = relative_activation[k], relative_activation[k + 1]
        if is_sliced(layer):
            sliced, contribution = slice_layer(summed_taps(layer), contribution, d_out, d_in, per)
            result[layer.name] = sliced
        elif type(layer).__name__ == "Flatten":  # a channel's contribution: that of its positions
            positions = contribution.reshape(len(contribution), -1, layer.input.shape[-1])
            contribution = positions.sum(axis=1)
    return dict(reversed(result.items()))


def summed_taps(layer):
    """Weights (n_in, n_out) of a dense or convolutional layer: a kernel's taps summed."""
    kernel = ops.convert_to_numpy(layer.kernel)
    taps = tuple(range(kernel.ndim - 2))
    return kernel.sum(axis=taps, dtype="float64") if taps else kernel


def slice_layer(weights, contribution, d_out, d_in, per):
    """The slices of one layer, and the contributions of its inputs.

    For a synapse j -> i, local(c, i, j) = CONTRIB_i(c) * D_i(c) * w_ij * D_j(c).
    CONTRIB_i * D_i is the same for all synapses of a neuron: only its sign, g, changes their
    order. And the sums over c and over i of the signs of local are products of matrices.

    Args:
        weights: (n_in, n_out), taps summed.
        contribution, d_out: float64 (classes, n_out), CONTRIB_i and D_i.
        d_in: float64 (classes, n_in), D_j.

    Returns:
        SlicedLayer, and CONTRIB_j(c), float64 (classes, n_in).
    """
    classes, (n_in, n_out) = len(contribution), weights.shape
    keep = ceil_share(per, n_in)
    d = d_in.astype("float32")  # the precision that activations come in
    mask = np.empty((n_in, n_out), bool)
    class_mask = np.empty((classes, n_in, n_out), bool)

    def slice_neurons(block, w, rank):
        """The formulas for a block of neurons, w: float32 (neurons, n_in); their CONTRIB_j(c)."""
        g = np.sign(contribution[:, block] * d_out[:, block])  # (classes, neurons)
        largest_local = np.empty((classes, len(w)))
        for c in range(classes):
            local = rank.product(g[c], w, d[c])
            class_mask[c, :, block] = rank.largest(local, keep).T
            largest_local[c] = rank.largest_absolute(local)
        votes = signs_over_classes(g, w, d)
        ties = shares_over_classes(g, w, d_in, largest_local)
        mask[:, block] = rank.largest(votes_then_ties(votes, ties, classes), keep).T
        return signs_over_neurons(g, w, d)

    # CONTRIB_j(c) sums over all neurons i: each block gives the sum over its own.
    contribution_in = sum(over_blocks_of_neurons(slice_neurons, weights))
    sliced = SlicedLayer(mask, class_mask, contribution.astype("float32"), d_out.astype("float32"))
    return sliced, contribution_in.astype("float64")


# The sums of slice_layer, as products of matrices: local = g * w * d, and sign(g * w * d) is
# sign(g) * sign(w) * sign(d). g: (classes, neurons). w: (neurons, n_in). d: (classes, n_in).


def signs_over_classes(g, w, d):
    """Sum over c of sign(local), float32 (neurons, n_in)."""
    return (g.T.astype("float32") @ np.sign(d)) * np.sign(w)


def shares_over_classes(g, w, d, largest_local):
    """Sum over c of local / max |local(c, i, :)|, float64 (neurons, n_in)."""
    share = np.divide(g, largest_local, where=largest_local > 0, out=np.zeros_like(largest_local))
    return (share.T @ d) * w


def signs_over_neurons(g, w, d):
    """Sum over i of sign(local): CONTRIB_j(c), float32 (classes, n_in)."""
    return np.sign(d) * (g.astype("float32") @ np.sign(w))


def votes_then_ties(votes, ties, classes):
    """One number that ranks by votes first, which are whole, and then by ties, in +-classes."""
    return 4 * classes * votes.astype("float64") + ties


def over_blocks_of_neurons(work, weights):
    """[work(block, weights of the block's neurons (neurons, n_in), Ranking)], on all cores.

    A block's synapses fit the cache of a core, and a neuron's lie side by side.
    """
    n_in, n_out = weights.shape
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    at_once = max(1, min(SYNAPSES_AT_ONCE // n_in, -(-n_out // cores)))
    starts = range(0, n_out, at_once)

    def of_one_core(core):
        rank, memory = Ranking(at_once, n_in), np.empty((at_once, n_in), "float32")
        for first in starts[core::cores]:
            block = slice(first, min(first + at_once, n_out))
            w = memory[: block.stop - first]
            w[:] = weights[:, block].T
            yield work(block, w, rank)

    # Threads of BLAS inside of ours would wait for each other.
    with ThreadPoolExecutor(cores) as pool, ThreadpoolController().limit(limits=1):
        parts = pool.map(lambda core: list(of_one_core(core)), range(cores))
        return [result for part in parts for result in part]


class Ranking:
    """The k largest of every row, computed in the same few arrays again and again.

    They stay in the cache of the core, while memory that is fresh from the system has to be
    cleared first: half of the time.
    """

    def __init__(self, rows, n):
        self.local, self.scratch = np.empty((2, rows, n), "float32")
        self.kept = np.empty((rows, n + 64), bool)[:, :n]  # rows that share no lines of the cache
        self.by_index = np.arange(n, 0, -1, dtype="float32")

    def product(self, g, w, d):
        """local = g_i * w_ij * d_j (rows, n). Rows of zeros, all tied, rank by index."""
        local = self.local[: len(w)]
        np.multiply(w, d, out=local)
        local *= g.astype("float32")[:, None]
        local[g == 0] = self.by_index
        return local

    def largest(self, values, k):
        """Mask (rows, n) of the k largest of every row, which the next call overwrites."""
        scratch = self.scratch[: len(values)] if values.dtype == np.float32 else None
        return largest(values, k, scratch, self.kept[: len(values)])

    def largest_absolute(self, local):
        return np.maximum(local.max(axis=1), -local.min(axis=1))


def ceil_share(per, n):
    """ceil(per * n), of per * n as it is written: 0.05 * 20 is 1, in spite of its rounding."""
    return int(np.ceil(round(per * n, 9)))


def largest(values, k, scratch=None, mask=None):
    """Mask of the k largest of every row of values (rows, n); of equal ones those of lower index.

    scratch, mask: arrays of that shape to compute in.
    """
    rows, n = values.shape
    mask = np.empty((rows, n), bool) if mask is None else mask
    if k >= n:
        mask[:] = True
        return mask
    ranked = np.empty_like(values) if scratch is None else scratch
    ranked[:] = values
    ranked.partition(n - k, axis=1)
    threshold = ranked[:, n - k]
    np.greater_equal(values, threshold[:, None], out=mask)
    tied = ranked[:, : n - k].max(axis=1) == threshold  # more at the threshold than places for them
    if tied.any():
        above = values[tied] > threshold[tied, None]
        level = values[tied] == threshold[tied, None]
        places = k - above.sum(axis=1, keepdims=True)
        mask[tied] = above | (level & (np.cumsum(level, axis=1) <= places))
    return mask


def key_neurons(contribution, per):
    """bool (classes, n): the ceil(per * n) neurons with the largest contribution to each class."""
    return largest(np.asarray(contribution, "float64"), ceil_share(per, contribution.shape[1]))


def save_slice(path, slices, provenance):
    """Write slices to an HDF5 file, with what they were made from as root attributes."""
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
    """{layer name: SlicedLayer, without class_mask} of an open slice file, in order of layers."""
    names = sorted(file, key=lambda name: file[name].attrs["order"])
    parts = ("mask", "contribution", "relative_activation")
    found = {name: {part: file[name][part][()] for part in parts} for name in names}
    return {name: SlicedLayer(class_mask=None, **arrays) for name, arrays in found.items()}


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    x, y = study.data("train")
    path, provenance = slice_path(study.folder, args.per), study.provenance | {"per": args.per}
    with stage(study.folder / "nnslicer.log", "slice", vars(args) | {"images": len(x)}) as record:
        record.idle = already_made(path, provenance)
        if record.idle:
            print(f"{path} is there.")
            return
        slices = slice_model(study.classifier, x, y, args.per)
        save_slice(path, slices, provenance)
        kept = sum(s.mask.sum() for s in slices.values())
        total = sum(s.mask.size for s in slices.values())
        share = f"{100 * kept / total:.1f}%"
        print(f"{path}: {len(slices)} layers, {kept:,} of {total:,} synapses ({share})")


if __name__ == "__main__":
    run_script(main)
