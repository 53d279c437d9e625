"""Mode fixed: attacks at given epsilons."""

import numpy as np
import pytest
from attack_cases import size

from adv import ATTACKS
from adv.attacks import attack, norms
from adv.attacks.losses import log_odds
from train.utils import predict

pytest_plugins = ["attack_cases"]
EPSILON = {"fgsm": 0.15, "bim": 0.15, "pgd": 0.15, "cw": 1.0, "jsma": 20}


@pytest.fixture(scope="module")
def fixed_mode(subject):
    """{attack: (adversarial images, success)} of mode fixed on 40 images."""
    _, x, y, batched = subject
    return {
        name: attack(name, batched, x[:40], y[:40], "fixed", epsilon, steps=40)
        for name, epsilon in EPSILON.items()
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_fixed_mode_stays_within_epsilon(subject, fixed_mode, name):
    model, x, y, _ = subject
    x, y = x[:40], y[:40]
    adversarial, success = fixed_mode[name]
    norm = {"cw": "l2", "jsma": "l0"}.get(name, "linf")
    assert norms(adversarial - x)[norm].max() <= EPSILON[name] + 1e-6
    np.testing.assert_array_equal(predict(model, adversarial).argmax(axis=1) != y, success)


def test_fixed_fgsm_is_one_step_of_the_gradients_sign_and_bim_breaks_more(subject, fixed_mode):
    _, x, y, batched = subject
    x, y = x[:40], y[:40]
    adversarial, success = fixed_mode["fgsm"]
    step = np.clip(x + np.float32(0.15) * np.sign(batched.gradient(x, y, log_odds)[1]), 0, 1)
    wrong = batched.logits(step).argmax(axis=1) != y
    assert 0 < wrong.sum() < len(x)
    np.testing.assert_array_equal(success, wrong)
    np.testing.assert_allclose(adversarial[wrong], step[wrong], atol=1e-6)
    _, bim = fixed_mode["bim"]
    assert bim[wrong].mean() >= 0.9 and bim.sum() > wrong.sum()


@pytest.mark.parametrize("name", ["pgd", "cw", "jsma"])
def test_fixed_mode_breaks_what_a_smaller_perturbation_breaks(subject, fixed_mode, name):
    _, x, y, batched = subject
    x, y = x[:40], y[:40]
    steps = None if name == "pgd" else 40
    adversarial, success = attack(name, batched, x, y, steps=steps)
    breakable = success & (size(name, adversarial - x) <= EPSILON[name])
    assert 0 < breakable.sum()
    if name == "pgd":  # which starts at random there
        assert fixed_mode[name][1][breakable].mean() >= 0.9
    else:
        np.testing.assert_array_equal(fixed_mode[name][1], breakable)
