"""The slicer's rules for ties and shares, and what it refuses; test_graphs.py tests slices."""

import numpy as np
import pytest
from conftest import patterns

from dare.contributions import ceil_share, largest
from dare.nnslicer import slice_model
from train.shared.backend import keras, ops
from train.shared.flags import UserError

layers = keras.layers


def test_largest_breaks_ties_by_index():
    values = np.array([[1.0, 2, 2, 0, 2]])
    assert largest(values, 2).tolist() == [[False, True, True, False, False]]
    assert largest(values, 4).tolist() == [[True, True, True, False, True]]


def test_shares_as_they_are_written():
    assert ceil_share(0.05, 20) == 1 and ceil_share(0.07, 100) == 7 and ceil_share(0.95, 9) == 9


def test_uint8_and_float_pixels_are_the_same(classifier):
    x, y = patterns(40)
    one, other = (slice_model(classifier, images, y, 0.5) for images in (x, x.astype("f4") / 255))
    for name in one:
        np.testing.assert_array_equal(one[name].mask, other[name].mask)


@pytest.mark.parametrize(
    ("kind", "shape", "layer"),
    [
        ("Conv1D", (12, 12), layers.Conv1D(2, 3, name="it")),
        ("Conv3D", (3, 4, 12, 1), layers.Conv3D(2, 3, name="it")),
        ("SpectralNormalization", (12, 12, 1), layers.SpectralNormalization(layers.Dense(2))),
        ("Average", (12, 12, 1), lambda x: ops.average(x, axis=1)),  # no layer, and a mean
    ],
)
def test_kinds_of_layers_that_are_refused(kind, shape, layer):
    x, y = patterns(8)
    inputs = keras.Input((12, 12, 1))
    end = layers.Flatten()(layer(layers.Reshape(shape)(inputs)))
    with pytest.raises(UserError, match=rf"layer \w+, a {kind}: it handles Dense, Conv2D, "):
        slice_model(keras.Model(inputs, layers.Dense(4)(end)), x, y, 0.5)


def test_refuses_what_it_cannot_slice(classifier):
    x, y = patterns(40)
    inputs = keras.Input((12, 12, 1))
    end = [layers.Flatten(), layers.Dense(4)]
    with pytest.raises(UserError, match="layer last: it is not channels last"):
        last = layers.MaxPooling2D(1, data_format="channels_first", name="last")
        slice_model(keras.Sequential([inputs, last, *end]), x, y, 0.5)
    with pytest.raises(UserError, match="shared: it is used twice"):  # one kernel, two masks
        shared = layers.Conv2D(1, 3, padding="same", name="shared")
        first, second = (keras.Sequential([keras.Input((12, 12, 1)), shared]) for _ in range(2))
        slice_model(keras.Sequential([inputs, first, second, *end]), x, y, 0.5)
    with pytest.raises(UserError, match="with one input and one output"):
        other = keras.Input((12, 12, 1))
        both = layers.Dense(4)(layers.Flatten()(layers.Add()([inputs, other])))
        slice_model(keras.Model([inputs, other], both), x, y, 0.5)
    with pytest.raises(UserError, match="found no dense or convolutional layer"):
        slice_model(keras.Sequential([inputs, layers.Flatten()]), x, y, 0.5)
    with pytest.raises(UserError, match="images of all 4 classes"):
        slice_model(classifier, x[y > 0], y[y > 0], 0.5)
    for per in (0, 1.5, float("nan")):
        with pytest.raises(UserError, match="per is"):
            slice_model(classifier, x, y, per)
