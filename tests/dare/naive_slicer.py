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
        self.contributions = {}  # {id of a tensor: CONTRIB (classes, neurons)}
        self.slices = {}
        self.calls = calls_of(model)
        output = self.calls[-1].output
        for c in range(self.classes):
            self.of(output)[c, c] = self.relative(output)[c][c]
        for call in reversed(self.calls):
            {
                **dict.fromkeys(SYNAPSES, self.synapses),
                **dict.fromkeys(("SeparableConv2D",), self.separable),
                **dict.fromkeys(("Add", "Multiply", "Subtract"), self.merge),
                "Concatenate": self.concatenate,
                **dict.fromkeys(("Flatten", "Reshape", "Permute"), self.move),
            }.get(type(call.layer).__name__, self.pass_on)(call)

    def of(self, tensor):
        """CONTRIB of a tensor's neurons, to which the layers that take it add."""
        nothing = np.zeros((self.classes, tensor.shape[-1]))
        return self.contributions.setdefault(id(tensor), nothing)

    def relative(self, tensor):
        """D of every neuron, a list for every class."""
        activation = values(part_of(self.model, tensor)(self.x, training=False))
        means = activation.reshape(len(self.x), -1, activation.shape[-1]).mean(axis=1)
        return [means[self.y == c].mean(axis=0) - means.mean(axis=0) for c in range(self.classes)]

    def synapses(self, call):
        (x,) = call.inputs
        self.slice(call.path, connected_inputs(call.layer, x.shape[1:]), x, call.output)

    def slice(self, path, connected, x, output):
        """connected: a list {input: weight} for every neuron of the output."""
        inputs, neurons = len(connected[0]), len(connected)
        contribution, d_out, d_in = self.of(output), self.relative(output), self.relative(x)
        mask = np.zeros((inputs, neurons), bool)
        class_mask = np.zeros((self.classes, inputs, neurons), bool)
        keep = math.ceil(self.per * inputs)
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
                    self.of(x)[c, j] += np.sign(value)
            best = sorted(range(inputs), key=lambda k: (-votes[k], -ties[k], k))[:keep]
            mask[best, i] = True
        if path:
            self.slices[path] = mask, class_mask, contribution, np.array(d_out)

    def separable(self, call):
        layer, (x,) = call.layer, call.inputs
        depthwise = keras.layers.DepthwiseConv2D(
            layer.kernel_size, layer.strides, layer.padding, layer.depth_multiplier, use_bias=False
        )
        between = depthwise(x)
        depthwise.set_weights(layer.get_weights()[:1])
        connected = [dict(enumerate(column)) for column in values(layer.pointwise_kernel)[0, 0].T]
        self.slice(call.path, connected, between, call.output)
        self.slice(None, connected_inputs(depthwise, x.shape[1:]), x, between)

    def merge(self, call):
        for tensor in call.inputs:
            for n in range(call.output.shape[-1]):
                channel = n if tensor.shape[-1] > 1 else 0
                self.of(tensor)[:, channel] += self.of(call.output)[:, n]

    def concatenate(self, call):
        if call.layer.axis == 1:  # rows of an image
            self.merge(call)
            return
        n = 0
        for tensor in call.inputs:
            for channel in range(tensor.shape[-1]):
                self.of(tensor)[:, channel] += self.of(call.output)[:, n]
                n += 1

    def move(self, call):
        (x,) = call.inputs
        shape = x.shape[1:]
        source = values(call.layer(np.arange(math.prod(shape)).reshape(1, *shape)))[0]
        for index in np.ndindex(source.shape):
            share = self.of(call.output)[:, index[-1]] / math.prod(source.shape[:-1])
            self.of(x)[:, int(source[index]) % shape[-1]] += share

    def pass_on(self, call):
        self.of(call.inputs[0])[:] += self.of(call.output)


SYNAPSES = ("Dense", "Conv2D", "DepthwiseConv2D")


def connected_inputs(layer, shape):
    """{input: summed weight} of every neuron: what the layer makes of one pixel of one channel.

    A single pixel in the middle meets every tap of a kernel once, in all outputs together. Of a
    dense layer the kernel says it.
    """
    if isinstance(layer, keras.layers.Dense):
        return [dict(enumerate(column)) for column in values(layer.kernel).T]
    activation, layer.activation = layer.activation, keras.activations.linear
    neurons = []
    zero = values(layer(np.zeros((1, *shape), "float32")))
    for j in range(shape[-1]):
        pixel = np.zeros((1, *shape), "float32")
        pixel[(0, *(size // 2 for size in shape[:-1]), j)] = 1
        change = values(layer(pixel)) - zero
        neurons.append(change.reshape(-1, change.shape[-1]).sum(axis=0))
    layer.activation = activation
    weights = np.array(neurons).T
    return [{j: w for j, w in enumerate(row) if abs(w) > 1e-6} for row in weights]
