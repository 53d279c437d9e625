"""The worst case over several attacks on one classifier: is an image robust, broken or unknown?

The attacks, at several epsilons of Linf, are fgsm, pgd with random starts (both on the log-odds)
and rays.py, which is decision-based and so exposes gradient masking.

An image is robust (1), broken (0), or unknown (2) if the attack could not start: all gradients were
zero or, for rays, no direction changed the decision. In the worst case it is broken if any attack
broke it, robust if all attacks tried and failed, and else unknown. An image that is broken at one
epsilon is broken at all larger ones. Epsilon 0 is clean accuracy.
"""

import numpy as np

from adv.attacks.classifier import BatchedModel
from adv.attacks.losses import log_odds
from adv.attacks.rays import Rays
from adv.attacks.search import largest_absolute, pgd_step

PGD_STEPS = 40
REACH = 2.5  # all steps of pgd together go 2.5 epsilon far (Madry et al. 2018)
DECISIONS = 1000  # of rays, for each image
BROKEN, ROBUST, UNKNOWN = 0, 1, 2


def attack_model(model, x, y, epsilons, restarts=1, seed=0):
    """Attack a classifier.

    Args:
        model: a Keras softmax classifier of pixels in [0, 1], or a BatchedModel of one.
        x: float32 (n, h, w, c) in [0, 1]. y: int labels (n,).
        epsilons: ascending sizes in Linf. restarts: random starts of pgd. seed: of these.

    Returns:
        {(attack, epsilon): uint8 (n,)}, ROBUST, BROKEN or UNKNOWN, for the attacks fgsm, pgd, rays
        and "worst", and for epsilon 0 too.
    """
    model = BatchedModel.of(model)
    is_right = model.logits(x).argmax(axis=1) == y
    x, y = x[is_right], y[is_right]
    by_attack = {"fgsm": attack_by_gradient(model, x, y, epsilons, steps=1)}
    by_attack["pgd"] = attack_by_gradient(model, x, y, epsilons, PGD_STEPS, restarts, seed)
    unbroken = worst_of(by_attack.values()) != BROKEN
    by_attack["rays"] = attack_by_decisions(model, x, y, epsilons, unbroken)
    by_attack["worst"] = worst_of(by_attack.values())
    results = {}
    for name, result in by_attack.items():
        # At epsilon 0 every image that is classified correctly is robust.
        for epsilon, outcomes in zip((0, *epsilons), (ROBUST, *result), strict=True):
            results[name, epsilon] = np.zeros(len(is_right), "uint8")
            results[name, epsilon][is_right] = outcomes
    return results


def worst_of(results):
    """Broken by any attack, else unknown to any, else robust; of arrays of one shape."""
    results = np.stack(list(results))
    return np.where((results == BROKEN).any(axis=0), BROKEN, results.max(axis=0))


def outcome(is_broken, has_started):
    """Results of one attack: bool (epsilons, n) and (n,) -> (epsilons, n)."""
    return np.where(is_broken, BROKEN, np.where(has_started, ROBUST, UNKNOWN))


def attack_by_gradient(model, x, y, epsilons, steps, restarts=1, seed=0):
    """Results (epsilons, n) of fgsm (one step) or pgd (several steps, from random starts).

    pgd goes from the largest epsilon down and leaves out images that resist it, because the smaller
    balls lie inside. One step can overshoot, so fgsm tries every epsilon.
    """
    is_pgd = steps > 1
    is_broken = np.zeros((len(epsilons), len(x)), bool)
    has_started = np.zeros(len(x), bool)
    may_break = np.ones(len(x), bool)
    for level in reversed(range(len(epsilons))):
        epsilon = epsilons[level]
        for number in range(restarts):
            rows = np.flatnonzero(may_break & ~is_broken[level])
            if not len(rows):
                break
            start = x[rows]
            if is_pgd:
                rng = np.random.default_rng([seed, level, number])
                noise = rng.uniform(-epsilon, epsilon, start.shape)
                start = np.clip(start + noise, 0, 1).astype("float32")
            is_broken[level, rows], moved = ascend(model, start, x[rows], y[rows], epsilon, steps)
            has_started[rows] |= moved
        if is_pgd:
            may_break = is_broken[level].copy()
    return outcome(np.logical_or.accumulate(is_broken), has_started)


def ascend(model, start, x0, y, epsilon, steps):
    """Steps up the log-odds from `start`, projected on the epsilon ball around x0.

    An image leaves at its first success. Returns whether it was broken, and whether any gradient
    moved it, bool (n,).
    """
    x = start.copy()
    share = min(1, REACH / steps)
    is_broken = np.zeros(len(x), bool)
    was_moved = np.zeros(len(x), bool)
    rows = np.arange(len(x))
    for _ in range(steps):
        z, gradient = model.gradient(x[rows], y[rows], log_odds)
        is_hit = z.argmax(axis=1) != y[rows]
        is_broken[rows] = is_hit
        was_moved[rows] |= gradient.any(axis=(1, 2, 3))
        rows = rows[~is_hit]
        if not len(rows):
            return is_broken, was_moved
        x[rows] = pgd_step(x[rows], x0[rows], gradient[~is_hit], epsilon, share)
    is_broken[rows] = model.logits(x[rows]).argmax(axis=1) != y[rows]
    return is_broken, was_moved


def attack_by_decisions(model, x, y, epsilons, unbroken):
    """Results (epsilons, n) of rays.

    unbroken: bool (epsilons, n), what the gradient attacks did not break. rays gives an image up
    when it will not get below the largest of these, because that would change nothing.
    """
    sizes = np.array(epsilons)[:, None]
    needed = np.where(unbroken, sizes, sizes[0]).max(axis=0)
    search = Rays(model, x, y, DECISIONS, enough=epsilons[0], needed=needed)
    adversarial, has_started = search.run()
    is_within = largest_absolute(adversarial - x) <= sizes + 1e-6
    return outcome(has_started & is_within, has_started)
