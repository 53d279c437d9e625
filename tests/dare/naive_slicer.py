"""The slicer as loops over single neurons, for any graph of layers: an oracle for tests."""

import math

import numpy as np

from train.shared.backend import keras, ops
from train.shared.graph import calls_of, part_of


def values(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


class Naive:
    """The slicer as loops over neurons. What a layer connects is found by trying it out."""

    def __init__(self, model, x, y, per):
        self.model, self.x, self.y, self.per = model, x, y, per
        self.classes = model.output_shape[-1]
        self.contribution = {}  # {(id of a tensor, class, neuron): CONTRIB}
        self.slices = {}
        self.calls = calls_of(model)
        output = self.calls[-1].output
        for c in range(self.classes):
            self.contribution[id(output), c, c] = self.relative(output)[c][c]
        for call in reversed(self.calls):
            {
                **dict.fromkeys(SYNAPSES, self.synapses),
                **dict.fromkeys(("SeparableConv2D",), self.separable),
                **dict.fromkeys(("Add", "Multiply", "Subtract"), self.merge),
                "Concatenate": self.concatenate,
                **dict.fromkeys(("Flatten", "Reshape", "Permute"), self.move),
            }.get(type(call.layer).__name__, self.pass_on)(call)

    def relative(self, tensor):
        """D of every neuron, a list for every class."""
        activation = values(part_of(self.model, tensor)(self.x, training=False))
        means = activation.reshape(len(self.x), -1, activation.shape[-1]).mean(axis=1)
        return [means[self.y == c].mean(axis=0) - means.mean(axis=0) for c in range(self.classes)]

    def of(self, tensor, c, n):
        return self.contribution.get((id(tensor), c, n), 0.0)

    def add(self, tensor, c, n, value):
        self.contribution[id(tensor), c, n] = self.of(tensor, c, n) + value

    def synapses(self, call):
        (x,) = call.inputs
        contribution = self.contributions(call.output)
        connected = connected_inputs(call.layer, x.shape[1:])
        below = self.slice(
            call.path, connected, contribution, self.relative(call.output), self.relative(x)
        )
        for (c, j), value in below.items():
            self.add(x, c, j, value)

    def contributions(self, tensor):
        neurons = range(tensor.shape[-1])
        return [[self.of(tensor, c, n) for n in neurons] for c in range(self.classes)]

    def slice(self, path, connected, contribution, d_out, d_in):
        """connected: a list {input: weight} for every neuron. Returns {(class, input): CONTRIB}."""
        inputs, neurons = len(connected[0]), len(connected)
        mask = np.zeros((inputs, neurons), bool)
        class_mask = np.zeros((self.classes, inputs, neurons), bool)
        keep = math.ceil(self.per * inputs)
        below = {}
        for i, weight_of in enumerate(connected):
            votes, ties = np.zeros(inputs), np.zeros(inputs)
            for c in range(self.classes):
                g = np.sign(contribution[c][i] * d_out[c][i])
                local = [g * weight * d_in[c][j] for j, weight in weight_of.items()]
                best = sorted(range(inputs), key=lambda k: (-local[k], k))[:keep]
                class_mask[c, best, i] = True
                votes += np.sign(local)
                ties += np.array(local) / (max(map(abs, local)) or 1)
                for j, value in zip(weight_of, local, strict=True):
                    below[c, j] = below.get((c, j), 0) + np.sign(value)
            best = sorted(range(inputs), key=lambda k: (-votes[k], -ties[k], k))[:keep]
            mask[best, i] = True
        self.slices[path] = mask, class_mask, np.array(contribution), np.array(d_out)
        return below

    def separable(self, call):
        layer, (x,) = call.layer, call.inputs
        depthwise, pointwise = (values(kernel) for kernel in layer.get_weights()[:2])
        between = keras.layers.DepthwiseConv2D(
            layer.kernel_size, layer.strides, layer.padding, layer.depth_multiplier, use_bias=False
        )
        middle = between(x)
        between.set_weights([depthwise])
        connected = [dict(enumerate(column)) for column in pointwise[0, 0].T]
        contribution = self.contributions(call.output)
        below = self.slice(
            call.path, connected, contribution, self.relative(call.output), self.relative(middle)
        )
        for (c, j), value in below.items():
            self.add(middle, c, j, value)
        taps = depthwise.sum(axis=(0, 1))
        d_in, d_middle = self.relative(x), self.relative(middle)
        for c in range(self.classes):
            for j in range(taps.shape[0]):
                for m in range(taps.shape[1]):
                    n = j * taps.shape[1] + m
                    local = self.of(middle, c, n) * d_middle[c][n] * taps[j, m] * d_in[c][j]
                    self.add(x, c, j, np.sign(local))

    def merge(self, call):
        for tensor in call.inputs:
            for c in range(self.classes):
                for n in range(call.output.shape[-1]):
                    channel = n if tensor.shape[-1] > 1 else 0
                    self.add(tensor, c, channel, self.of(call.output, c, n))

    def concatenate(self, call):
        if call.layer.axis == 1:  # rows of an image
            self.merge(call)
            return
        n = 0
        for tensor in call.inputs:
            for channel in range(tensor.shape[-1]):
                for c in range(self.classes):
                    self.add(tensor, c, channel, self.of(call.output, c, n))
                n += 1

    def move(self, call):
        (x,) = call.inputs
        shape = x.shape[1:]
        source = values(call.layer(np.arange(math.prod(shape)).reshape(1, *shape)))[0]
        for index in np.ndindex(source.shape):
            for c in range(self.classes):
                share = self.of(call.output, c, index[-1]) / math.prod(source.shape[:-1])
                self.add(x, c, int(source[index]) % shape[-1], share)

    def pass_on(self, call):
        for c in range(self.classes):
            for n in range(call.output.shape[-1]):
                self.add(call.inputs[0], c, n, self.of(call.output, c, n))


SYNAPSES = ("Dense", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "SpectralNormalization")


def connected_inputs(layer, shape):
    """{input: summed weight} of every neuron: what the layer makes of one pixel of one channel.

    A single pixel in the middle meets every tap of a kernel once, in all outputs together. Of a
    dense layer the kernel says it.
    """
    if isinstance(layer, keras.layers.Dense):
        return [dict(enumerate(column)) for column in values(layer.kernel).T]
    neurons = []
    zero = values(linear(layer)(np.zeros((1, *shape), "float32")))
    for j in range(shape[-1]):
        pixel = np.zeros((1, *shape), "float32")
        pixel[(0, *(size // 2 for size in shape[:-1]), j)] = 1
        change = values(linear(layer)(pixel)) - zero
        neurons.append(change.reshape(-1, change.shape[-1]).sum(axis=0))
    weights = np.array(neurons).T
    return [{j: w for j, w in enumerate(row) if abs(w) > 1e-6} for row in weights]


def linear(layer):
    """A layer without its activation."""
    layer = getattr(layer, "layer", layer)

    def call(x):
        activation, layer.activation = layer.activation, keras.activations.linear
        result = layer(x)
        layer.activation = activation
        return result

    return call
