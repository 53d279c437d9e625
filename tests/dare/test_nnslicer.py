"""The slicer against a deliberately naive loop, written from the formulas of NNSlicer."""

import math

import numpy as np
import pytest
from conftest import patterns
from naive_slicer import Naive

from dare.nnslicer import slice_model
from dare.slicing import ranking
from dare.slicing.key_neurons import key_neurons
from dare.slicing.ranking import ceil_share, largest
from train.shared.backend import keras
from train.shared.flags import UserError
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


@pytest.mark.parametrize("per", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("chain", [dense_chain, conv_chain, global_chain])
def test_against_the_naive_loop(chain, per, monkeypatch):
    # Blocks of a few neurons, the last one smaller.
    monkeypatch.setattr(ranking, "BLOCK_SYNAPSES", 100)
    set_seed(3)
    x, y = patterns(40)
    x = x.astype("float32") / 255
    model = keras.Sequential([keras.Input((12, 12, 1)), *chain()])
    found, expected = slice_model(model, x, y, per), Naive(model, x, y, per).slices
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
    inputs = keras.Input((12, 12, 1))
    conv = layers.Conv2D(4, 3, name="conv")
    end = [layers.Flatten(), layers.Dense(4)]
    with pytest.raises(UserError, match="layer attention, a Attention: it handles Dense"):
        attended = layers.Attention(name="attention")([conv(inputs), conv(inputs)])
        slice_model(keras.Model(inputs, keras.Sequential(end)(attended)), x, y, 0.5)
    with pytest.raises(UserError, match="layer conv: it is used twice"):
        twice = layers.Add()([conv(inputs), conv(layers.ReLU()(inputs))])
        slice_model(keras.Model(inputs, keras.Sequential(end)(twice)), x, y, 0.5)
    with pytest.raises(UserError, match="with one input and one output"):
        other = keras.Input((12, 12, 1))
        both = layers.Dense(4)(layers.Flatten()(layers.Add()([inputs, other])))
        slice_model(keras.Model([inputs, other], both), x, y, 0.5)
    with pytest.raises(UserError, match="found no dense or convolutional layer"):
        slice_model(keras.Sequential([inputs, layers.Flatten()]), x, y, 0.5)
    with pytest.raises(UserError, match="images of all 4 classes"):
        slice_model(classifier, x[y > 0], y[y > 0], 0.5)
    for per in (0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="per is"):
            slice_model(classifier, x, y, per)
