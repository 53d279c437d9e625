"""JSMA, followed step by step."""

import eagerpy as ep
import foolbox
import numpy as np
import pytest
from attack_cases import by_foolbox

from adv.attacks import attack, norms
from adv.attacks.classifier import StartingPoint
from adv.attacks.losses import chosen_logit
from adv.attacks.saliency_map import SaliencyMapAttack, jsma

pytest_plugins = ["attack_cases"]


def definition_of_jsma(batched, image, target, theta, max_changes, steps):
    """One feature at a time: the largest gradient of the target's logit among those that can move.

    Returns the flat image and whether it is classified as the target.
    """
    x = image.ravel().copy()
    times = np.zeros(image.size, int)
    for _ in range(steps):
        z, gradient = batched.gradient(x.reshape(image.shape), target, chosen_logit)
        gradient = gradient.ravel()
        if z.argmax() == target[0]:
            return x, True
        room = np.where(gradient > 0, 1 - x, x)
        movable = (times < max_changes) & (room > 0)
        feature = np.where(movable, np.abs(gradient), -1).argmax()
        x[feature] = np.clip(x[feature] + theta * np.sign(gradient[feature]), 0, 1)
        times[feature] = max_changes if x[feature] in (0, 1) else times[feature] + 1
    return x, batched.logits(x.reshape(image.shape)).argmax() == target[0]


def test_jsma_changes_the_most_salient_feature(subject):
    """With a gradient for every change, step by step against the definition."""
    _, x, y, batched = subject
    target = (y[:6] + 1) % 4
    successes = 0
    settings = {"theta": 0.2, "steps": 40}
    make = SaliencyMapAttack(max_perturbations_per_pixel=3, block=0, **settings)
    for image, wanted in zip(x[:6, None], target[:, None], strict=True):
        expected, hit = definition_of_jsma(batched, image, wanted, max_changes=3, **settings)
        criterion = foolbox.criteria.TargetedMisclassification(ep.from_numpy(batched.like, wanted))
        inputs = ep.from_numpy(batched.like, image).raw
        adversarial, _, success = make(batched.fmodel, inputs, criterion, epsilons=None)
        assert ep.astensor(success).numpy()[0] == hit
        expected = expected if hit else image.ravel()
        np.testing.assert_allclose(ep.astensor(adversarial).numpy().ravel(), expected, atol=1e-6)
        successes += hit
    assert successes >= 3


def test_jsma_in_blocks_is_no_worse(subject):
    """Against a gradient for every change, from the same images to the same targets."""
    _, x, y, batched = subject
    start = StartingPoint.at(batched, x, y)

    def run(**settings):
        gradients = batched.gradients
        adversarial, success = jsma(start, **settings)
        return adversarial, success, batched.gradients - gradients

    exact, hit, exact_gradients = run(block=0)
    adversarial, success, gradients = run()
    assert success.sum() >= hit.sum() > len(x) / 2
    assert gradients < exact_gradients
    sizes, exact_sizes = (norms((images - x)[success & hit]) for images in (adversarial, exact))
    for norm in ("l0", "l2"):
        assert sizes[norm].mean() <= 1.10 * exact_sizes[norm].mean()


def test_jsma_as_a_foolbox_attack(subject):
    _, x, y, batched = subject
    images, success = by_foolbox(SaliencyMapAttack(batch=64), batched, x, y, [None, 5, 1000])
    adversarial, hit = attack("jsma", batched, x, y)
    np.testing.assert_array_equal(success[0], hit)
    np.testing.assert_array_equal(images[0][hit], adversarial[hit])
    np.testing.assert_array_equal(success[2], hit)
    np.testing.assert_array_equal(success[1], hit & (norms(adversarial - x)["l0"] <= 5))
    assert norms(images[1] - x)["l0"].max() <= 5
    assert np.round(np.abs(images[0] - x) / 0.1, 3).max() <= 7
    inputs, labels = (ep.from_numpy(batched.like, a).raw for a in (x, y))
    scaled = batched.fmodel.transform_bounds((0, 255))
    raw, _, hit_scaled = SaliencyMapAttack(batch=64)(scaled, 255 * inputs, labels, epsilons=None)
    assert type(raw) is type(inputs) and (ep.astensor(hit_scaled).numpy() == hit).mean() > 0.95
    distance = np.abs(ep.astensor(raw).numpy() / 255 - images[0]).max(axis=(1, 2, 3))
    assert (distance < 1e-4).mean() > 0.95
    with pytest.raises(ValueError, match="criterion"):
        either = foolbox.criteria.Misclassification(labels)
        SaliencyMapAttack()(batched.fmodel, inputs, either & either, epsilons=None)
