"""How each kind of Keras layer passes contributions back to its inputs.

These rules extend NNSlicer's from chains to acyclic graphs. A neuron is a channel (or a dense
unit), and CONTRIB_n(c) its contribution to class c:

- layers with synapses (dense and convolutional): see `slice_groups` in dare/nnslicer.py;
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

NNSlicer has sliced a residual network too. There, every position of a channel is a neuron, for one
image at a time. Here a neuron is a channel; its activation is its mean over positions, and D
averages it over the images of a class.
"""

import numpy as np

from train.shared.backend import keras, ops
from train.shared.flags import UserError
from train.shared.graph import Call
from train.shared.paths import path_text

DIMENSIONS = (1, 2, 3)
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
TRANSPOSED = tuple(f"Conv{d}DTranspose" for d in DIMENSIONS)
# Layers with synapses.
SLICED = ("Dense", *(f"Conv{d}D" for d in DIMENSIONS), *DEPTHWISE, *SEPARABLE, *TRANSPOSED)
MERGED = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum")
REARRANGED = ("Flatten", "Reshape", "Permute")
# From Dropout on, these act in training only.
PASSED_ON = (
    *("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization"),
    *("GroupNormalization", "UnitNormalization", "RMSNormalization"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    # Of keras.ops.
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu", "Sigmoid", "HardSigmoid"),
    "Tanh",
    *(f"{kind}Pooling{d}D" for kind in ("Max", "Average") for d in DIMENSIONS),
    *(f"{kind}Pooling{d}D" for kind in ("GlobalMax", "GlobalAverage") for d in DIMENSIONS),
    *(f"{kind}{d}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for d in DIMENSIONS),
    *("Resizing", "CenterCrop", "Identity"),
    *("Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization"),
    *(f"SpatialDropout{d}D" for d in DIMENSIONS),
)
RANDOM = "Random"  # RandomFlip, RandomCrop and so on, which act in training only


def unwrapped(layer):
    """The layer whose kernel counts: the one that SpectralNormalization wraps, or itself."""
    return layer.layer if type(layer).__name__ == "SpectralNormalization" else layer


def kind_of(layer):
    return type(unwrapped(layer)).__name__


def has_synapses(layer):
    return kind_of(layer) in SLICED


def is_passed_on(layer):
    return kind_of(layer) in PASSED_ON or kind_of(layer).startswith(RANDOM)


def check_call(call):
    """Raise UserError if the slicer cannot handle a call."""
    layer = unwrapped(call.layer)
    kind = kind_of(layer)
    # keras.ops.average takes a mean over an axis.
    is_mean = kind == "Average" and not isinstance(layer, keras.layers.Layer)
    known = (*SLICED, *MERGED, "Concatenate", *REARRANGED, *PASSED_ON)
    if is_mean or not (kind in known or is_passed_on(layer)):
        raise UserError(
            f"the slicer cannot handle layer {call.path}, a {kind}: it handles {', '.join(known)} "
            f"and {RANDOM}..."
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
    if kind_of(layer) not in SEPARABLE:
        return [call]
    kind = f"Depthwise{kind_of(layer).removeprefix('Separable')}"
    names = ("kernel_size", "strides", "padding", "depth_multiplier", "data_format")
    settings = {name: getattr(layer, name) for name in (*names, "dilation_rate")}
    name = f"{path_text(call.path)}__depthwise"
    depthwise = getattr(keras.layers, kind)(**settings, use_bias=False, name=name)
    between = depthwise(call.inputs[0])
    depthwise.set_weights([ops.convert_to_numpy(layer.depthwise_kernel)])
    return [
        Call(None, depthwise, call.inputs, between),
        Call(call.path, layer, (between,), call.output),
    ]


def kernel_of(layer):
    """The kernel that the slice restricts: of a separable convolution, the 1x1 kernel."""
    layer = unwrapped(layer)
    return layer.pointwise_kernel if kind_of(layer) in SEPARABLE else layer.kernel


def synapses_of(layer):
    """Weights (inputs of a group, n_out) of a layer, with a kernel's taps summed, and its groups.

    In a depthwise convolution every input is a group, with one synapse to each of its outputs.
    """
    kernel = ops.convert_to_numpy(kernel_of(layer))
    taps = tuple(range(kernel.ndim - 2))
    weights = kernel.sum(axis=taps, dtype="float64") if taps else kernel
    kind = kind_of(layer)
    if kind in DEPTHWISE:
        return weights.reshape(1, -1), len(weights)
    if kind in TRANSPOSED:
        return weights.T, 1
    is_convolution = kind.startswith("Conv")
    return weights, unwrapped(layer).groups if is_convolution else 1


def mask_of_kernel(layer, mask):
    """The mask of a slice as it applies to the last two axes of `kernel_of(layer)`."""
    kind = kind_of(layer)
    if kind in DEPTHWISE:
        return mask.reshape(kernel_of(layer).shape[-2:])
    return mask.T if kind in TRANSPOSED else mask


# -------------------------------------------------------------------------------- other layers


def contributions_of_inputs(call, contribution):
    """CONTRIB of the inputs of a layer without synapses.

    Args:
        call: train.shared.graph.Call. contribution: of its output, float64 (classes, n_out).

    Returns:
        A list of float64 (classes, neurons), one for each of call.inputs.
    """
    kind = kind_of(call.layer)
    if kind in MERGED:
        return [of_branch(tensor, contribution) for tensor in call.inputs]
    if kind == "Concatenate":
        return of_concatenated(call, contribution)
    if kind in REARRANGED:
        return [of_rearranged(call, contribution)]
    return [contribution]


def of_branch(tensor, contribution):
    """CONTRIB of one branch of a sum, product or the like."""
    is_broadcast = tensor.shape[-1] == 1
    return contribution.sum(axis=1, keepdims=True) if is_broadcast else contribution


def of_concatenated(call, contribution):
    """CONTRIB of the branches of a concatenation; along positions, each gets all of it."""
    if call.layer.axis not in (-1, len(call.output.shape) - 1):
        return [contribution for _ in call.inputs]
    ends = np.cumsum([tensor.shape[-1] for tensor in call.inputs])
    return np.split(contribution, ends[:-1], axis=1)


def of_rearranged(call, contribution):
    """CONTRIB of the input of Flatten, Reshape or Permute (see the top of this file)."""
    before = call.inputs[0].shape[1:]
    after = call.output.shape[1:]
    classes = len(contribution)
    at_each_position = contribution / np.prod(after[:-1])
    moved = at_each_position.reshape(classes, *[1] * (len(after) - 1), -1)
    moved = np.broadcast_to(moved, (classes, *after))
    if kind_of(call.layer) == "Permute":
        moved = moved.transpose(0, *(1 + np.argsort(call.layer.dims)))
    return moved.reshape(classes, -1, before[-1]).sum(axis=1)
