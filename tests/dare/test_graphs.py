"""Slicing and transforming graphs of layers."""

import math

import numpy as np
import pytest
from conftest import patterns
from naive_slicer import Naive, values

from dare.contributions import kernel_of, key_neurons_of
from dare.dare import synchronise, transform
from dare.nnslicer import slice_model
from train.shared.backend import keras, ops
from train.shared.flags import UserError
from train.shared.graph import calls_of, layers_by_path, up_to
from train.utils import predict, set_seed

layers = keras.layers


# ---------------------------------------------------------------------------------- the graphs


def conv(filters, size=3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", **{"activation": "elu"} | kwargs)


def chain(x):
    x = layers.RandomContrast(0.2)(layers.RandomRotation(0.1)(layers.RandomFlip()(x)))
    x = layers.BatchNormalization()(conv(5, activation=None)(layers.RandomCrop(12, 12)(x)))
    x = layers.Conv2D(6, 2, activation="relu")(layers.MaxPooling2D(4)(layers.ReLU()(x)))
    return layers.GaussianDropout(0.1)(layers.Dropout(0.5)(x))


def residual(x):
    x = conv(6)(x)
    y = layers.BatchNormalization()(conv(6, activation=None)(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = conv(8, activation=None)(x)
    return layers.Add()([conv(8, 1, activation=None)(x), y])


def concatenated(x):
    """Concatenations of channels and of positions, and one activation for two branches."""
    relu = layers.ReLU()
    x = conv(5)(x)
    x = layers.Concatenate()([x, conv(3)(x), layers.UnitNormalization()(conv(4)(x))])
    return layers.Concatenate(axis=1)([relu(conv(4)(x)), relu(conv(4)(x))])


def gate(x):
    x = conv(6)(x)
    squeezed = layers.Dense(3, activation="tanh")(layers.GlobalAveragePooling2D()(x))
    excited = layers.Dense(6, activation="sigmoid")(squeezed)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(excited)])
    return layers.Multiply()([x, conv(1, activation="sigmoid")(x)])


def operators(x):
    x = conv(5)(x)
    return 1.0 - (ops.relu(conv(5)(x) + x) * 2.0 - conv(5)(x)) / 3.0


def kernels(x):
    x = conv(8, groups=2)(conv(6)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x)
    return layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu")(x)


def moved(x):
    x = layers.Cropping2D((3, 2))(conv(6)(x))
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x))
    x = layers.Permute((2, 3, 1))(x)  # now a row is a channel
    x = layers.Reshape((4, 6, 8))(layers.Dense(4, activation="relu")(x))
    return layers.Reshape((2, 2, 6))(layers.Dense(24, activation="relu")(layers.Flatten()(x)))


def nested(x):
    inputs = keras.Input((12, 12, 1))
    features = residual(inputs)
    backbone = keras.Model(inputs, features, name="backbone")
    head = keras.Sequential([conv(5, name="conv"), layers.MaxPooling2D()], name="head")
    return head(backbone(x, training=False))


GRAPHS = (chain, residual, concatenated, gate, operators, kernels, moved, nested)


def model_of(graph, seed=3):
    set_seed(seed)
    inputs = keras.Input((12, 12, 1))
    x = layers.Flatten()(layers.AveragePooling2D(2)(graph(inputs)))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="predictions")(x))


@pytest.mark.parametrize(
    ("graph", "per"), [(graph, 0.4) for graph in GRAPHS] + [(chain, per) for per in (0.05, 1.0)]
)
def test_slices_of_graphs_against_loops(graph, per):
    x, y = patterns(40)
    x = x.astype("float32") / 255
    model = model_of(graph)
    found, expected = slice_model(model, x, y, per), Naive(model, x, y, per).slices
    assert list(found) == list(reversed(expected))
    for path, (mask, class_mask, contribution, relative) in expected.items():
        sliced = found[path]
        np.testing.assert_allclose(sliced.contribution, contribution, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sliced.relative_activation, relative, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(sliced.class_mask, class_mask)
        np.testing.assert_array_equal(sliced.mask, mask)
        assert (mask.sum(axis=0) == math.ceil(per * mask.shape[0])).all()


# ------------------------------------------------------------------ the regression model of a graph


@pytest.fixture(scope="module")
def transfer():
    """A backbone and a head with layers of the same name, and a slice of the whole."""
    set_seed(1)
    inputs = keras.Input((12, 12, 1))
    x = conv(6, name="conv1")(inputs)
    y = layers.BatchNormalization(name="bn")(conv(6, name="conv2", activation=None)(x))
    added = layers.Add(name="add")([x, y])
    features = conv(7, name="conv3")(layers.ReLU(name="relu")(added))
    backbone = keras.Model(inputs, layers.SeparableConv2D(5, 3, name="last")(features))
    backbone.name = "backbone"
    outer = keras.Input((12, 12, 1))
    x = conv(4, name="conv1")(backbone(outer, training=False))
    model = keras.Model(
        outer, layers.Dense(4, name="predictions")(layers.Flatten(name="flatten")(x))
    )
    x, y = patterns(80)
    x = x.astype("float32") / 255
    return model, slice_model(model, x, y, 0.5), x


@pytest.mark.parametrize("layer", ["backbone/relu", "backbone__conv3", "backbone/last"])
def test_the_regression_model_of_a_graph(transfer, layer):
    model, slices, x = transfer
    masks = {path: sliced.mask for path, sliced in slices.items()}
    regression = transform(model, layer, masks)
    expected = predict(up_to(model, layer), x)
    np.testing.assert_allclose(predict(regression, x), expected, rtol=1e-5, atol=1e-6)
    before = {path: layer.get_weights() for path, layer in layers_by_path(model).items()}
    regression.compile(keras.optimizers.SGD(1.0), "mse")
    regression.fit(x, expected + 1, verbose=0)
    synchronise(regression, model)
    found, expected = predict(regression, x), predict(up_to(model, layer), x)
    size = np.abs(expected).max()  # a step of rate 1 makes large activations
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * size)
    reached = {step.path for step in calls_of(model)}
    reached = {path for path in reached if path.startswith("backbone/")} - {
        "backbone/last" if layer != "backbone/last" else "",
        "backbone/conv3" if layer == "backbone/relu" else "",
    }
    for path, weights in before.items():
        after = layers_by_path(model)[path].get_weights()
        changes = [a != b for a, b in zip(weights, after, strict=True)]
        assert any(change.any() for change in changes) == (path in reached and bool(weights)), path
        if path in masks and path in reached:
            kernel = changes[1 if path == "backbone/last" else 0]
            outside = ~masks[path]
            assert kernel[..., ~outside].any() and not kernel[..., outside].any()
    for path, weights in before.items():
        layers_by_path(model)[path].set_weights(weights)


def test_masks_of_other_kernels():
    """The mask of a grouped, depthwise or separable kernel fits it, and binds it."""
    x, y = patterns(40)
    x = x.astype("float32") / 255
    model = model_of(kernels)
    slices = slice_model(model, x, y, 0.3)
    regression = transform(model, "predictions", {k: v.mask for k, v in slices.items()})
    regression.compile(keras.optimizers.SGD(1.0), "mse")
    layer_of = layers_by_path(regression)
    before = {path: values(kernel_of(layer_of[path])) for path in slices}
    regression.fit(x, np.eye(4)[y], verbose=0)
    for path, sliced in slices.items():
        changed = values(kernel_of(layer_of[path])) != before[path]
        assert changed.any()
        changed = changed.reshape(*changed.shape[:-2], *sliced.mask.shape)
        assert not changed[..., ~sliced.mask].any(), path


def test_no_penalties_are_kept():
    """And a mask must be for a layer."""
    inputs = keras.Input((12, 12, 1))
    penalised = layers.Conv2D(6, 3, kernel_regularizer="l2", activity_regularizer="l2", name="conv")
    wrapped = layers.SpectralNormalization(penalised, name="wrapped")
    x = layers.ActivityRegularization(l2=1.0)(wrapped(inputs))
    backbone = keras.Model(inputs, layers.Multiply()([x, x]), name="backbone")
    model = keras.Sequential([keras.Input((12, 12, 1)), backbone, layers.Flatten()])
    regression = transform(model, "backbone/wrapped")
    assert len(regression.trainable_variables) == 2 and not regression.losses
    with pytest.raises(UserError, match="a mask for conv9, which is no layer"):
        transform(model, "backbone/wrapped", {"conv9": np.ones((1, 6), bool)})


def test_key_neurons_of_graphs(transfer):
    """CONTRIB of a layer without synapses is what it passes back, as in the naive slicer."""
    model, slices, x = transfer
    _, y = patterns(80)
    naive = Naive(model, x, y, 0.5)
    for step in naive.calls:
        if step.path in ("backbone/bn", "backbone/add", "backbone/relu", "backbone/last"):
            expected = naive.of(step.output)
            best = np.argsort(-expected, axis=1, kind="stable")[
                :, : math.ceil(expected.shape[1] / 2)
            ]
            found = key_neurons_of(model, step.path, slices, 0.5)
            for is_key, neurons in zip(found, best, strict=True):
                assert set(np.flatnonzero(is_key)) == set(neurons), step.path
    with pytest.raises(UserError, match="has no neurons of its own"):
        key_neurons_of(model, "flatten", slices, 0.5)


def test_key_neurons_of_a_channel_with_one_position():
    x, y = patterns(40)
    pool = layers.GlobalMaxPooling2D(keepdims=True)
    chain = [conv(6, name="conv"), pool, layers.Flatten(name="flatten"), layers.Dense(4)]
    model = keras.Sequential([keras.Input((12, 12, 1)), *chain])
    slices = slice_model(model, x, y, 0.5)
    found = [key_neurons_of(model, layer, slices, 0.5) for layer in ("conv", "flatten")]
    np.testing.assert_array_equal(*found)


def test_layers_of_one_name_are_told_apart_by_their_paths(transfer):
    model, *_ = transfer
    assert up_to(model, "conv1").output_shape[-1] == 4
    assert up_to(model, "backbone/conv1").output_shape[-1] == 6
