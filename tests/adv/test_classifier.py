"""The classifier for Foolbox: logits, gradients and batches."""

import eagerpy as ep
import numpy as np
import pytest
from attack_cases import size

from adv.attacks import attack
from adv.attacks.classifier import BatchedModel, in_full_batches
from adv.attacks.losses import chosen_logit, log_odds, margin_loss
from train.utils import predict

pytest_plugins = ["attack_cases"]


def test_logits_and_gradients(subject):
    model, x, y, batched = subject
    z = batched.logits(x)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, predict(model, x), rtol=1e-4, atol=1e-6)
    labels = ep.from_numpy(batched.like, y)
    others = np.where(np.eye(4)[y] == 1, -np.inf, z).max(axis=1)
    right = z[np.arange(len(y)), y]
    for loss, expected in (chosen_logit, right), (margin_loss, right - others):
        value = loss(ep.from_numpy(batched.like, z), labels).item()
        assert value == pytest.approx(expected.sum(), rel=1e-4)
    direction = batched.gradient(x[:4], y[:4], log_odds)[1]
    _, theirs = ep.value_and_grad(
        lambda inputs: ep.crossentropy(batched.fmodel(inputs), labels[:4]).sum(),
        ep.from_numpy(batched.like, x[:4]),
    )
    for mine, other in zip(direction, theirs.numpy(), strict=True):
        np.testing.assert_allclose(
            mine / np.abs(mine).max(), other / np.abs(other).max(), atol=1e-3
        )


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
