"""Layers that train faster on a processor are Keras's own, but for their speed."""

import numpy as np
import pytest

from train.fused_batch_norm import FusedBatchNormalization, can_be_fused
from train.shared.backend import keras
from train.train import training_copy

KINDS = keras.layers.BatchNormalization, FusedBatchNormalization

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
    x = np.random.default_rng(0).normal(1, 3, (5, 4, 3, 6))
    own, ours = (normalised(kind, x, "float32", training, trainable) for kind in KINDS)
    for expected, found in zip(own, ours, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)


@on_tensorflow
def test_fused_batch_normalisation_in_bfloat16():
    """As near to the results in float32 as Keras's own in bfloat16 are."""
    x = np.random.default_rng(0).normal(1, 3, (64, 8, 8, 16))
    exact = normalised(KINDS[0], x, "float32", True)
    own, ours = (normalised(kind, x, "bfloat16", True) for kind in KINDS)
    for true, expected, found in zip(exact, own, ours, strict=True):
        error, allowed = (np.abs(result - true).mean() for result in (found, expected))
        assert error < 1.1 * allowed + 1e-5 * np.abs(true).mean()


@on_tensorflow
def test_what_can_be_fused():
    def accepted(shape, **settings):
        layer = keras.layers.BatchNormalization(**settings)
        layer(keras.Input(shape))
        return can_be_fused(layer)

    assert accepted((4, 3, 6), axis=3) and accepted((4, 3, 6), dtype="mixed_bfloat16")
    others = {"axis": 1, "scale": False, "center": False, "renorm": True, "synchronized": True}
    for setting in [*others.items(), ("dtype", "bfloat16"), ("dtype", "float64")]:
        assert not accepted((4, 3, 6), **dict([setting]))
    assert not accepted((6,))


@on_tensorflow
def test_masked_pixels_are_left_out():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(1, 3, (5, 4, 3, 6)).astype("float32"), rng.random((5, 4, 3)) < 0.5
    own, ours = (kind()(x, training=True, mask=mask) for kind in KINDS)
    np.testing.assert_allclose(ours, own, rtol=1e-6)


def test_no_layer_changes_on_an_accelerator(classifier, monkeypatch):
    monkeypatch.setattr("train.fused_batch_norm.accelerators", lambda: ["GPU:0"])
    pairs = zip(classifier.layers, training_copy(classifier, "float32").layers, strict=True)
    assert all(type(own) is type(ours) for own, ours in pairs)
