"""What each kind of Keras layer does with contributions, on their way back to its inputs.

These rules extend NNSlicer's from chains to any acyclic graph of layers. A neuron is a channel (or
a dense unit), and CONTRIB_n(c) its contribution to class c:

- layers with synapses (dense and convolutional): see `slice_groups` in dare/nnslicer.py;
- Add and the other layers of MERGED: a neuron of each branch gets CONTRIB of the sum's neuron. Each
  branch has its own D, so that its synapses are ranked by its own activations. The second branch of
  Subtract gets -CONTRIB. A branch with one channel for all gets the sum over the channels;
- Concatenate: each branch gets its own neurons' part;
- Flatten, Reshape, Permute: CONTRIB is spread evenly over the positions of a neuron, moved to where
  the layer took them from, and added up there over the positions of each neuron;
- PASSED_ON: unchanged, because these layers change the scale, sign, resolution or position of a
  channel, but not which channel it is;
- a tensor that several layers take: the sum of what they pass back.

NNSlicer has sliced a residual network too. It follows every position of a channel, for one image,
while a neuron here is a channel and its activation the mean over its positions and over the images
of a class (design of this repository; see DIFFERENCES.md).
"""

import numpy as np

from train.backend import keras, ops
from train.flags import UserError
from train.graph import Step

DIMENSIONS = (1, 2, 3)
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
TRANSPOSED = tuple(f"Conv{d}DTranspose" for d in DIMENSIONS)
# Layers with synapses.
SLICED = ("Dense", *(f"Conv{d}D" for d in DIMENSIONS), *DEPTHWISE, *SEPARABLE, *TRANSPOSED)
MERGED = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
MOVED = ("Flatten", "Reshape", "Permute")
# Those from Dropout on act in training only. After global pooling a channel has no positions, and
# before it its activation is their mean.
PASSED_ON = (
    *("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization"),
    *("GroupNormalization", "UnitNormalization", "RMSNormalization"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    *("Relu", "Relu6", "Sigmoid", "Silu", "HardSigmoid", "HardSilu", "Gelu", "Tanh"),  # keras.ops
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


def check_step(step):
    """Raise UserError if the slicer cannot handle a step."""
    layer = unwrapped(step.layer)
    kind = kind_of(layer)
    if not (kind in (*SLICED, *MERGED, *MOVED, "Concatenate") or is_passed_on(layer)):
        known = ", ".join((*SLICED, *MERGED, "Concatenate", *MOVED, *PASSED_ON))
        raise UserError(
            f"the slicer cannot handle layer {step.path}, a {kind}: it handles {known}."
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UserError(f"the slicer cannot handle layer {step.path}: it is not channels last.")


# -------------------------------------------------------------------------- layers with synapses


def split_separable(step):
    """The two steps of a separable convolution: a depthwise one and a 1x1 convolution.

    The first is a layer of its own with the same weights. Other steps are returned as they are.
    """
    layer = step.layer
    if kind_of(layer) not in SEPARABLE:
        return [step]
    kind = f"Depthwise{kind_of(layer).removeprefix('Separable')}"
    names = ("kernel_size", "strides", "padding", "depth_multiplier", "data_format")
    settings = {name: getattr(layer, name) for name in names}
    depthwise = getattr(keras.layers, kind)(
        **settings, dilation_rate=layer.dilation_rate, use_bias=False
    )
    between = depthwise(step.inputs[0])
    depthwise.set_weights([ops.convert_to_numpy(layer.depthwise_kernel)])
    return [
        Step(f"{step.path}/depthwise", depthwise, step.inputs, between),
        Step(step.path, layer, (between,), step.output),
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


def contributions_of_inputs(step, contribution):
    """CONTRIB of the inputs of a layer without synapses.

    Args:
        step: train.graph.Step. contribution: of its output, float64 (classes, n_out).

    Returns:
        A list of float64 (classes, neurons), one for each of step.inputs.
    """
    kind = kind_of(step.layer)
    if kind in MERGED:
        return merged(step, contribution)
    if kind == "Concatenate":
        return cut(step, contribution)
    if kind in MOVED:
        return [moved_back(step, contribution)]
    return [contribution]


def merged(step, contribution):
    parts = []
    for number, tensor in enumerate(step.inputs):
        is_negative = kind_of(step.layer) == "Subtract" and number == 1
        part = -contribution if is_negative else contribution
        if tensor.shape[-1] == 1:
            part = part.sum(axis=1, keepdims=True)
        parts.append(part)
    return parts


def cut(step, contribution):
    """The parts of a concatenation's contribution; of one along positions, each gets all of it."""
    if step.layer.axis not in (-1, len(step.output.shape) - 1):
        return [contribution for _ in step.inputs]
    ends = np.cumsum([tensor.shape[-1] for tensor in step.inputs])
    return np.split(contribution, ends[:-1], axis=1)


def moved_back(step, contribution):
    """CONTRIB of the input of Flatten, Reshape or Permute (see the top of this file)."""
    before = step.inputs[0].shape[1:]
    after = step.output.shape[1:]
    at_each_position = contribution / np.prod(after[:-1])
    classes = len(contribution)
    moved = at_each_position.reshape(classes, *[1] * (len(after) - 1), -1)
    moved = np.broadcast_to(moved, (classes, *after))
    if kind_of(step.layer) == "Permute":
        moved = moved.transpose(0, *(1 + np.argsort(step.layer.dims)))
    return moved.reshape(classes, -1, before[-1]).sum(axis=1)
