"""The slicer against a deliberately naive loop, written from the formulas of NNSlicer."""

import math

import numpy as np
import pytest
from conftest import patterns

from dare.nnslicer import ceil_share, key_neurons, slice_model
from dare.slicing import ranking
from dare.slicing.ranking import largest
from train.backend import keras
from train.flags import UserError
from train.utils import set_seed

layers = keras.layers


def dense_chain():
    return [
        layers.Flatten(),
        layers.Dense(7, activation="relu"),
        layers.Dense(6, activation="tanh"),
        layers.Dense(4, activation="softmax"),
    ]


def conv_chain():
    return [
        layers.Conv2D(5, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(4),
        layers.Conv2D(3, 2, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(6, activation="relu"),
        layers.Dense(4),
        layers.Softmax(),
    ]


def global_chain():
    return [
        layers.Conv2D(6, 3, strides=2),
        layers.Activation("relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4, activation="softmax"),
    ]


def naive(model, x, y, per):
    """{layer: (mask, class_mask, contribution, relative_activation)}, one weight at a time."""
    output, classes = model.outputs[0], model.outputs[0].shape[-1]

    def relative(tensor):
        a = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], tensor)(x)).astype("float64")
        a = a.reshape(len(a), -1, a.shape[-1]).mean(axis=1) if a.ndim > 2 else a
        return [
            [a[y == c, n].mean() - a[:, n].mean() for n in range(a.shape[1])]
            for c in range(classes)
        ]

    out = relative(output)
    contribution = [[out[c][n] if n == c else 0.0 for n in range(classes)] for c in range(classes)]
    result = {}
    for layer in reversed(model.layers):
        if isinstance(layer, layers.Flatten):
            channels = layer.input.shape[-1]
            contribution = [
                [sum(row[j] for j in range(len(row)) if j % channels == k) for k in range(channels)]
                for row in contribution
            ]
        if not hasattr(layer, "kernel"):
            continue
        kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64")
        n_in, n_out = kernel.shape[-2:]
        d_out, d_in = relative(layer.output), relative(layer.input)
        keep = math.ceil(per * n_in)
        mask, class_mask = np.zeros((n_in, n_out), bool), np.zeros((classes, n_in, n_out), bool)
        below = [[0.0] * n_in for _ in range(classes)]
        for i in range(n_out):
            votes, ties = [0.0] * n_in, [0.0] * n_in
            for c in range(classes):
                local = []
                for j in range(n_in):
                    weight = sum(tap[j][i] for tap in kernel.reshape(-1, n_in, n_out))
                    local.append(contribution[c][i] * d_out[c][i] * weight * d_in[c][j])
                for j in sorted(range(n_in), key=lambda j: (-local[j], j))[:keep]:
                    class_mask[c][j][i] = True
                most = max(abs(v) for v in local)
                for j in range(n_in):
                    sign = int(local[j] > 0) - int(local[j] < 0)
                    below[c][j] += sign
                    votes[j] += sign
                    ties[j] += local[j] / most if most else 0
            for j in sorted(range(n_in), key=lambda j: (-votes[j], -ties[j], j))[:keep]:
                mask[j][i] = True
        result[layer.name] = mask, class_mask, np.array(contribution), np.array(d_out)
        contribution = below
    return result


@pytest.mark.parametrize("per", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("chain", [dense_chain, conv_chain, global_chain])
def test_against_the_naive_loop(chain, per, monkeypatch):
    # Blocks of a few neurons, the last one smaller.
    monkeypatch.setattr(ranking, "BLOCK_SYNAPSES", 100)
    set_seed(3)
    x, y = patterns(40)
    x = x.astype("float32") / 255
    model = keras.Sequential([keras.Input((12, 12, 1)), *chain()])
    found, expected = slice_model(model, x, y, per), naive(model, x, y, per)
    assert list(found) == list(reversed(expected))
    for name, (mask, class_mask, contribution, relative) in expected.items():
        np.testing.assert_array_equal(found[name].class_mask, class_mask)
        np.testing.assert_array_equal(found[name].mask, mask)
        np.testing.assert_allclose(found[name].contribution, contribution, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[name].relative_activation, relative, rtol=1e-4, atol=1e-6)
        assert (mask.sum(axis=0) == math.ceil(per * mask.shape[0])).all()


def test_largest_breaks_ties_by_index():
    values = np.array([[1.0, 2, 2, 0, 2]])
    assert largest(values, 2).tolist() == [[False, True, True, False, False]]
    assert largest(values, 4).sum() == 4
    assert key_neurons(np.array([[3.0, 1, 2]]), 0.5).tolist() == [[True, False, True]]


def test_shares_as_they_are_written():
    assert ceil_share(0.05, 20) == 1 and ceil_share(0.07, 100) == 7 and ceil_share(0.95, 9) == 9


def test_uint8_and_float_pixels_are_the_same(classifier):
    x, y = patterns(40)
    one, other = (
        slice_model(classifier, x, y, 0.5),
        slice_model(classifier, x.astype("float32") / 255, y, 0.5),
    )
    for name in one:
        np.testing.assert_array_equal(one[name].mask, other[name].mask)


def test_refuses_what_it_cannot_slice(classifier):
    x, y = patterns(40)
    with pytest.raises(UserError, match="DepthwiseConv2D"):
        model = keras.Sequential(
            [keras.Input((12, 12, 1)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(4)]
        )
        slice_model(model, x, y, 0.5)
    inputs = keras.Input((12, 12, 1))
    flat = layers.Flatten()(inputs)
    first = layers.Dense(5, name="first")(flat)
    around = layers.Dense(4, name="around")(flat)
    with pytest.raises(UserError, match="its input is not the output of the layer before it"):
        slice_model(keras.Model(inputs, [around, first]), x, y, 0.5)
    both = layers.Add()([flat, flat])
    with pytest.raises(UserError, match="a Add: it handles"):
        slice_model(keras.Model(inputs, layers.Dense(4)(both)), x, y, 0.5)
    with pytest.raises(UserError, match="one group"):
        grouped = layers.Conv2D(4, 3, groups=2)(layers.Conv2D(4, 3)(inputs))
        slice_model(keras.Model(inputs, layers.Dense(4)(layers.Flatten()(grouped))), x, y, 0.5)
    with pytest.raises(UserError, match="images of all 4 classes"):
        slice_model(classifier, x[y > 0], y[y > 0], 0.5)
    for per in (0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="per is"):
            slice_model(classifier, x, y, per)
