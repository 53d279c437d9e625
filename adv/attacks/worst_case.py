"""Robust, broken or unknown: a classifier attacked itself, and the worst case over the attacks.

Attacks, at several epsilons of Linf and of L2: fgsm; pgd with random starts, both on the log-odds;
and rays (adv/rays.py), which sees decisions only, so that a model that hides its gradients shows.

An image is robust (1), broken (0) or unknown (2): the attack could not start, as all gradients were
zero or, for rays, no direction changed the decision. In the worst case it is broken where any
attack broke it, unknown where none did and any could not start, and robust where all tried and
failed. An image broken at one epsilon counts as broken at all larger ones. Epsilon 0 is clean.

Robust in % of 177 digits that a lenet gets right, at Linf 0.01, 0.02, 0.05, 0.1, and at L2 0.25,
0.5, 1, 2; one search of rays serves both:

                                         Linf            L2
    fgsm                                 98 94 77 47     96 93 75 43
    pgd, 20 steps, 3 starts              98 94 72 18     95 90 64  5
    rays, 1,000 decisions an image       98 94 79 38     98 94 88 59
    Foolbox's HopSkipJump, 1,500         99 99 94 81     99 99 99 98
    Foolbox's HopSkipJump, 3,700         99 98 92 71     99 99 99 95
    Foolbox's HopSkipJump, 7,000         99 98 90 66
    Foolbox's BoundaryAttack, 1,200                      99 99 99 99

So rays it is: the only one that comes near one step of fgsm, and at 0.1 below it, with a fraction
of the decisions. 40 steps of epsilon / 30, Foolbox's pgd as it is, leave 98 94 76 29 in Linf.
"""

import threading

import eagerpy as ep
import foolbox
import numpy as np

from adv.attacks import norms
from adv.attacks.classifier import BatchedModel, log_odds
from adv.attacks.rays import Rays
from train.utils import seed_number

PGD_STEPS, REACH = 20, 2.5  # all steps together go 2.5 epsilon far (Madry et al. 2018)
DECISIONS = 1000  # of rays, an image
BROKEN, ROBUST, UNKNOWN = 0, 1, 2
ONE_AT_A_TIME = threading.Lock()  # of the threads that attack a model each


def attack_model(classifier, x, y, epsilons, restarts, seed=0, tick=lambda: None, calls=None):
    """Attack a Keras softmax classifier on pixels in [0, 1].

    Args:
        x: float32 (n, h, w, c) in [0, 1]. y: int labels (n,). epsilons: {norm: ascending sizes},
            of "linf" and "l2". restarts: random starts of pgd. tick: called after every attempt,
            ticks(epsilons, restarts) times. calls: BatchedModel of the classifier, to use again.

    Returns:
        {"<norm>/<attack>/<epsilon>": uint8 (n,)}, see the docstring of this file.
    """
    calls = calls or BatchedModel.of(classifier)
    right = calls.logits(x).argmax(axis=1) == y
    results = {}
    for norm, by_attack in attack_right(calls, x[right], y[right], epsilons, restarts, seed, tick):
        by_attack["worst"] = worst_case(by_attack.values())
        for name, result in by_attack.items():
            for epsilon, of_right in zip((0, *epsilons[norm]), (ROBUST, *result), strict=True):
                results[f"{norm}/{name}/{epsilon:g}"] = of_all = np.zeros(len(right), "uint8")
                of_all[right] = of_right
    return results


def attack_right(calls, x, y, epsilons, restarts, seed, tick):
    """[(norm, {attack: results (epsilons, n)})] of images that the model gets right."""
    found = {}
    for norm, sizes in epsilons.items():
        fgsm = by_gradient(calls, norm, x, y, sizes, 1, 1, seed, tick)
        pgd = by_gradient(calls, norm, x, y, sizes, PGD_STEPS, restarts, seed, tick)
        found[norm] = {"fgsm": fgsm, "pgd": pgd}
    left = worst_case(found["linf"].values()) != BROKEN
    for norm, result in by_decisions(calls, x, y, epsilons, left).items():
        found[norm]["rays"] = result
    tick()
    return found.items()


def ticks(epsilons, restarts):
    """How many attempts attack_model makes."""
    return sum((1 + restarts) * len(sizes) for sizes in epsilons.values()) + 1


def worst_case(results):
    """Broken by any attack, else unknown to any, else robust; of arrays of one shape."""
    results = np.stack(list(results))
    return np.where((results == BROKEN).any(axis=0), BROKEN, results.max(axis=0))


def outcome(broken, started):
    """Results of one attack: bool (epsilons, n) and (n,) -> (epsilons, n)."""
    return np.where(broken, BROKEN, np.where(started, ROBUST, UNKNOWN))


def by_gradient(calls, norm, x, y, sizes, steps, starts, seed, tick):
    """fgsm (one step) or pgd (several, from `starts` random starts): results (epsilons, n).

    pgd goes from the largest epsilon down, and attacks an image no further where it stands: the
    smaller balls lie inside. One step can overshoot, so that fgsm tries every epsilon.
    """
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]()
    broken, started = np.zeros((len(sizes), len(x)), bool), np.zeros(len(x), bool)
    within_reach = np.ones(len(x), bool)
    for level in reversed(range(len(sizes))):
        for number in range(starts):
            rows = np.flatnonzero(within_reach & ~broken[level])
            if len(rows):
                start = x[rows]
                if steps > 1:
                    start = random_start(attack, start, sizes[level], (seed, level, number))
                hit, moved = ascend(calls, attack, start, x[rows], y[rows], sizes[level], steps)
                broken[level, rows], started[rows] = hit, started[rows] | moved
            tick()
        if steps > 1:
            within_reach = broken[level].copy()
    return outcome(np.logical_or.accumulate(broken), started)


def random_start(attack, x, epsilon, seed):
    """Pixels in a Foolbox attack's ball around images x; the seed is the whole process's."""
    with ONE_AT_A_TIME:
        # Foolbox draws from this stream; set_seed would empty TensorFlow's caches as well.
        np.random.seed(seed_number(*seed))  # noqa: NPY002
        start = attack.get_random_start(ep.astensor(x), epsilon)
    return start.clip(0, 1).numpy().astype("float32")


def ascend(calls, attack, start, x, y, epsilon, steps):
    """Steps up the log-odds from `start`, with a Foolbox attack's own steps and projections.

    An image leaves at its first success. Returns broken (n,) and whether any gradient moved it.
    """
    at, rate = start.copy(), epsilon * min(1, REACH / steps)
    broken, moved, rows = np.zeros(len(x), bool), np.zeros(len(x), bool), np.arange(len(x))
    for _ in range(steps):
        z, gradient = calls.gradient(at[rows], y[rows], log_odds)
        hit = z.argmax(axis=1) != y[rows]
        broken[rows], moved[rows] = hit, moved[rows] | gradient.any(axis=(1, 2, 3))
        rows, gradient = rows[~hit], ep.astensor(gradient[~hit])
        if not len(rows):
            return broken, moved
        here = ep.astensor(at[rows])
        there = here + rate * attack.normalize(gradient, x=here, bounds=(0, 1))
        at[rows] = attack.project(there, ep.astensor(x[rows]), epsilon).clip(0, 1).numpy()
    broken[rows] = calls.logits(at[rows]).argmax(axis=1) != y[rows]
    return broken, moved


def by_decisions(calls, x, y, epsilons, left):
    """{norm: results (epsilons, n)} of rays. One search, in Linf; what it finds counts in L2, too.

    left: bool (Linf epsilons, n), what gradient attacks did not break. rays gives an image up when
    it will not get below the largest of these: there it would change nothing.
    """
    if not len(x):
        return {norm: outcome(np.zeros((len(sizes), 0)), []) for norm, sizes in epsilons.items()}
    smallest, sizes = epsilons["linf"][0], np.array(epsilons["linf"])[:, None]
    wanted = np.where(left, sizes, smallest).max(axis=0)
    found, started = Rays(calls, x, y, DECISIONS, enough=smallest, wanted=wanted).run()
    size = norms(found - x)
    within = {norm: np.array(sizes)[:, None] + 1e-6 for norm, sizes in epsilons.items()}
    return {norm: outcome(started & (size[norm] <= e), started) for norm, e in within.items()}
