"""Layers that train faster on a processor are Keras's own, but for their speed."""

import numpy as np
import pytest

from train.models import build_model
from train.shared.backend import keras
from train.train import training_copy
from train.utils import set_seed

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="kernels of TensorFlow"
)


def normalised(kind, x, dtype, training, trainable=True):
    """Outputs, gradients of x, gamma and beta, and statistics of a batch normalisation."""
    import tensorflow as tf

    layer = kind(momentum=0.9, dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 2, x.shape[-1]) for _ in range(4)])
    layer.trainable = trainable
    x = tf.constant(x, dtype)
    sources = [x, layer.gamma.value, layer.beta.value]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 3)
    found = [outputs, *tape.gradient(loss, sources), layer.moving_mean, layer.moving_variance]
    return [np.asarray(tf.cast(tf.convert_to_tensor(value), "float32")) for value in found]


@on_tensorflow
@pytest.mark.parametrize("training, trainable", [(True, True), (True, False), (False, True)])
def test_fused_batch_normalisation(training, trainable):
    """A frozen layer neither normalises by the batch nor follows it."""
    from train.fused_batch_norm import FusedBatchNormalization

    x = np.random.default_rng(0).normal(1, 3, (5, 4, 3, 6))
    own, ours = (
        normalised(kind, x, "float32", training, trainable)
        for kind in (keras.layers.BatchNormalization, FusedBatchNormalization)
    )
    for expected, found in zip(own, ours, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)


@on_tensorflow
def test_fused_batch_normalisation_in_bfloat16():
    """As near to the results in float32 as Keras's own in bfloat16 are."""
    from train.fused_batch_norm import FusedBatchNormalization

    x = np.random.default_rng(0).normal(1, 3, (64, 8, 8, 16))
    kinds = keras.layers.BatchNormalization, FusedBatchNormalization
    exact = normalised(kinds[0], x, "float32", True)
    own, ours = (normalised(kind, x, "bfloat16", True) for kind in kinds)
    for true, expected, found in zip(exact, own, ours, strict=True):
        error, allowed = (np.abs(result - true).mean() for result in (found, expected))
        assert error < 1.1 * allowed + 1e-5 * np.abs(true).mean()


@on_tensorflow
def test_what_can_be_fused():
    from train.fused_batch_norm import FusedBatchNormalization, can_be_fused

    def accepted(shape, kind=keras.layers.BatchNormalization, **settings):
        layer = kind(**settings)
        layer(keras.Input(shape))
        return can_be_fused(layer)

    assert accepted((4, 3, 6)) and accepted((4, 3, 6), axis=3)
    assert not accepted((6,)) and not accepted((4, 3, 6), axis=1)
    assert not accepted((4, 3, 6), kind=FusedBatchNormalization)
    for setting in {"scale": False}, {"center": False}, {"renorm": True}, {"synchronized": True}:
        assert not accepted((4, 3, 6), **setting)
    assert accepted((4, 3, 6), dtype="mixed_bfloat16")
    assert not accepted((4, 3, 6), dtype="float64") and not accepted((4, 3, 6), dtype="bfloat16")


@on_tensorflow
def test_masked_pixels_are_left_out():
    from train.fused_batch_norm import FusedBatchNormalization

    rng = np.random.default_rng(0)
    x, mask = rng.normal(1, 3, (5, 4, 3, 6)).astype("float32"), rng.random((5, 4, 3)) < 0.5
    own, ours = (
        kind()(x, training=True, mask=mask)
        for kind in (keras.layers.BatchNormalization, FusedBatchNormalization)
    )
    np.testing.assert_allclose(ours, own, rtol=1e-6)


@on_tensorflow
def test_a_compiled_training_ends_the_same(monkeypatch):
    """Three steps of a network, in which TensorFlow may join the layer to its neighbours."""
    x = np.random.default_rng(0).random((48, 12, 12, 1)).astype("float32")
    y, ends = np.arange(48) % 4, []
    for is_faster in True, False:
        if not is_faster:
            monkeypatch.setattr("train.train.faster_class", type)
        set_seed(0)
        network = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Conv2D(6, 3)])
        network.add(keras.layers.BatchNormalization(name="norm"))
        for layer in keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(4, "softmax"):
            network.add(layer)
        network = training_copy(network, "float32")
        kind = type(network.get_layer("norm")).__name__
        assert (kind == "FusedBatchNormalization") == is_faster
        network.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        network.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        ends.append(network.get_weights())
    for ours, own in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-3, atol=1e-5)


def test_where_batch_normalisation_is_faster(monkeypatch):
    monkeypatch.setattr("train.fused_batch_norm.accelerators", list)
    network = build_model("vgg16", (32, 32, 3), 10)

    def changed():
        pairs = zip(network.layers, training_copy(network, "float32").layers, strict=True)
        return {own.name for own, ours in pairs if type(own) is not type(ours)}

    norms = {layer.name for layer in network.layers if layer.name.endswith("_bn")}
    assert changed() == (norms if keras.backend.backend() == "tensorflow" else set())
    monkeypatch.setattr("train.fused_batch_norm.accelerators", lambda: ["GPU:0"])
    assert changed() == set()
