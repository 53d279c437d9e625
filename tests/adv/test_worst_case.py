"""The worst case over attacks: closed forms, hidden gradients, unknown images."""

import eagerpy as ep
import numpy as np
import pytest

from adv.attacks.classifier import BatchedModel, foolbox_model
from adv.attacks.rays import Rays
from adv.attacks.worst_case import BROKEN, ROBUST, UNKNOWN, attack_model, worst_of
from train.shared.backend import keras, ops

pytest_plugins = ["attack_cases"]
SHAPE = (6, 6, 1)
EPSILONS = (0.004, 0.01, 0.02, 0.04)


class HiddenGradient(keras.layers.Layer):
    """Rounds pixels to 1/255: nothing changes but the gradient, which is 0 everywhere."""

    def call(self, x):
        return ops.stop_gradient(ops.round(x * 255) / 255) + 0 * x


def linear(scale=1.0, kernel=None, first=()):
    """A linear classifier of two classes; its kernel, (36, 2), is random unless given."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((36, 2)).astype("float32") if kernel is None else kernel
    dense = keras.layers.Dense(2, activation="softmax")
    model = keras.Sequential([keras.Input(SHAPE), *first, keras.layers.Flatten(), dense])
    bias = -0.5 * kernel.sum(axis=0)  # grey is undecided
    dense.set_weights([scale * kernel, scale * bias])
    return model


def linear_images(n=60):
    """Grey images that no perturbation here takes to 0 or 1, labels, a tenth of them wrong, and
    the distance (n,) of every image to the boundary in Linf."""
    rng = np.random.default_rng(1)
    x = (0.5 + 0.08 * rng.standard_normal((n, *SHAPE))).clip(0.3, 0.7).astype("float32")
    kernel = np.random.default_rng(0).standard_normal((36, 2))
    difference = kernel[:, 1] - kernel[:, 0]
    margin = (x.reshape(n, -1) - 0.5) @ difference
    y = (margin > 0).astype(int)
    y[::10] = 1 - y[::10]
    return x, y, np.abs(margin) / np.abs(difference).sum()


def test_an_independent_attack_breaks_hardly_more(subject):
    """A momentum attack on the probabilities' margin, with 60 steps from four starts (Linf)."""
    _, x, y, batched = subject
    x, y, sizes = x[:40], y[:40], (0.02, 0.05, 0.1)
    results = attack_model(batched, x, y, sizes, restarts=1)

    def margin_of_probabilities(z, labels):
        p, right = z.softmax(axis=-1), ep.onehot_like(z, labels)
        # Logarithms, so that saturated images do not vanish.
        others = ((p * (1 - right)).max(axis=-1) + 1e-9).log()
        return (others - ((p * right).sum(axis=-1) + 1e-9).log()).sum()

    rng = np.random.default_rng(0)
    is_broken = np.zeros(len(x), bool)
    for size in sizes:
        for start in range(4):
            moved = np.clip(x + size * start / 3 * rng.choice((-1, 1), x.shape), 0, 1)
            moved, velocity = moved.astype("float32"), np.zeros_like(x)
            for step in range(60):
                z, gradient = batched.gradient(moved, y, margin_of_probabilities)
                is_broken |= z.argmax(axis=1) != y
                scale = np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True) + 1e-12
                velocity = 0.75 * velocity + gradient / scale
                moved = moved + size * 0.5 * (1 - step / 60) * np.sign(velocity)
                moved = np.clip(np.clip(moved, x - size, x + size), 0, 1).astype("float32")
        ours = results["worst", size] == ROBUST
        assert ours.sum() <= (~is_broken).sum() + 2
    assert 3 < is_broken.sum()  # and it is an attack


@pytest.fixture(scope="module")
def plain():
    x, y, distance = linear_images()
    return x, y, distance, attack_model(linear(), x, y, EPSILONS, 2)


def test_linear_classifier_is_as_robust_as_its_margin_says(plain):
    _, y, distance, results = plain
    wrong = np.arange(len(y)) % 10 == 0
    for epsilon in EPSILONS:
        sure = np.abs(distance / epsilon - 1) > 0.01
        expected = np.where(~wrong & (distance > epsilon), ROBUST, BROKEN)
        assert 0.1 < expected.mean() < 0.9 or epsilon == EPSILONS[-1]
        for attack in "fgsm", "pgd", "worst":
            np.testing.assert_array_equal(results[attack, epsilon][sure], expected[sure], attack)


def test_epsilon_0_is_clean_accuracy_and_results_fall_with_epsilon(plain):
    x, y, _, results = plain
    clean = linear().predict(x, verbose=0).argmax(axis=1) == y
    for attack in ("fgsm", "pgd", "rays", "worst"):
        rows = np.stack([results[attack, epsilon] for epsilon in (0, *EPSILONS)])
        np.testing.assert_array_equal(rows[0], clean)
        assert (np.diff(rows.astype(int), axis=0) <= 0).all()
    attacks = [results[attack, 0.02] for attack in ("fgsm", "pgd", "rays")]
    assert (results["worst", 0.02] == np.min(attacks, axis=0)).all()


def test_rays_finds_the_nearest_boundary_of_a_linear_classifier_or_ends_earlier():
    x, y, distance = linear_images()
    right = np.arange(len(y)) % 10 > 0
    model = BatchedModel(foolbox_model(linear()))
    adversarial, success = Rays(model, x[right], y[right]).run()
    assert success.all() and (model.logits(adversarial).argmax(axis=1) != y[right]).all()
    ratio = np.abs(adversarial - x[right]).max(axis=(1, 2, 3)) / distance[right]
    assert ratio.min() > 0.999 and ratio.max() < 1.05
    # It gives up what is out of reach, and stops at what is enough.
    search = Rays(model, x[right], y[right], needed=1e-6)
    search.run()
    assert (search.decisions < Rays.CHECKED + 1 + Rays.BISECTIONS).all()
    search = Rays(model, x[right], y[right], enough=0.1)
    search.run()
    assert (search.size <= 0.1).all() and search.decisions.max() < 100


def test_confident_logits_do_not_make_a_classifier_robust(plain):
    x, y, _, results = plain
    sure = attack_model(linear(scale=3000), x, y, EPSILONS, 2)
    for name in results:
        assert np.mean(sure[name] == BROKEN) >= np.mean(results[name] == BROKEN) - 0.02


def test_hidden_gradients_are_found_out_by_decisions(plain):
    x, y, distance, _ = plain
    hidden = linear(first=[HiddenGradient()])
    results = attack_model(hidden, x, y, EPSILONS, 2)
    right = results["worst", 0] == ROBUST
    assert (results["pgd", 0.01][right] == UNKNOWN).mean() > 0.95  # a random start may break one
    expected = distance < 0.038  # 5% short of 0.04
    assert (results["worst", 0.04][right & expected] == BROKEN).all()
    assert (results["worst", 0.04] != ROBUST).all() and (right & expected).sum() > 30


def test_what_cannot_be_attacked_is_unknown_and_not_robust():
    x, y, _ = linear_images()
    constant = linear(kernel=np.zeros((36, 2), "float32"))
    constant.layers[-1].set_weights([np.zeros((36, 2)), np.array([1.0, 0.0])])
    results = attack_model(constant, x, y, EPSILONS, 1)
    for name, result in results.items():
        unknown = ROBUST if name[1] == 0 else UNKNOWN
        np.testing.assert_array_equal(result, np.where(y == 0, unknown, BROKEN), str(name))


def test_worst_of_several_and_no_right_image():
    results = np.array([[1, 1, 2, 0, 2], [1, 2, 2, 2, 0], [1, 1, 2, 1, 1]])
    assert worst_of(results).tolist() == [1, 2, 2, 0, 0]
    x = linear_images(20)[0]
    wrong = 1 - linear().predict(x, verbose=0).argmax(axis=1)
    results = attack_model(linear(), x, wrong, EPSILONS, 1)
    assert all((result == BROKEN).all() for result in results.values())
