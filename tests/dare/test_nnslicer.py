"""Shares of synapses, and what the slicer refuses; test_graphs.py tests slices."""

import pytest
from conftest import patterns

from dare.contributions import ceil_share
from dare.nnslicer import slice_model
from train.shared.backend import keras, ops
from train.shared.flags import UserError

layers = keras.layers


def test_shares_as_they_are_written():
    assert ceil_share(0.05, 20) == 1 and ceil_share(0.07, 100) == 7 and ceil_share(0.95, 9) == 9


def model_of(*steps):
    x = inputs = keras.Input((12, 12, 1))
    for step in steps:
        x = step(x)
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


def with_a_shared_kernel():
    shared = layers.Conv2D(1, 3, padding="same", name="shared")
    return model_of(*(keras.Sequential([keras.Input((12, 12, 1)), shared]) for _ in range(2)))


REFUSED = {
    r"layer \w+, a Conv1D: it handles Dense, Conv2D, ": lambda: model_of(
        layers.Reshape((12, 12)), layers.Conv1D(2, 3)
    ),
    # no layer, and a mean
    r"layer \w+, a Average: ": lambda: model_of(lambda x: ops.average(x, axis=1)),
    "layer last: it is not channels last": lambda: model_of(
        layers.MaxPooling2D(1, data_format="channels_first", name="last")
    ),
    "shared: it is used twice": with_a_shared_kernel,  # one kernel, two masks
    "no dense or convolutional layer": lambda: keras.Sequential(
        [keras.Input((12, 12, 1)), layers.Flatten()]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_that_are_refused(message):
    with pytest.raises(UserError, match=message):
        slice_model(REFUSED[message](), *patterns(8), 0.5)


def test_images_and_shares_that_are_refused(classifier):
    x, y = patterns(40)
    with pytest.raises(UserError, match="images of all 4 classes"):
        slice_model(classifier, x[y > 0], y[y > 0], 0.5)
    with pytest.raises(UserError, match="per is nan"):
        slice_model(classifier, x, y, float("nan"))
