"""The classifier for Foolbox: logits, gradients and batches."""

import eagerpy as ep
import numpy as np
import pytest
from attack_cases import size

import adv.attacks.classifier
from adv.attacks import attack
from adv.attacks.classifier import BatchedModel, attack_batch_size, in_full_batches, logits_model
from adv.attacks.losses import chosen_logit, log_odds, margin, margin_loss
from train.models import build_model
from train.shared.backend import keras, ops
from train.utils import predict

pytest_plugins = ["attack_cases"]
layers = keras.layers


def test_logits_and_gradients(subject):
    model, x, y, batched = subject
    z = batched.logits(x)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, predict(model, x), rtol=1e-4, atol=1e-6)
    direction = batched.gradient(x[:4], y[:4], log_odds)[1]
    labels = ep.from_numpy(batched.like, y[:4])
    _, theirs = ep.value_and_grad(
        lambda inputs: ep.crossentropy(batched.fmodel(inputs), labels).sum(),
        ep.from_numpy(batched.like, x[:4]),
    )
    for mine, other in zip(direction, theirs.numpy(), strict=True):
        np.testing.assert_allclose(
            mine / np.abs(mine).max(), other / np.abs(other).max(), atol=1e-3
        )


@pytest.mark.parametrize("loss", [chosen_logit, margin_loss, log_odds])
def test_gradients_are_slopes(subject, loss):
    """Of most images: between the two points that are compared some ReLU may bend."""
    _, x, y, batched = subject

    def value(image, label):
        logits = ep.from_numpy(batched.like, batched.logits(image))
        return loss(logits, ep.from_numpy(batched.like, label)).item()

    ratios = []
    for i in range(11):
        image = x[i : i + 1]
        label = y[i : i + 1]
        _, gradient = batched.gradient(image, label, loss)
        feature = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        below = image.copy()
        above = image.copy()
        below[feature] -= 5e-3
        above[feature] += 5e-3
        slope = (value(above, label) - value(below, label)) / 1e-2
        ratios.append(slope / gradient[feature])
    assert np.median(ratios) == pytest.approx(1, rel=0.01)


def test_margin():
    z = np.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    y = np.array([1, 2])
    np.testing.assert_array_equal(margin(z, y), [2, -2])


def test_logits_of_a_separate_softmax(subject):
    x = subject[1][:2]
    flat = [layers.Flatten(), layers.Dense(3), layers.Softmax()]
    twin = keras.Sequential([keras.Input((12, 12, 1)), *flat])
    expected = ops.convert_to_numpy(ops.matmul(x.reshape(2, -1), twin.layers[1].kernel))
    logits = ops.convert_to_numpy(logits_model(twin)(x))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_logits_as_they_are():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    x = np.ones((4, 3), "float32")
    logits, expected = (ops.convert_to_numpy(m(x)) for m in (logits_model(model), model))
    np.testing.assert_array_equal(logits, expected)


def test_batches_stay_full():
    steps_left = np.array([3, 1, 5, 1, 1, 2])
    widths = []

    def step(rows):
        widths.append(len(rows))
        steps_left[rows] -= 1
        return steps_left[rows] == 0

    in_full_batches(6, 3, step)
    assert (steps_left == 0).all() and sum(widths) == 13 and widths[:3] == [3, 3, 3]


@pytest.mark.parametrize("name", ["pgd", "cw"])
def test_progress_counts_images(subject, name):
    """cw's, which takes long, estimates its share before the first image is finished."""
    _, x, y, batched = subject
    calls = []
    attack(name, batched, x[:20], y[:20], steps=20, progress=calls.append)
    assert sum(calls) == 20 and min(calls) >= 0
    steps_until_5 = np.argmax(np.cumsum(calls) >= 5)
    assert 0 < steps_until_5 < (60 if name == "cw" else len(calls))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw", "jsma"])
def test_samples_do_not_depend_on_the_batch(subject, name):
    _, x, y, batched = subject
    steps = {"cw": 10, "jsma": 100}.get(name)
    small = BatchedModel(batched.fmodel, batch=12)
    large_batches, hit = attack(name, batched, x[:30], y[:30], steps=steps)
    small_batches, small_hit = attack(name, small, x[:30], y[:30], steps=steps)
    assert (hit == small_hit).mean() > 0.9
    ratio = size(name, large_batches - x[:30]) / size(name, small_batches - x[:30])
    difference = np.abs(ratio - 1)
    assert np.quantile(difference[hit & small_hit], 0.9) < 0.02  # sums in another order


def test_batches_fill_an_accelerator(monkeypatch):
    monkeypatch.setattr(adv.attacks.classifier, "accelerators", lambda: [])
    vgg, alexnet = (build_model(name, (32, 32, 3), 10) for name in ("vgg16", "alexnet"))
    assert attack_batch_size(vgg) == attack_batch_size(alexnet) == 128
    monkeypatch.setattr(adv.attacks.classifier, "accelerators", lambda: ["gpu:0"])
    assert 128 < attack_batch_size(vgg) <= attack_batch_size(alexnet) <= 1024
    assert attack_batch_size(alexnet, memory=1e8) < 128
