"""The attacks of the study: fgsm, bim, pgd, cw and jsma on pixels in [0, 1] (design section 7).

`minimal` mode looks for the smallest perturbation that changes the decision, as Foolbox 2.3.0 did, which the paper used:
the same attacks, for all images of a batch at once, each with its own epsilon; finished images leave the batch. `fixed`
mode attacks at given epsilons, with Foolbox 3's own attacks.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eagerpy as ep
import foolbox
import numpy as np

from adv.adapter import Calls, cross_entropy, each, foolbox_model, line_search, margin, margin_loss, pool
from adv.saliency_map import saliency_map, target_classes
from train.files import ATTACKS, UserError
from train.utils import set_seed

TOLERANCE = 0.05  # bim and pgd stop when no epsilon that is smaller by this share is expected to succeed


def attack(name, model, x, y, mode="minimal", epsilons=None, seed=0, steps=None, bar=None, calls=None):
    """Adversarial images of a Keras softmax classifier.

    Args:
        name: fgsm, bim, pgd, cw or jsma. model: a Keras classifier on pixels in [0, 1].
        x: float32 (n, h, w, c) in [0, 1]. y: labels (n,). Images that the model gets wrong come back as they are.
        mode: "minimal" or "fixed". epsilons: fixed mode, the size of the perturbation: a number (fgsm, bim and pgd: Linf,
            cw: L2, jsma: number of features), or several of which the first that succeeds counts.
        seed: of random starts and random target classes. steps: iterations, instead of the attack's own.
        bar: called with the number of images that have been finished. calls: a Calls to use again instead of `model`.

    Returns:
        adversarial images float32 (n, h, w, c), the image itself where the attack failed, and success bool (n,).

    Raises:
        UserError: unknown name or mode, fixed mode without epsilon, images outside [0, 1] or NaN.
    """
    if name not in ATTACKS:
        raise UserError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}.")
    if mode not in ("minimal", "fixed") or (mode == "fixed") == (epsilons is None):
        raise UserError(f"mode {mode!r} with epsilon {epsilons}: mode fixed needs an --epsilon, mode minimal takes none.")
    x, y = np.asarray(x, "float32"), np.asarray(y, "int64")
    if not (np.isfinite(x).all() and x.min(initial=0) >= 0 and x.max(initial=1) <= 1):
        raise UserError("the images are not pixels in [0, 1], or some are NaN: divide 8-bit images by 255.")
    calls = calls or Calls(foolbox_model(model))
    set_seed(seed)
    if not len(x):
        return x, np.zeros(0, bool)
    z, gradient = calls.gradient(x, y, cross_entropy)  # where all but cw begin
    right = z.argmax(axis=1) == y
    result, success = x.copy(), ~right
    if bar is not None:
        bar(int(success.sum()))
    if right.any():
        find = _minimal if mode == "minimal" else partial(_fixed, epsilons)
        result[right], success[right] = find(name, calls, x[right], y[right], z[right], gradient[right], seed, steps, bar)
    return result, success


def _minimal(name, calls, x, y, z, gradient, seed, steps, bar):
    if name == "fgsm":
        return fgsm(calls, x, y, z, gradient, bar)
    if name == "cw":
        return carlini_wagner(calls, x, y, steps or 1000, bar=bar)
    if name == "jsma":
        target = target_classes(calls, x, y, z, gradient, seed)
        return saliency_map(calls, x, y, target, steps=steps or 2000, untargeted=True, bar=bar)
    return iterative(calls, x, y, z, gradient, *{"bim": (1, steps or 10, 1 / 6), "pgd": (np.inf, steps or 40, 1 / 30)}[name], bar=bar)


def _fixed(epsilons, name, calls, x, y, z, gradient, seed, steps, bar):
    epsilons = np.atleast_1d(epsilons).astype(float)
    if name in ("cw", "jsma"):  # they have no epsilon of their own: what they find counts if it is small enough
        found, success = _minimal(name, calls, x, y, z, gradient, seed, steps, bar)
        size = norms(found - x)["l2" if name == "cw" else "l0"]
        success &= size <= epsilons.max()
        return np.where(success[:, None, None, None], found, x), success
    kinds = {
        "fgsm": lambda: foolbox.attacks.LinfFastGradientAttack(),
        "bim": lambda: foolbox.attacks.LinfBasicIterativeAttack(steps=steps or 10),
        "pgd": lambda: foolbox.attacks.LinfPGD(steps=steps or 40),
    }
    result, success = x.copy(), np.zeros(len(x), bool)
    for start in range(0, len(x), calls.batch):
        part = slice(start, start + calls.batch)
        inputs, labels = (ep.from_numpy(calls.like, a[part]).raw for a in (x, y))
        found, _, hit = kinds[name]()(calls.fmodel, inputs, labels, epsilons=list(epsilons))
        for images, hits in zip(found[::-1], ep.astensor(hit).numpy()[::-1], strict=True):  # the first epsilon ends on top
            result[part][hits] = np.clip(ep.astensor(images).numpy(), 0, 1)[hits]
            success[part] |= hits
        if bar is not None:
            bar(len(x[part]))
    return result, success


def norms(perturbation):
    """{"linf", "l2", "l0"} of perturbations (n, ...): float32 (n,), l0 as the number of changed features."""
    flat = perturbation.reshape(len(perturbation), -1)
    sizes = {"linf": np.abs(flat).max(axis=1, initial=0), "l2": np.linalg.norm(flat, axis=1), "l0": (flat != 0).sum(axis=1)}
    return {name: size.astype("float32") for name, size in sizes.items()}


def fgsm(calls, x, y, z, gradient, bar=None):
    """Fast gradient sign method (Goodfellow et al. 2015): a line search along the sign of one gradient."""
    return line_search(calls, x, y, z, gradient, np.sign(gradient), bar=bar)[:2]


def iterative(calls, x, y, z, first, norm, steps, rel_stepsize, start=0.3, growth=1.5, growths=20, bisections=20, bar=None):
    """Basic iterative method (norm 1) and projected gradient descent (norm inf), each image with its own epsilon.

    The attempts are those of Foolbox 2.3.0 (design section 7): all start from the image, the step is the same fraction of epsilon,
    each ends at its first success, and the smallest success counts. Foolbox bisects, 20 more attempts. Here an attempt tells
    which epsilon to try next: the margin falls almost in proportion to epsilon, so where it crossed 0, or would have after
    the last step, predicts the smallest epsilon to a few percent. That takes two or three attempts, most of which end at the boundary;
    tests/test_attacks.py compares with the literal search. An image whose first attempt fails, or succeeds only at the bound, is
    bisected as Foolbox does: there success is not monotone in epsilon.

    z, first: logits and gradient at x, from calls.gradient(x, y, cross_entropy): the step from x is the same in every attempt.
    norm 1 measures the mean absolute change of a feature, as Foolbox 2 did, so that its epsilons compare to Linf.
    """
    n, reach = len(x), round(1 / rel_stepsize)  # reach: steps until epsilon bounds the change
    epsilon, low, high = np.full(n, start, "float32"), np.zeros(n, "float32"), np.full(n, np.inf, "float32")
    taken, attempts = np.zeros(n, "int64"), np.zeros(n, "int64")
    at_start = margin(z, y)
    current, before = x.copy(), at_start.copy()
    best, smallest = x.copy(), np.full(n, np.inf, "float32")
    fine, far = np.zeros(n, bool), np.zeros(n, bool)

    def size(change):
        return np.abs(change).max(axis=(1, 2, 3)) if norm == np.inf else np.abs(change).mean(axis=(1, 2, 3))

    def move(rows, gradient):
        eps = each(epsilon[rows])
        unit = np.sign(gradient) if norm == np.inf else gradient / each(np.maximum(np.abs(gradient).mean(axis=(1, 2, 3)), 1e-12))
        change = current[rows] + rel_stepsize * eps * unit - x[rows]
        if norm == np.inf:
            change = np.clip(change, -eps, eps)
        else:
            change *= np.minimum(1, eps / np.maximum(each(size(change)), 1e-12))
        moved = np.clip(x[rows] + change, 0, 1)
        stuck = (moved == current[rows]).all(axis=(1, 2, 3))
        current[rows] = moved
        taken[rows] = np.where(stuck, steps, taken[rows] + 1)  # no later step will move it either

    def step(rows):
        z, gradient = calls.gradient(current[rows], y[rows], cross_entropy)
        left, k, hit = margin(z, y[rows]), taken[rows], z.argmax(axis=1) != y[rows]
        rate = before[rows] - left  # what the last step gained
        hopeless = fine[rows] & ~far[rows] & (k > reach) & (left > 1.5 * rate * (steps - k))
        ends = hit | hopeless | (k >= steps)
        before[rows[~ends]] = left[~ends]
        move(rows[~ends], gradient[~ends])

        rows, hit, left, rate, k, eps = (a[ends] for a in (rows, hit, left, rate, k, epsilon[rows]))
        found = np.where(hit, size(current[rows] - x[rows]), np.inf)
        smaller = found < smallest[rows]
        best[rows[smaller]], smallest[rows[smaller]] = current[rows[smaller]], found[smaller]
        newly = hit & np.isinf(high[rows])
        far[rows[newly]] = ((attempts[rows] > 0) | (k > reach))[newly]
        high[rows[hit]] = np.minimum(high[rows], eps * np.minimum(k / reach, 1))[hit]
        growing = np.isinf(high[rows])
        lower = ~hit & ~growing
        low[rows[lower]] = np.maximum(low[rows], eps)[lower]

        # Where the margin would be after all steps: each of them gains a part of what the last one did, most before the bound.
        end = left - rate * (0.7 * np.maximum(reach - k, 0) + 0.2 * (steps - np.maximum(k, reach)))
        # Shorter steps need less: on Fashion-MNIST the smallest epsilon is about 0.86 of where the margin crossed 0 before the bound.
        crossing = 0.88 * eps * np.minimum(k - 1 + before[rows] / np.maximum(rate, 1e-12), reach) / reach
        goal = np.where(hit & (k <= 0.8 * reach), crossing, 1.01 * eps * at_start[rows] / np.maximum(at_start[rows] - end, 1e-12))
        fine[rows] |= hit & ~newly & (k > 0.8 * reach)
        attempts[rows] += 1
        least = (1 - TOLERANCE) * high[rows]
        expected = fine[rows] & ~far[rows] & (goal > least) & (norm == np.inf)  # ten steps of bim predict less well: it is bracketed
        over = np.where(growing, attempts[rows] >= growths, (low[rows] >= least) | expected)
        over |= attempts[rows] >= growths + bisections
        over |= growing & (norm == np.inf) & (rel_stepsize * eps >= 1)  # every step goes to the bounds: no larger epsilon differs
        middle = np.maximum((low[rows] + high[rows]) / 2, np.where(far[rows], 0, 0.9 * high[rows]))
        usable = ~far[rows] & (low[rows] < goal) & (goal < least)
        epsilon[rows] = np.where(growing, eps * growth, np.where(usable, goal, middle))
        again = rows[~over]
        current[again], before[again], taken[again] = x[again], at_start[again], 0
        move(again, first[again])
        ends[ends] = over
        return ends

    attempts[~first.any(axis=(1, 2, 3))] = growths  # a vanished gradient moves nothing, whatever epsilon
    move(np.arange(n), first)
    pool(n, calls.batch, step, bar)
    return best, np.isfinite(smallest)


def cw_rate(steps):
    """5e-3; fewer steps than 1,000 are longer in proportion, up to tenfold, so that they get as far."""
    return 5e-3 * min(10, max(1, 1000 / steps))


def carlini_wagner(calls, x, y, steps=1000, searches=5, rate=None, constant=1e-2, check=None, bar=None):
    """Carlini and Wagner's L2 attack (2017), untargeted, confidence 0, as Foolbox has it, each image at its own pace.

    For every image a search over the constant between its misclassification and its squared L2 norm: ten times as large
    until the attack succeeds, then bisected, `searches` values in all. For each, Adam in tanh space for up to `steps`
    iterations; an image that has made no progress for `check` iterations (default: a twentieth of `steps`) goes on to its
    next constant. Foolbox stops only when the whole batch has made none. The learning rate is that of cw_rate.
    """
    rate = rate or cw_rate(steps)
    n, shape = len(x), x.shape
    check = check or max(steps // 20, 10)
    origin = np.arctanh((2 * x - 1) * np.float32(0.999999))
    start = np.float32(0.5) * np.tanh(origin) + np.float32(0.5)  # x, up to rounding
    delta, m, v = (np.zeros(shape, "float32") for _ in range(3))
    const, low, high = np.full(n, constant, "float32"), np.zeros(n, "float32"), np.full(n, np.inf, "float32")
    taken, search = np.zeros(n, "int64"), np.zeros(n, "int64")
    crossed, before, lowest = np.zeros(n, bool), np.full(n, np.inf), np.full(n, np.inf)
    best, best_norm = x.copy(), np.full(n, np.inf, "float32")

    def step(rows):
        t = np.tanh(origin[rows] + delta[rows])
        image = 0.5 * t + np.float32(0.5)
        z, gradient = calls.gradient(image, y[rows], margin_loss)
        left, change = margin(z, y[rows]), image - start[rows]
        squared = np.square(change).sum(axis=(1, 2, 3))
        active = const[rows] * (left > 0)
        gradient = (each(active) * gradient + 2 * change) * (0.5 * (1 - t * t))

        taken[rows] += 1
        count = each(taken[rows].astype("float32"))
        m[rows] = 0.9 * m[rows] + np.float32(0.1) * gradient
        v[rows] = 0.999 * v[rows] + np.float32(0.001) * gradient * gradient
        delta[rows] -= rate * (m[rows] / (1 - 0.9**count)) / (np.sqrt(v[rows] / (1 - 0.999**count)) + 1e-8)

        hit = z.argmax(axis=1) != y[rows]
        crossed[rows] |= hit
        norm = np.linalg.norm((image - x[rows]).reshape(len(rows), -1), axis=1)
        closer = hit & (norm < best_norm[rows])
        best[rows[closer]], best_norm[rows[closer]] = image[closer], norm[closer]

        lowest[rows] = np.minimum(lowest[rows], squared + active * left)
        checked = taken[rows] % check == 0
        stuck = checked & ~(lowest[rows] <= 0.99 * before[rows])
        before[rows[checked]] = lowest[rows[checked]]
        over = rows[(taken[rows] >= steps) | stuck]

        high[over] = np.where(crossed[over], np.minimum(high[over], const[over]), high[over])
        low[over] = np.where(crossed[over], low[over], np.maximum(low[over], const[over]))
        const[over] = np.where(np.isinf(high[over]), const[over] * 10, (low[over] + high[over]) / 2)
        search[over] += 1
        delta[over] = m[over] = v[over] = 0
        taken[over], crossed[over], before[over], lowest[over] = 0, False, np.inf, np.inf
        return search[rows] >= searches

    pool(n, calls.batch, step, bar)
    return best, np.isfinite(best_norm)
