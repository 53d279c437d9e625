"""Step 3: slice the network, that is, find the synapses and neurons that matter (NNSlicer).

    python dare/nnslicer.py --dataset digits --model lenet --per 0.95

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
slice_<per>.h5 there, with mask, class_mask, contribution and relative_activation of every dense and
convolutional layer. The slicer works on any acyclic graph of the layers in dare/contributions.py
with one input and one output, in which no layer with weights is used twice. It assumes no
particular layer names or shapes.
"""

import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dare.contributions import (
    ceil_share,
    check_call,
    contributions_of_inputs,
    has_synapses,
    largest,
    split_separable,
    weights_of_synapses,
)
from train import params
from train.shared.artifacts import atomic_write, check, set_attributes
from train.shared.backend import ops
from train.shared.checks import checked_inputs
from train.shared.flags import UserError, options, run_script
from train.shared.graph import calls_of, part_of
from train.shared.log import progress, stage
from train.shared.paths import path_text, slice_path
from train.shared.study import Study
from train.utils import IMAGES_AT_ONCE, predict

dataset = "digits"
model = "lenet"
seed = 0
per = params.per  # share of each neuron's synapses in the slice; a larger `per`, a larger slice


@dataclass
class SlicedLayer:
    """The slice of one dense or convolutional layer, with n_in inputs and n_out neurons.

    mask: bool (n_in, n_out), the synapses in the model's slice. All taps of a kernel share one. In
        a grouped convolution, n_in is the number of inputs of a group.
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
        model: a Keras model of layers of the kinds in dare/contributions.py, with an output neuron
            for each class. Models may be layers of it.
        x, y: images (n, h, w, c), uint8 or as the model takes them, and labels (n,) of all classes.
        per: share of each neuron's synapses in the slice, in (0, 1].

    Returns:
        {path of a layer: SlicedLayer}, from the first layer to the last. The path is the layer's
        name or, for a layer of an inner model, a path such as "backbone/conv3".

    Raises:
        UserError: a layer that the slicer cannot handle, a class without images, a wrong `per`, or
            what `checked_inputs` refuses.
    """
    if not 0 < per <= 1:
        raise UserError(f"per is {per}, not a share in (0, 1].")
    calls = calls_to_slice(model)
    model, x, y, _ = checked_inputs(model, x, y)
    return slice_backwards(calls, relative_activations(model, calls, x, y), per)


def calls_to_slice(model):
    """The calls that the slicer goes through (train.shared.graph.Call), from input to output.

    A separable convolution is split into its two parts. Raises UserError if a layer is of a kind
    that is not handled, or has synapses and is used twice.
    """
    calls = calls_of(model)
    for call in calls:
        check_call(call)
    with_synapses = [call for call in calls if has_synapses(call.layer)]
    if not with_synapses:
        raise UserError("the slicer found no dense or convolutional layer in this model.")
    uses = Counter(id(call.layer) for call in with_synapses)
    for call in with_synapses:
        if uses[id(call.layer)] > 1:
            raise UserError(f"the slicer cannot handle layer {call.path}: it is used twice.")
    return [part for call in calls for part in split_separable(call)]


# --------------------------------------------------------------------------- relative activation


def relative_activations(model, calls, x, y):
    """D of every neuron at the inputs and outputs of all layers, in one pass over the images.

    D_n(c) = mean activation of neuron n over the images of class c, minus its mean over all images.
    The activation of a channel is its mean over positions.

    Returns:
        {id of a tensor: float64 (classes, neurons)} for the tensors of the calls.
    """
    classes = model.outputs[0].shape[-1]
    counts = np.bincount(y, minlength=classes)
    if not counts.all():
        found = np.unique(y).tolist()
        raise UserError(f"the slicer needs images of all {classes} classes: there are {found}.")

    tensors = {id(tensor): tensor for call in calls for tensor in (*call.inputs, call.output)}
    neurons_model = part_of(model, [mean_over_positions(t) for t in tensors.values()])
    class_sums = [np.zeros((classes, tensor.shape[-1])) for tensor in tensors.values()]
    for first in progress(range(0, len(x), IMAGES_AT_ONCE), desc="activations"):
        rows = slice(first, first + IMAGES_AT_ONCE)
        is_of_class = np.eye(classes)[y[rows]].T  # (classes, images)
        activations = predict(neurons_model, x[rows])
        for class_sum, activation in zip(class_sums, activations, strict=True):
            class_sum += is_of_class @ activation
    return {
        key: class_sum / counts[:, None] - class_sum.sum(axis=0) / len(y)
        for key, class_sum in zip(tensors, class_sums, strict=True)
    }


def mean_over_positions(tensor):
    """Activations of neurons: (batch, ..., channels) -> (batch, channels)."""
    positions = tuple(range(1, len(tensor.shape) - 1))
    return ops.mean(tensor, axis=positions) if positions else tensor


# -------------------------------------------------------------------- contributions and slices


def slice_backwards(calls, relative_activation, per):
    """Contributions from the output backwards, and the slice of every layer on the way.

    calls: of `calls_to_slice`. relative_activation: of `relative_activations`. Returns {path:
    SlicedLayer}, from the first layer to the last.
    """
    output = id(calls[-1].output)
    # CONTRIB_out(c) = D_out(c) for the output neuron of class c, and 0 for the others.
    contributions = {output: np.diag(np.diag(relative_activation[output]))}
    slices = {}
    for call in reversed(calls):
        contribution = contributions.pop(id(call.output), None)
        if contribution is None:  # the layer does not lead to the output
            continue
        if has_synapses(call.layer):
            d_out = relative_activation[id(call.output)]
            d_in = relative_activation[id(call.inputs[0])]
            weights = weights_of_synapses(call.layer)
            sliced, of_input = slice_layer(weights, contribution, d_out, d_in, per)
            if call.path:  # not for a part of a separable convolution
                slices[call.path] = sliced
            of_inputs = [of_input]
        else:
            of_inputs = contributions_of_inputs(call, contribution)
        for tensor, part in zip(call.inputs, of_inputs, strict=True):
            # A tensor that several layers take gets the sum of what they pass back.
            contributions[id(tensor)] = contributions.get(id(tensor), 0) + part
    return dict(reversed(slices.items()))


def slice_layer(weights, contribution, d_out, d_in, per):
    """The slice of one layer, and the contributions of its inputs (NNSlicer, section 4).

    The local contribution of a synapse j -> i to class c is

        local(c, i, j) = CONTRIB_i(c) * D_i(c) * w_ij * D_j(c)    and
        CONTRIB_j(c)   = sum over i of sign(local(c, i, j)).

    A neuron's slice holds its ceil(per * n_in) synapses with the largest local contribution. For
    the whole model they are ranked by the sum over c of sign(local), ties by the sum over c of
    local / max |local(c, i, :)|, then by index.

    CONTRIB_i * D_i is the same for all synapses of neuron i, so only its sign changes their order,
    and the code multiplies by this sign alone.

    Args:
        weights: w_ij, float32 (groups, neurons, inputs), of weights_of_synapses.
        contribution, d_out: CONTRIB_i and D_i, float64 (classes, groups * neurons).
        d_in: D_j, float64 (classes, groups * inputs).
        per: share of each neuron's synapses in the slice.

    Returns:
        SlicedLayer, and CONTRIB_j(c), float64 (classes, groups * inputs).
    """
    classes, (groups, neurons, inputs) = len(contribution), weights.shape
    k = ceil_share(per, inputs)
    sign_out = np.sign(contribution * d_out).reshape(classes, groups, neurons)
    d_in = d_in.reshape(classes, groups, inputs)
    sign32, d32 = sign_out.astype("float32"), d_in.astype("float32")  # as precise as activations

    class_mask = np.empty((classes, inputs, groups * neurons), bool)
    contribution_in, largest_local = np.empty_like(d_in), np.empty_like(sign_out)
    votes = np.zeros_like(weights)
    for c in range(classes):
        # local(c, i, j), float32 (groups, neurons, inputs)
        local = sign32[c, :, :, None] * weights * d32[c, :, None, :]
        class_mask[c] = by_input(largest(local, k))
        contribution_in[c] = np.sign(local).sum(axis=1)
        votes += np.sign(local)
        largest_local[c] = np.abs(local).max(axis=2)

    # The sum over c of local / largest_local, from -classes to classes; w_ij is factored out.
    scale = sign_out / np.where(largest_local > 0, largest_local, 1)
    ties = weights * (scale.transpose(1, 2, 0) @ d_in.transpose(1, 0, 2))
    mask = by_input(largest(4 * classes * votes + ties, k))  # one vote outweighs any tie
    sliced = SlicedLayer(mask, class_mask, contribution.astype("float32"), d_out.astype("float32"))
    return sliced, contribution_in.reshape(classes, -1)


def by_input(mask):
    """(groups, neurons, inputs) -> (inputs, groups * neurons), as in a kernel."""
    return mask.transpose(2, 0, 1).reshape(mask.shape[2], -1)


# -------------------------------------------------------------------------------- the slice file


def save_slice(target, slices, provenance):
    """Write slices to an HDF5 file, with their provenance as root attributes."""
    with atomic_write(target) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        for path, sliced in slices.items():
            group = file.create_group(path_text(path))
            group.attrs["path"] = path
            for field in fields(sliced):
                array = getattr(sliced, field.name)
                compression = "lzf" if array.dtype == bool else None
                group.create_dataset(field.name, data=array, compression=compression)


def load_slice(file):
    """{path of a layer: SlicedLayer} of an open slice file, with what tuning needs of it."""
    slices = {}
    for group in file.values():
        mask, contribution = group["mask"][()], group["contribution"][()]
        slices[group.attrs["path"]] = SlicedLayer(mask, None, contribution, None)
    return slices


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    x, y = study.data("train")
    path = slice_path(study.folder, args.per)
    provenance = study.provenance | {"per": args.per}
    with stage(study.folder / "nnslicer.log", "slice", vars(args) | {"images": len(x)}) as log:
        if check(path, provenance):
            log["idle"] = True
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
