"""The attacks: as good as the literal searches of Foolbox 2.3.0 and as Foolbox 3's own."""

import foolbox
import numpy as np
import pytest
from attack_cases import by_foolbox, size

from adv import ATTACKS
from adv.attacks import attack, norms
from adv.attacks.classifier import BatchedModel
from adv.attacks.losses import log_odds
from train.shared.backend import keras
from train.shared.flags import UserError
from train.utils import predict

pytest_plugins = ["attack_cases"]


class Foolbox2:
    """The searches of Foolbox 2.3.0 in plain words, for one image, one step at a time."""

    def __init__(self, name, batched, image, label):
        self.name, self.batched = name, batched
        self.x, self.y = image, label
        self.best, self.success = image, False

    def wrong(self, candidate):
        return self.batched.logits(candidate).argmax() != self.y[0]

    def run(self):
        self.fgsm() if self.name == "fgsm" else self.search()
        return self.best, self.success

    def fgsm(self):
        sign = np.sign(self.batched.gradient(self.x, self.y, log_odds)[1])
        sizes = np.linspace(0, 1, 1001)[1:]
        for _ in range(2):
            tries = [np.clip(self.x + np.float32(s) * sign, 0, 1) for s in sizes]
            hit = next((k for k, candidate in enumerate(tries) if self.wrong(candidate)), None)
            if hit is None:
                return
            self.best = tries[hit]
            self.success = True
            if hit >= 20 or len(sizes) == 20:
                return
            sizes = np.linspace(0, sizes[hit], 21)[1:]

    def search(self):
        low, high = 0.0, 0.3
        for _ in range(20):
            if self.attempt(high):
                break
            high *= 1.5
        else:
            return
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if self.attempt(middle) else (middle, high)

    def attempt(self, epsilon):
        steps, share = (10, 1 / 6) if self.name == "bim" else (40, 1 / 30)
        current = self.x
        for _ in range(steps):
            gradient = self.batched.gradient(current, self.y, log_odds)[1]
            if self.name == "pgd":
                change = current + share * epsilon * np.sign(gradient) - self.x
                change = np.clip(change, -epsilon, epsilon)
            else:
                gradient = gradient / max(np.abs(gradient).mean(), 1e-12)
                change = current + share * epsilon * gradient - self.x
                change = change * min(1, epsilon / max(np.abs(change).mean(), 1e-12))
            current = np.clip(self.x + change, 0, 1).astype("float32")
            if self.wrong(current):
                self.keep(current)
                return True
        return False

    def keep(self, candidate):
        new_size = size(self.name, candidate - self.x)[0]
        best_size = size(self.name, self.best - self.x)[0]
        if not self.success or new_size < best_size:
            self.best = candidate
            self.success = True


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_no_worse_than_the_search_of_foolbox_2(subject, name):
    _, x, y, batched = subject
    n = 4 if name == "pgd" else 10
    x, y = x[:n], y[:n]
    adversarial, success = attack(name, batched, x, y)
    runs = [Foolbox2(name, batched, x[i : i + 1], y[i : i + 1]).run() for i in range(len(x))]
    theirs = np.concatenate([images for images, _ in runs])
    hit = np.array([has_succeeded for _, has_succeeded in runs])
    assert success.sum() >= hit.sum() > 0
    both = success & hit
    ratio = size(name, adversarial - x)[both].mean() / size(name, theirs - x)[both].mean()
    assert 0.97 <= ratio <= 1.03


def test_cw_with_few_steps_is_no_worse_than_foolbox_at_its_best_step_size(subject):
    _, x, y, batched = subject
    x, y = x[:24], y[:24]
    adversarial, success = attack("cw", batched, x, y, steps=30)
    l2 = norms(adversarial - x)["l2"]
    for stepsize in (5e-3, 1e-2, 2e-2, 5e-2):
        settings = {"stepsize": stepsize, "initial_const": 1e-2}
        make = foolbox.attacks.L2CarliniWagnerAttack(5, 30, **settings)
        theirs, hit = (a[0] for a in by_foolbox(make, batched, x, y, [None]))
        both = success & hit
        assert success.sum() >= hit.sum() and both.any()
        assert l2[both].mean() <= 1.05 * norms(theirs - x)["l2"][both].mean()


def test_cw_with_all_its_steps_is_no_worse(subject):
    _, x, y, batched = subject
    few, success = attack("cw", batched, x[:12], y[:12], steps=60)
    all_steps, succeeds = attack("cw", batched, x[:12], y[:12])
    assert success.all() and succeeds.all()
    sizes = (norms(adversarial - x[:12])["l2"].mean() for adversarial in (all_steps, few))
    assert next(sizes) <= 1.02 * next(sizes)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_attacks_return(subject, name):
    model, x, y, batched = subject
    wrong = (y[:1] + 1) % 4
    labels = np.concatenate([wrong, y[1:10]])
    adversarial, success = attack(name, model, x[:10], labels, steps=60)
    assert adversarial.dtype == np.float32 and adversarial.shape == x[:10].shape
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    np.testing.assert_array_equal(adversarial[0], x[0])  # wrong from the start: comes back as it is
    assert success[0] and success.sum() > 5
    np.testing.assert_array_equal(predict(model, adversarial).argmax(axis=1) != labels, success)
    np.testing.assert_array_equal(adversarial[~success], x[:10][~success])
    again, _ = attack(name, batched, x[:10], labels, steps=60)
    np.testing.assert_array_equal(adversarial, again)


def constant_logits(value):
    """A classifier whose logits are all `value` for every image."""
    model = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4))
    model.layers[-1].set_weights([np.full((144, 4), 0 * value), np.full(4, value)])
    return BatchedModel.of(model)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_end_without_a_gradient_and_on_nan(subject, name):
    """The predicted class is 0 all the time."""
    x = subject[1][:10]
    with pytest.raises(UserError, match="NaN or infinite"):
        attack(name, constant_logits(np.nan), x, np.zeros(10, int), steps=20)
    batched = constant_logits(0.0)
    adversarial, success = attack(name, batched, x, np.zeros(10, int), steps=20)
    assert not success.any()
    np.testing.assert_array_equal(adversarial, x)
    if name != "cw":
        assert batched.gradients <= 3 * len(x)  # they give up at once


NAN = np.full((1, 12, 12, 1), np.nan)
REFUSED = {"name": "deepfool"}, {"mode": "fast"}, {"mode": "fixed"}, {"epsilons": 0.1}, {"x": NAN}


@pytest.mark.parametrize("bad", REFUSED, ids=str)
def test_refusals(subject, bad):
    _, x, y, batched = subject
    with pytest.raises(UserError):
        attack(**{"name": "fgsm", "model": batched, "x": x[:1], "y": y[:1]} | bad)
