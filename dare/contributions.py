"""What each kind of Keras layer passes back of its neurons' contributions, and key neurons.

A neuron is a channel (or a dense unit), and CONTRIB_n(c) its contribution to class c. These rules
extend NNSlicer's from chains to acyclic graphs:

- layers with synapses (SLICED): see `slice_layer` in dare/nnslicer.py;
- Add and the other layers of MERGED: in every branch, the corresponding neuron gets the CONTRIB of
  the output's neuron. Each branch has its own D, so that its synapses are ranked by its own
  activations. A branch with a single channel, which is broadcast, gets the sum over all channels;
- Concatenate: each branch gets the part of its own neurons;
- Flatten, Reshape, Permute: CONTRIB is spread evenly over the positions of a neuron, moved to where
  the layer took them from, and added up there over the positions of each neuron;
- PASSED_ON: unchanged. These layers change the scale, sign, resolution or position of a channel,
  and each output channel is taken to be the input channel of the same index. Global pooling is one
  of them, because the activation of a channel is already its mean over positions;
- a tensor that several layers take gets the sum of what they pass back.

Signs and constants are ignored: `1 - x` and `Subtract` pass contributions back exactly as `Add`
does, and batch normalisation does so whatever the sign of its scale.
"""

from collections import Counter

import numpy as np

from train.shared.backend import keras, ops
from train.shared.flags import UserError
from train.shared.graph import Call, calls_of, find_call
from train.shared.paths import path_text

# Layers with synapses.
SLICED = ("Dense", "Conv2D", "DepthwiseConv2D", "SeparableConv2D")
MERGED = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum")
REARRANGED = ("Flatten", "Reshape", "Permute")
PASSED_ON = (
    *("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization"),
    *("GroupNormalization", "UnitNormalization", "RMSNormalization"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    # Of keras.ops.
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu", "Sigmoid", "HardSigmoid"),
    "Tanh",
    *("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"),
    *("ZeroPadding2D", "Cropping2D", "UpSampling2D", "Resizing", "CenterCrop", "Identity"),
    # These act in training only, as do RandomFlip, RandomCrop and so on.
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    "ActivityRegularization",
)


def kind_of(layer):
    return type(layer).__name__


def has_synapses(layer):
    return kind_of(layer) in SLICED


def is_passed_on(layer):
    return kind_of(layer) in PASSED_ON or kind_of(layer).startswith("Random")


def check_call(call):
    """Raise UserError if the slicer cannot handle a call."""
    layer, kind = call.layer, kind_of(call.layer)
    # keras.ops.average takes a mean over an axis.
    is_mean = kind == "Average" and not isinstance(layer, keras.layers.Layer)
    known = (*SLICED, *MERGED, "Concatenate", *REARRANGED, *PASSED_ON)
    if is_mean or not (kind in known or is_passed_on(layer)):
        raise UserError(
            f"the slicer cannot handle layer {call.path}, a {kind}: it handles {', '.join(known)} "
            f"and Random..."
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UserError(f"the slicer cannot handle layer {call.path}: it is not channels last.")


# -------------------------------------------------------------------------- layers with synapses


def split_separable(call):
    """The two parts of a separable convolution: a depthwise one and a 1x1 convolution.

    The depthwise part is a layer of its own with the same weights, and has no path, because all of
    its synapses are in the slice. Other calls are returned as they are.
    """
    layer = call.layer
    if kind_of(layer) != "SeparableConv2D":
        return [call]
    names = ("kernel_size", "strides", "padding", "depth_multiplier", "data_format")
    settings = {name: getattr(layer, name) for name in (*names, "dilation_rate")}
    name = f"{path_text(call.path)}__depthwise"
    depthwise = keras.layers.DepthwiseConv2D(**settings, use_bias=False, name=name)
    between = depthwise(call.inputs[0])
    depthwise.set_weights([ops.convert_to_numpy(layer.depthwise_kernel)])
    return [
        Call(None, depthwise, call.inputs, between),
        Call(call.path, layer, (between,), call.output),
    ]


def kernel_of(layer):
    """The kernel that the slice restricts: of a separable convolution, the 1x1 kernel."""
    return layer.pointwise_kernel if kind_of(layer) == "SeparableConv2D" else layer.kernel


def weights_of_synapses(layer):
    """w_ij of a layer, float32 (groups, neurons, inputs): sums over the taps of its kernel.

    Neurons and inputs are those of a group. Most layers are one group; a grouped convolution has
    several, and a depthwise one has a group for every input.
    """
    kernel = ops.convert_to_numpy(kernel_of(layer))
    weights = kernel.sum(axis=tuple(range(kernel.ndim - 2)), dtype="float64")
    kind = kind_of(layer)
    if kind == "DepthwiseConv2D":
        weights = weights[:, :, None]
    else:
        groups = layer.groups if kind == "Conv2D" else 1
        weights = weights.reshape(len(weights), groups, -1).transpose(1, 2, 0)
    return weights.astype("float32", order="C")


def mask_of_kernel(layer, mask):
    """The mask of a slice as it applies to the last two axes of `kernel_of(layer)`."""
    if kind_of(layer) == "DepthwiseConv2D":
        return mask.reshape(kernel_of(layer).shape[-2:])
    return mask


# ----------------------------------------------------------------------- layers without synapses


def contributions_of_inputs(call, contribution):
    """CONTRIB of the inputs of a layer without synapses (see the top of this file).

    Args:
        call: train.shared.graph.Call. contribution: of its output, float64 (classes, n_out).

    Returns:
        A list of float64 (classes, neurons), one for each of call.inputs.
    """
    kind = kind_of(call.layer)
    if kind in MERGED:
        total = contribution.sum(axis=1, keepdims=True)
        return [total if tensor.shape[-1] == 1 else contribution for tensor in call.inputs]
    if kind == "Concatenate":
        if call.layer.axis not in (-1, len(call.output.shape) - 1):  # along positions
            return [contribution for _ in call.inputs]
        ends = np.cumsum([tensor.shape[-1] for tensor in call.inputs])
        return np.split(contribution, ends[:-1], axis=1)
    if kind in REARRANGED:
        return [before_rearrangement(call, contribution)]
    return [contribution]


def before_rearrangement(call, contribution):
    """CONTRIB of the input of Flatten, Reshape or Permute, as contributions_of_inputs."""
    before, after = call.inputs[0].shape[1:], call.output.shape[1:]
    at_each_position = contribution / np.prod(after[:-1])
    at_each_position = at_each_position.reshape(-1, *[1] * (len(after) - 1), after[-1])
    moved = np.broadcast_to(at_each_position, (len(contribution), *after))
    if kind_of(call.layer) == "Permute":
        moved = moved.transpose(0, *(1 + np.argsort(call.layer.dims)))
    return moved.reshape(len(contribution), -1, before[-1]).sum(axis=1)


# ----------------------------------------------------------------------------------- key neurons


def key_neurons_of(classifier, choose_layer, slices, per):
    """The key neurons of a layer, from the slices of the layers that make its neurons (ASE 2022).

    They are the ceil(per * n) neurons with the largest contribution to each class.

    Args:
        classifier: Keras model. choose_layer: path of the layer.
        slices: {path: SlicedLayer}. per: share of key neurons.

    Returns:
        bool (classes, neurons).

    Raises:
        UserError: a layer whose outputs are not the neurons of sliced layers.
    """
    path = find_call(classifier, choose_layer).path
    contribution = contributions_of_layers(calls_of(classifier), slices)[path]
    if contribution is None:
        raise UserError(
            f"--choose_layer {choose_layer} has no neurons of its own: choose a dense or "
            f"convolutional layer, or a layer that follows one."
        )
    return largest(contribution, ceil_share(per, contribution.shape[1]))


def contributions_of_layers(calls, slices):
    """CONTRIB of every layer's output, from that of the sliced layers.

    Layers of PASSED_ON and MERGED pass CONTRIB back unchanged. So their neurons have the CONTRIB of
    the layer before, provided that no other layer uses that layer's output.

    Returns:
        {path: float (classes, neurons), or None where it does not follow from the slices}.
    """
    uses = Counter(id(tensor) for call in calls for tensor in call.inputs)
    of_tensor, of_layer = {}, {}
    for call in calls:
        kind = kind_of(call.layer)
        inputs = [of_tensor.get(id(t)) if uses[id(t)] == 1 else None for t in call.inputs]
        known = [contribution for contribution in inputs if contribution is not None]
        if has_synapses(call.layer):
            known = [slices[call.path].contribution] if call.path in slices else []
        elif kind == "Concatenate":
            known = [np.concatenate(known, axis=1)] if len(known) == len(inputs) else []
        elif not (is_passed_on(call.layer) or kind in (*MERGED, "Flatten")):
            known = []
        # All branches of a sum have the same CONTRIB. Where the number of neurons changes (Flatten,
        # broadcasting), it is unknown.
        same = [c for c in known if c.shape[1] == call.output.shape[-1]]
        of_tensor[id(call.output)] = of_layer[call.path] = same[0] if same else None
    return of_layer


# ----------------------------------------------------------------------------------- the largest


def ceil_share(per, n):
    """ceil(per * n), at least 1; 0.05 * 20 is 1, however its product is rounded."""
    return max(1, int(np.ceil(round(per * n, 9))))


def largest(values, k):
    """Mask of the k largest values on the last axis; of equal ones the lower index comes first."""
    threshold = np.partition(values, -k)[..., [-k]]
    is_above, is_equal = values > threshold, values == threshold
    places = k - is_above.sum(axis=-1, keepdims=True)
    return is_above | (is_equal & (is_equal.cumsum(axis=-1, dtype="int32") <= places))
