"""fgsm, bim and pgd: for every image the smallest epsilon at which the attack succeeds.

Foolbox 2.3.0 tries 1,000 sizes of fgsm in turn. For bim and pgd it multiplies epsilon by 1.5 until
the attack succeeds (20 times at most), then bisects 20 times. Here every image has a Bracket around
its epsilon, which a few attempts close to 3%, those of pgd, which are long, to 5%. The tests
compare with Foolbox's searches.
"""

import numpy as np

from adv.attacks.classifier import in_full_batches
from adv.attacks.losses import log_odds, margin, per_image

GROWTHS = 20  # attempts before the first success
ATTEMPTS = 40  # in all


def fgsm(start, steps=None, progress=None):
    """Fast gradient sign method (Goodfellow et al. 2015): the smallest step in Linf."""
    return along(start, np.sign(start.gradient), progress)


def bim(start, steps=None, progress=None):
    """Basic iterative method (Kurakin et al. 2017): the smallest epsilon in L1, per feature."""
    return smallest(start, bim_step, mean_absolute, steps or 10, 1 / 6, 1.03, progress)


def pgd(start, steps=None, progress=None):
    """Projected gradient descent (Madry et al. 2018): the smallest epsilon in Linf."""
    return smallest(start, pgd_step, largest_absolute, steps or 40, 1 / 30, 1.05, progress)


class Bracket:
    """For n images an epsilon that fails, `low`, and one that succeeds, `high`.

    Until the first success epsilon grows. Then the next one is where the line through the margins
    at low and high crosses 0, because the margin falls almost in proportion to epsilon, divided by
    `tolerance`. The search ends when high / low is at most `tolerance`.

    epsilon: to try next, float64 (n,).
    """

    def __init__(self, start, epsilon, growth, tolerance, largest=np.inf):
        """start: StartingPoint. epsilon: the first one, a number or (n,)."""
        n = len(start.x)
        self.epsilon = np.full(n, epsilon, "float64")
        self.growth = growth
        self.tolerance = tolerance
        self.largest = largest
        self.low = np.zeros(n)
        self.high = np.full(n, np.inf)
        self.margin_low = start.margin.astype("float64")
        self.margin_high = np.zeros(n)
        # Without a gradient no epsilon succeeds.
        self.attempts = np.where(start.gradient.any(axis=(1, 2, 3)), 0, ATTEMPTS)

    def record(self, rows, is_hit, margin, used):
        """Record an attempt at `epsilon` of some images; returns which are finished, bool (rows,).

        is_hit: whether the decision changed. margin: at the end. used: the largest distance that
            the steps can have covered.
        """
        epsilon = self.epsilon[rows]
        hit = rows[is_hit]
        self.high[hit], self.margin_high[hit] = used[is_hit], margin[is_hit]
        # As in Foolbox, epsilons that failed before the first success are tried again below it.
        is_low = ~is_hit & np.isfinite(self.high[rows])
        self.low[rows[is_low]], self.margin_low[rows[is_low]] = epsilon[is_low], margin[is_low]
        self.attempts[rows] += 1

        low, high, attempts = self.low[rows], self.high[rows], self.attempts[rows]
        fall = np.maximum(self.margin_low[rows] - self.margin_high[rows], 1e-12)
        has_hit = np.isfinite(high)
        crossing = low + np.where(has_hit, high - low, 0) * self.margin_low[rows] / fall
        # Try just below the crossing: a failure leaves high at most `tolerance` times low, the end.
        target = np.where(crossing > high / self.tolerance, high, crossing) / self.tolerance
        target = np.clip(target, low * self.tolerance, high / self.tolerance)
        larger = np.minimum(self.growth * epsilon, self.largest)
        self.epsilon[rows] = np.where(has_hit, target, larger)
        is_over = (attempts >= GROWTHS) | (epsilon >= self.largest)
        is_closed = (attempts >= ATTEMPTS) | (high < 1.0001 * self.tolerance * low)
        return np.where(has_hit, is_closed, is_over)


def along(start, direction, progress=None):
    """The smallest step along a direction that changes the decision, by forward passes only.

    Args:
        start: StartingPoint. direction: float32 (n, h, w, c).
        progress: called with numbers of finished images, or None.

    Returns:
        Adversarial images, where no step succeeds the image itself, and success, bool (n,).
    """
    lowest, highest = start.model.fmodel.bounds
    largest = highest - lowest
    slope = (start.gradient * direction).sum(axis=(1, 2, 3))
    linear = start.margin / np.maximum(slope, 1e-12)  # where the linearised margin is 0
    bracket = Bracket(start, np.clip(linear, largest / 1000, largest), 2, 1.03, largest)
    best = start.x.copy()

    def step(rows):
        epsilon = bracket.epsilon[rows]
        x = start.x[rows] + per_image(epsilon.astype("float32")) * direction[rows]
        x = np.clip(x, lowest, highest)
        z = start.model.logits(x)
        is_hit = z.argmax(axis=1) != start.y[rows]
        best[rows[is_hit]] = x[is_hit]
        return bracket.record(rows, is_hit, margin(z, start.y[rows]), epsilon)

    in_full_batches(len(best), start.model.batch, step, progress)
    return best, np.isfinite(bracket.high)


def smallest(start, take_step, size, steps, share, tolerance, progress=None):
    """The smallest epsilon at which an attack that goes up the log-odds in steps succeeds.

    For every image: attempt the attack at an epsilon, with steps of a share of it, from the image
    until the decision changes; then choose a smaller epsilon after a success or a larger one after
    a failure, until both are known to a few percent. Images are at different points of this at
    once, so that batches stay full.

    Args:
        start: StartingPoint.
        take_step: function (x, x0, gradient, epsilon, share) -> the next x.
        size: function (perturbation) -> (n,); of all successes the smallest counts.
        steps: of an attempt, which ends at its first success. share: of epsilon in a step.
        tolerance: the largest high / low at the end.
        progress: called with numbers of finished images, or None.

    Returns:
        Adversarial images, where the attack failed the image itself, and success, bool (n,).
    """
    n = len(start.x)
    bracket = Bracket(start, 0.3, 1.5, tolerance)
    x, best = start.x.copy(), start.x.copy()
    best_size = np.full(n, np.inf)
    steps_taken = np.zeros(n, "int64")

    def advance(rows, gradient):
        epsilon = per_image(bracket.epsilon[rows].astype("float32"))
        moved = take_step(x[rows], start.x[rows], gradient, epsilon, share)
        is_stuck = (moved == x[rows]).all(axis=(1, 2, 3))
        x[rows] = moved
        steps_taken[rows] = np.where(is_stuck, steps, steps_taken[rows] + 1)

    def step(rows):
        z, gradient = start.model.gradient(x[rows], start.y[rows], log_odds)
        is_hit = z.argmax(axis=1) != start.y[rows]
        found = size(x[rows] - start.x[rows])
        is_better = is_hit & (found < best_size[rows])
        best[rows[is_better]] = x[rows[is_better]]
        best_size[rows[is_better]] = found[is_better]

        has_ended = is_hit | (steps_taken[rows] >= steps)
        advance(rows[~has_ended], gradient[~has_ended])
        ended = rows[has_ended]
        # A success has used no more of epsilon than its steps together.
        used = bracket.epsilon[ended] * np.minimum(share * steps_taken[ended], 1)
        margin_now = margin(z[has_ended], start.y[ended])
        finished = np.zeros(len(rows), bool)
        finished[has_ended] = bracket.record(ended, is_hit[has_ended], margin_now, used)
        again = rows[has_ended & ~finished]
        x[again] = start.x[again]
        steps_taken[again] = 0
        advance(again, start.gradient[again])
        return finished

    advance(np.arange(n), start.gradient)
    in_full_batches(n, start.model.batch, step, progress)
    return best, np.isfinite(best_size)


def bim_step(x, x0, gradient, epsilon, share):
    """One step of bim in L1, projected on the epsilon ball around x0 and on [0, 1]."""
    step = gradient / per_image(np.maximum(mean_absolute(gradient), 1e-12))
    perturbation = x + share * epsilon * step - x0
    size = per_image(np.maximum(mean_absolute(perturbation), 1e-12))
    return np.clip(x0 + perturbation * np.minimum(1, epsilon / size), 0, 1)


def pgd_step(x, x0, gradient, epsilon, share):
    """One step of pgd in Linf, projected on the epsilon ball around x0 and on [0, 1]."""
    perturbation = x + share * epsilon * np.sign(gradient) - x0
    return np.clip(x0 + np.clip(perturbation, -epsilon, epsilon), 0, 1)


def mean_absolute(perturbation):
    """L1 norm divided by the number of features, as Foolbox 2 measures it: (n, h, w, c) -> (n,)."""
    return np.abs(perturbation).mean(axis=(1, 2, 3))


def largest_absolute(perturbation):
    """Linf norm: (n, h, w, c) -> (n,)."""
    return np.abs(perturbation).max(axis=(1, 2, 3))
