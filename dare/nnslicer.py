"""Step 3: slice the network: the synapses of every neuron, and the neurons, that matter (NNSlicer, FSE 2020).

    python dare/nnslicer.py --dataset digits --model alexnet --per 0.95

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>/. Writes slice_<per>.h5 there: for every dense
and convolutional layer `mask`, `class_mask`, `contribution` and `relative_activation`. Works on any feed-forward chain of
Keras layers of the kinds listed below; no layer name or shape is written into it.
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
from tqdm import tqdm

from train.files import UserError, data_sha256, options, run, set_attributes, stage, whole
from train.utils import load_fitting_data, load_study, predict

import keras  # isort: skip

dataset = "digits"
model = "alexnet"
seed = 0
per = 0.95  # share of every neuron's synapses in the slice; larger `per`, larger slice

SLICED = ("Dense", "Conv1D", "Conv2D", "Conv3D")
# Contributions pass these on unchanged: what they change is a channel's scale, sign or resolution, not which it is.
PASSED = ("InputLayer", "Normalization", "Rescaling", "BatchNormalization", "LayerNormalization", "GroupNormalization")
PASSED += ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout2D", "GaussianNoise")
PASSED += tuple(f"{kind}Pooling{d}D" for d in (1, 2, 3) for kind in ("Max", "Average", "GlobalMax", "GlobalAverage"))
PASSED += ("ZeroPadding2D", "Flatten")  # Flatten and global pooling also add up a channel's positions

IMAGES_AT_ONCE = 2048  # bounds memory: the model runs on this many images, then their activations are added up
SYNAPSES_AT_ONCE = 2**17  # so many synapses are ranked at a time by every core: they fit its cache
BLAS = ThreadpoolController()


@dataclass
class SlicedLayer:
    """What the slicer knows of one dense or convolutional layer with n_in inputs and n_out neurons (design section 9).

    mask: bool (n_in, n_out), the synapses of the model's slice; all taps of a kernel share their synapse's.
    class_mask: bool (classes, n_in, n_out), those of the slice of each class.
    contribution: float32 (classes, n_out), CONTRIB of each neuron to each class.
    relative_activation: float32 (classes, n_out), D.
    """

    mask: np.ndarray
    class_mask: np.ndarray
    contribution: np.ndarray
    relative_activation: np.ndarray


def slice_model(model, x, y, per):
    """Slices of a classifier (design section 4; NNSlicer, section 4).

    Args:
        model: a chain of Keras layers of the kinds above, ending in one output per class.
        x: images (n, h, w, c), uint8 or float32 pixels as the model takes them. y: labels (n,), every class present.
        per: share of every neuron's synapses, in (0, 1].

    Returns:
        {layer name: SlicedLayer}, from the first layer to the last.

    Raises:
        UserError: a layer the slicer cannot handle, named; a class without images; `per` outside (0, 1].
    """
    if not 0 < per <= 1:
        raise UserError(f"per is {per}, not a share in (0, 1].")
    links = chain(model)
    return backward(links, *relative_activations(model, links, x, y), per)


def chain(model):
    """[(layer, its input, its output)] from the model's input to its output.

    Raises UserError if the layers are no chain or one is of a kind not handled.
    """
    links, tensor = [], model.outputs[0]
    while True:
        layer, node, _ = tensor._keras_history
        kind, inputs = type(layer).__name__, layer._inbound_nodes[node].input_tensors
        if kind not in SLICED + PASSED:
            raise UserError(f"the slicer cannot handle layer {layer.name}, a {kind}: it knows {', '.join(SLICED + PASSED)}.")
        if kind.startswith("Conv") and (layer.groups != 1 or layer.data_format != "channels_last"):
            raise UserError(f"the slicer cannot handle layer {layer.name}: convolutions must have one group, channels last.")
        if kind == "InputLayer":
            break
        if len(inputs) > 1 or layer in [link[0] for link in links]:
            raise UserError(f"the slicer cannot handle layer {layer.name}: it has several inputs or is used twice, so this is no chain.")
        links.insert(0, (layer, inputs[0], tensor))
        tensor = inputs[0]
    if not any(type(layer).__name__ in SLICED for layer, _, _ in links):
        raise UserError("the slicer found no dense or convolutional layer in this model.")
    return links


def relative_activations(model, links, x, y):
    """D of every neuron at the outputs and inputs of the sliced layers, in one pass over the images.

    D_n(c) = mean activation of neuron n over class c, minus that over all images; a channel's activation is its mean over
    positions. Returns two dicts, layer name -> float64 (classes, neurons); `outputs` also has the model's own output, "".
    """
    sliced = [link for link in links if type(link[0]).__name__ in SLICED]
    classes = model.outputs[0].shape[-1]
    y = np.asarray(y, "int64")
    counts = np.bincount(y, minlength=classes)
    if len(counts) != classes or not counts.all():
        raise UserError(f"the slicer needs images of each of the {classes} classes: there are {np.unique(y).tolist()}.")

    def neurons(tensor):
        positions = tuple(range(1, len(tensor.shape) - 1))
        return keras.ops.mean(tensor, axis=positions) if positions else tensor

    tensors = [t for _, before, after in sliced for t in (after, before)] + [model.outputs[0]]
    probe = keras.Model(model.inputs[0], [neurons(t) for t in tensors])
    sums = [np.zeros((classes, t.shape[-1])) for t in tensors]
    for start in tqdm(range(0, len(x), IMAGES_AT_ONCE), desc="activations", unit="batch", disable=None):
        rows = slice(start, start + IMAGES_AT_ONCE)
        onehot = np.eye(classes)[y[rows]].T
        for total, activation in zip(sums, predict(probe, x[rows]), strict=True):
            total += onehot @ activation
    relative = [total / counts[:, None] - total.sum(axis=0) / len(y) for total in sums]
    names = [layer.name for layer, _, _ in sliced]
    return dict(zip([*names, ""], [*relative[:-1:2], relative[-1]], strict=True)), dict(zip(names, relative[1::2], strict=True))


def backward(links, outputs, inputs, per):
    """Contributions from the output backwards, and the slices of every layer they meet; as slice_model."""

    def weights(name):  # (n_in, n_out): taps summed
        kernel = keras.ops.convert_to_numpy(layers[name].kernel)
        taps = tuple(range(kernel.ndim - 2))
        return kernel.sum(axis=taps, dtype="float64") if taps else kernel

    layers = {layer.name: layer for layer, _, _ in links if layer.name in inputs}
    with ThreadPoolExecutor() as pool:  # copied out of the backend side by side
        kernels = dict(zip(layers, pool.map(weights, layers), strict=True))
    contribution = np.diag(np.diag(outputs[""]))  # CONTRIB_out(c) = D_out(c), 0 for other outputs
    result = {}
    for layer, before, _ in reversed(links):
        name = layer.name
        if name in layers:
            result[name], contribution = slice_layer(kernels[name], contribution, outputs[name], inputs[name], per)
        elif type(layer).__name__ == "Flatten":
            contribution = contribution.reshape(len(contribution), -1, before.shape[-1]).sum(axis=1)
    return dict(reversed(result.items()))


def slice_layer(weights, contribution, d_out, d_in, per):
    """The slices of one layer, and the contributions of its inputs.

    Args:
        weights: (n_in, n_out), taps summed. contribution, d_out: float64 (classes, n_out), CONTRIB_i and D_i.
        d_in: float64 (classes, n_in), D_j.

    local(c, i, j) = CONTRIB_i(c) * D_i(c) * w_ij * D_j(c) = g * w_ij * D_j(c), where g belongs to the neuron. So every
    sum of its signs is a product of matrices, and the ranking of a neuron's synapses needs only the sign of g. Locals are
    float32, as the activations are.

    Returns:
        SlicedLayer, and CONTRIB_j(c), float64 (classes, n_in).
    """
    classes, (n_in, n_out) = len(contribution), weights.shape
    keep = count(per, n_in)
    g = np.sign(contribution * d_out)  # (classes, n_out)
    g_local, d_local = g.astype("float32"), d_in.astype("float32")
    sign_in = np.sign(d_local)
    mask, class_mask = np.empty((n_in, n_out), bool), np.empty((classes, n_in, n_out), bool)
    workers = os.cpu_count() or 1
    at_once = max(1, min(SYNAPSES_AT_ONCE // n_in, -(-n_out // workers)))
    by_index = np.arange(n_in, 0, -1)  # the order of ties

    def work(first):
        # Blocks of neurons, from the first of this worker on. Here neurons come first, so that a neuron's synapses lie together.
        # All is computed in the same few arrays: memory fresh from the system costs more than what is done with it.
        buffers = np.empty((3, at_once, n_in), "float32")
        keys = np.empty((2, at_once, n_in))
        kept = np.empty((at_once, n_in + 64), bool)[:, :n_in]  # rows a power of two apart would share few lines of the cache
        counted = np.zeros((classes, n_in))
        for start in range(first * at_once, n_out, workers * at_once):
            block = slice(start, min(start + at_once, n_out))
            w, local, ranked = buffers[:, : block.stop - start]
            in_slice = kept[: len(w)]
            columns = ranked.reshape(n_in, -1)
            columns[:] = weights[:, block]  # in two steps, each in order through memory: a fifth of the time
            w[:] = columns.T
            share = np.zeros((classes, len(w)))
            for c in range(classes):
                # The largest g * w * D: w * D where g is positive, -w * D where it is negative. Where g is 0 all are tied.
                np.multiply(w, d_local[c], out=local)
                local *= g_local[c, block, None]
                local[g[c, block] == 0] = by_index
                class_mask[c, :, block] = largest(local, keep, ranked, in_slice).T
                most = np.maximum(local.max(axis=1), -local.min(axis=1))
                np.divide(g[c, block], most, out=share[c], where=most > 0)
            np.sign(w, out=ranked)
            counted += g_local[:, block] @ ranked
            key, ties = keys[:, : len(w)]
            np.matmul(g_local[:, block].T, sign_in, out=local)
            local *= ranked  # votes: sum over c of sign(local), (neurons, n_in)
            np.matmul(share.T, d_in, out=ties)
            ties *= w  # sum over c of local / max |local(c, i, :)|
            np.multiply(local, 4 * classes, out=key)  # votes first, then ties, of which no sum is larger than the number of classes
            key += ties
            mask[:, block] = largest(key, keep, ties, in_slice).T
        return counted

    with ThreadPoolExecutor(workers) as pool, BLAS.limit(limits=1):  # threads of BLAS inside of ours would wait for each other
        counted = sum(pool.map(work, range(workers)))
    sliced = SlicedLayer(mask, class_mask, contribution.astype("float32"), d_out.astype("float32"))
    return sliced, sign_in * counted  # sum over i of sign(local), (classes, n_in)


def count(per, n):
    """ceil(per * n), where per * n is meant as written: 0.05 * 20 is 1, not 2 for the sake of a rounding error."""
    return int(np.ceil(round(per * n, 9)))


def largest(values, k, ranked=None, mask=None):
    """Mask of the k largest of every row of values (rows, n); equal ones by index. ranked, mask: arrays of that shape to use."""
    rows, n = values.shape
    mask = np.empty((rows, n), bool) if mask is None else mask
    if k >= n:
        mask[:] = True
        return mask
    ranked = np.empty_like(values) if ranked is None else ranked
    ranked[:] = values
    ranked.partition(n - k, axis=1)
    threshold = ranked[:, n - k]
    np.greater_equal(values, threshold[:, None], out=mask)
    many = ranked[:, : n - k].max(axis=1) == threshold  # rows with more at the threshold than places for them
    if many.any():
        above, level = values[many] > threshold[many, None], values[many] == threshold[many, None]
        mask[many] = above | (level & (np.cumsum(level, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    return mask


def key_neurons(contribution, per):
    """bool (classes, n): the ceil(per * n) neurons with the largest contribution (classes, n) to each class."""
    return largest(np.asarray(contribution, "float64"), count(per, contribution.shape[1]))


def save_slice(path, slices, **made_from):
    """Write slices to an HDF5 file, with what they were made from as root attributes."""
    with whole(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, **made_from)
        for order, (name, sliced) in enumerate(slices.items()):
            group = file.create_group(name)
            group.attrs["order"] = order
            for field in fields(sliced):
                array = getattr(sliced, field.name)
                group.create_dataset(field.name, data=array, compression="lzf" if array.dtype == bool else None)


def load_slice(file):
    """{layer name: SlicedLayer without class_mask} of an open slice file, in the order of the layers."""
    names = sorted(file, key=lambda name: file[name].attrs["order"])
    return {n: SlicedLayer(file[n]["mask"][()], None, file[n]["contribution"][()], file[n]["relative_activation"][()]) for n in names}


def main(argv=None):
    args = options(__doc__, argv, dataset=dataset, model=model, seed=seed, per=per)
    folder, classifier, _, digest = load_study(args)
    x, y = load_fitting_data(args, "train", classifier)
    with stage(folder / "nnslicer.log", "slice", **vars(args), images=len(x)):
        slices = slice_model(classifier, x, y, args.per)
        path = folder / f"slice_{args.per:g}.h5"
        save_slice(path, slices, **vars(args), checkpoint_sha256=digest, data_sha256=data_sha256(args.dataset))
        sizes = [(s.mask.sum(), s.mask.size) for s in slices.values()]
        kept, total = (sum(column) for column in zip(*sizes, strict=True))
        print(f"{path}: {len(slices)} layers, {kept:,} of {total:,} synapses in the slice ({100 * kept / total:.1f}%)")


if __name__ == "__main__":
    run(main)
