"""The smallest epsilon at which an attack of several steps succeeds (bim and pgd)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adv.attacks.classifier import in_full_batches
from adv.attacks.losses import log_odds, margin
from adv.attacks.perturbations import per_image


@dataclass
class StepRule:
    """An attack whose step is a fixed share of epsilon.

    take_step: function (x, x0, gradient, epsilon, step_size) -> the next x.
    size: function (perturbation) -> (n,), the norm that epsilon bounds.
    steps: of an attempt.
    rel_stepsize: the share.
    is_predictable: steps follow the gradient's sign. The search may then end where no smaller
        success is expected, and there is a largest epsilon of use.
    """

    take_step: Callable
    size: Callable
    steps: int
    rel_stepsize: float
    is_predictable: bool = True


@dataclass
class Attempt:
    """How attempts at an epsilon ended, one for each of some images; arrays (images,).

    epsilon: of the attempt. is_hit: the decision changed. steps: taken. size: of the perturbation.
    margin: at the end. gain: by how much the last step reduced the margin.
    """

    epsilon: np.ndarray
    is_hit: np.ndarray
    steps: np.ndarray
    size: np.ndarray
    margin: np.ndarray
    gain: np.ndarray

    def of(self, rows):
        """The attempts of some of the images."""
        return Attempt(*(values[rows] for values in vars(self).values()))


class EpsilonSearch:
    """The smallest perturbation, for n images, of an attack with a StepRule.

    Foolbox 2.3.0 multiplies epsilon by 1.5 until the attack succeeds (20 times at most), then
    bisects 20 times. Every attempt starts from the image and ends at its first success; of all
    successes the smallest counts. That takes about 24 attempts. Here two or three do: the margin
    falls almost in proportion to epsilon, so that an attempt predicts the next epsilon
    (`expected_epsilon`). An example, with pgd, which needs 30 steps to reach epsilon:

    1. At 0.3 it succeeds after 5 steps, at about 5/30 of 0.3. Shorter steps need a little less: the
       next epsilon is 0.92 of the size at which the margin crossed 0.
    2. At 0.046 it fails, with a twentieth of the margin left. It ends there if the last steps gain
       too little. The line through the margins at 0 and at the end crosses 0 at 0.049.
    3. At 0.049 it succeeds in its last steps. No success that is 5% smaller is expected: the end.

    The smallest epsilon lies between `low`, the largest that failed, and `high`, the smallest that
    succeeded. If the expected epsilon does not, the middle is tried, but at most 10% below `high`.
    For attacks that are not predictable, low and high are brought within 5%. An erratic image,
    whose first attempt failed or succeeded late, is bisected without predictions, to within 5%: a
    larger epsilon may fail there where a smaller one succeeds. The tests compare with the literal
    search.
    """

    START = 0.3  # the first epsilon
    GROWTH = 1.5
    MAX_GROWTHS = 20
    BISECTIONS = 20
    TOLERANCE = 0.05
    ATTEMPTS_LEFT = 2  # for progress only
    # Found by trial on Fashion-MNIST; a wrong value costs attempts, or some percent of the size.
    SHORTER = 0.92  # shorter steps cross the boundary at this share of the size of longer ones
    # Gain of a later step as a share of the last step's gain,
    BEFORE_BOUND = 0.7  # before epsilon bounds the perturbation, and
    AT_BOUND = 0.4  # once it does
    LATE = 0.8  # a success after this share of the steps to the bound counts as near it
    # An attempt ends if each remaining step would have to gain this many times the last gain.
    HOPELESS = 1.5

    def __init__(self, start, rule):
        """start: StartingPoint. rule: StepRule."""
        n = len(start.x)
        self.model = start.model
        self.x0 = start.x
        self.y = start.y
        self.gradient_at_0 = start.gradient
        self.margin_at_0 = start.margin
        self.rule = rule
        self.steps_to_bound = round(1 / rule.rel_stepsize)  # until epsilon bounds the perturbation
        # From this epsilon on, one step along the sign takes every pixel to 0 or 1.
        self.max_epsilon = 1 / rule.rel_stepsize if rule.is_predictable else np.inf
        # The present attempt.
        self.epsilon = np.full(n, self.START, "float32")
        self.x = start.x.copy()
        self.steps_taken = np.zeros(n, "int64")
        self.margin_before = self.margin_at_0.copy()
        # What earlier attempts have shown.
        self.attempts = np.zeros(n, "int64")
        self.low = np.zeros(n, "float32")
        self.high = np.full(n, np.inf, "float32")
        self.is_near_bound = np.zeros(n, bool)
        self.is_erratic = np.zeros(n, bool)
        self.x_best = start.x.copy()
        self.size_best = np.full(n, np.inf, "float32")

    def run(self, progress=None):
        """Returns the smallest adversarial images (or the image itself) and success (n,)."""
        # Without a gradient no step moves the image, whatever epsilon.
        has_no_gradient = ~self.gradient_at_0.any(axis=(1, 2, 3))
        self.attempts[has_no_gradient] = self.MAX_GROWTHS
        self.take_step(np.arange(len(self.x)), self.gradient_at_0)
        in_full_batches(len(self.x), self.model.batch, self.step, progress, self.share_done)
        return self.x_best, np.isfinite(self.size_best)

    def share_done(self, rows):
        """An estimate for progress: an unfinished image needs ATTEMPTS_LEFT more."""
        attempts = self.attempts[rows] + self.steps_taken[rows] / self.rule.steps
        return attempts / (attempts + self.ATTEMPTS_LEFT)

    def step(self, rows):
        """One step of the attempts of some images; returns which images are finished."""
        z, gradient = self.model.gradient(self.x[rows], self.y[rows], log_odds)
        margin_now = margin(z, self.y[rows])
        attempt = Attempt(
            epsilon=self.epsilon[rows],
            is_hit=z.argmax(axis=1) != self.y[rows],
            steps=self.steps_taken[rows],
            size=self.rule.size(self.x[rows] - self.x0[rows]),
            margin=margin_now,
            gain=self.margin_before[rows] - margin_now,
        )
        has_ended = attempt.is_hit | (attempt.steps >= self.rule.steps)
        has_ended |= self.is_hopeless(rows, attempt)
        self.margin_before[rows[~has_ended]] = margin_now[~has_ended]
        self.take_step(rows[~has_ended], gradient[~has_ended])

        finished = has_ended.copy()
        finished[has_ended] = self.choose_epsilon(rows[has_ended], attempt.of(has_ended))
        self.begin_attempt(rows[has_ended & ~finished])
        return finished

    def take_step(self, rows, gradient):
        """Take a step of the attack. An image that it does not move has no steps left."""
        epsilon = per_image(self.epsilon[rows])
        step_size = self.rule.rel_stepsize * epsilon
        moved = self.rule.take_step(self.x[rows], self.x0[rows], gradient, epsilon, step_size)
        is_stuck = (moved == self.x[rows]).all(axis=(1, 2, 3))
        self.x[rows] = moved
        self.steps_taken[rows] = np.where(is_stuck, self.rule.steps, self.steps_taken[rows] + 1)

    def begin_attempt(self, rows):
        """Start from the images again, with their new epsilon."""
        self.x[rows] = self.x0[rows]
        self.steps_taken[rows] = 0
        self.margin_before[rows] = self.margin_at_0[rows]
        self.take_step(rows, self.gradient_at_0[rows])

    def is_hopeless(self, rows, attempt):
        """Attempts at a predicted epsilon whose margin will not reach 0."""
        steps_left = self.rule.steps - attempt.steps
        is_far = attempt.margin > self.HOPELESS * attempt.gain * steps_left
        is_predicted = (self.attempts[rows] > 0) & ~self.is_erratic[rows]
        return is_predicted & (attempt.steps > self.steps_to_bound) & is_far

    def choose_epsilon(self, rows, attempt):
        """Learn from attempts that have ended, and choose the next epsilon by the class's rule.

        Returns which images are finished.
        """
        self.keep_best(rows, attempt)
        self.narrow(rows, attempt)
        expected = self.expected_epsilon(rows, attempt)
        self.attempts[rows] += 1

        low = self.low[rows]
        high = self.high[rows]
        is_erratic = self.is_erratic[rows]
        target = (1 - self.TOLERANCE) * high  # a success has to be smaller to be worth an attempt
        has_no_success = np.isinf(high)
        is_too_large = attempt.epsilon >= self.max_epsilon
        has_grown = (self.attempts[rows] >= self.MAX_GROWTHS) | is_too_large
        none_expected = self.is_near_bound[rows] & ~is_erratic & (expected > target)
        none_expected &= self.rule.is_predictable
        finished = np.where(has_no_success, has_grown, (low >= target) | none_expected)
        finished |= self.attempts[rows] >= self.MAX_GROWTHS + self.BISECTIONS

        middle = np.maximum((low + high) / 2, np.where(is_erratic, 0, 0.9 * high))
        is_usable = ~is_erratic & (low < expected) & (expected < target)
        smaller = np.where(is_usable, expected, middle)
        self.epsilon[rows] = np.where(has_no_success, attempt.epsilon * self.GROWTH, smaller)
        return finished

    def keep_best(self, rows, attempt):
        """Keep the successes that are smaller than all before."""
        is_better = attempt.is_hit & (attempt.size < self.size_best[rows])
        self.x_best[rows[is_better]] = self.x[rows[is_better]]
        self.size_best[rows[is_better]] = attempt.size[is_better]

    def narrow(self, rows, attempt):
        """Update low, high, is_near_bound and is_erratic."""
        is_first_hit = attempt.is_hit & np.isinf(self.high[rows])
        is_late = (self.attempts[rows] > 0) | (attempt.steps > self.steps_to_bound)
        self.is_erratic[rows] |= is_first_hit & is_late
        is_near = attempt.steps > self.LATE * self.steps_to_bound
        self.is_near_bound[rows] |= attempt.is_hit & ~is_first_hit & is_near
        # An early success has not used all of its epsilon.
        reached = attempt.epsilon * np.minimum(attempt.steps / self.steps_to_bound, 1)
        high = np.where(attempt.is_hit, np.minimum(self.high[rows], reached), self.high[rows])
        has_failed_below = ~attempt.is_hit & np.isfinite(high)
        self.high[rows] = high
        low = self.low[rows]
        self.low[rows] = np.where(has_failed_below, np.maximum(low, attempt.epsilon), low)

    def expected_epsilon(self, rows, attempt):
        """The epsilon at which all steps together are expected to just reach the boundary."""
        steps = attempt.steps
        bound = self.steps_to_bound
        margin_at_0 = self.margin_at_0[rows]
        # An early success: the step at which the margin crossed 0, with its fraction.
        last_gain = np.maximum(attempt.gain, 1e-12)
        steps_to_0 = steps - 1 + (attempt.margin + attempt.gain) / last_gain
        crossing = self.SHORTER * attempt.epsilon * np.minimum(steps_to_0, bound) / bound
        # Else: the margin after all steps, and the line through it and the margin at 0.
        steps_left = self.BEFORE_BOUND * np.maximum(bound - steps, 0)
        steps_left = steps_left + self.AT_BOUND * (self.rule.steps - np.maximum(steps, bound))
        margin_at_end = attempt.margin - attempt.gain * steps_left
        fall = np.maximum(margin_at_0 - margin_at_end, 1e-12)
        on_line = 1.01 * attempt.epsilon * margin_at_0 / fall
        is_early_hit = attempt.is_hit & (steps <= self.LATE * bound)
        return np.where(is_early_hit, crossing, on_line)
