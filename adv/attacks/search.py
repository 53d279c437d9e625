"""Searches for the smallest perturbation, image by image (Foolbox 2.3.0's, which the paper used).

`line_search`: the smallest size along one direction. `EpsilonSearch`: the smallest epsilon of an
attack of several steps. Both try what Foolbox tries, but use the margin, the logit of the right
class minus the largest other one, to guess which try comes next. Foolbox tries in turn.
"""

from dataclasses import dataclass

import numpy as np

from adv.attacks.classifier import in_full_batches, log_odds, margin, per_image

# ------------------------------------------------------------------------------------ line search


def line_search(start, direction, coarse=1000, fine=20, progress=None):
    """The smallest step along `direction` that changes the decision; costs forward passes only.

    Tries the sizes 1/coarse, 2/coarse ... 1 and, for a hit among the first `fine`, so many finer
    ones below it.

    Args:
        start: StartingPoint. direction: (n, h, w, c). progress: called with numbers of finished images.

    Returns:
        adversarial images, success, and the class that they are taken for (-1 without success).
    """
    line = Line(start, direction)
    slope = np.maximum((start.gradient * direction).sum(axis=(1, 2, 3)), 1e-12)
    everyone, unit = np.arange(len(start.x)), np.float32(1 / coarse)
    grid = GridSearch(coarse, start.margin, start.margin / slope * coarse)
    line.search(grid, everyone, np.full(len(everyone), unit), progress)

    again = np.flatnonzero((grid.high > 0) & (grid.high <= fine))
    if len(again):
        finer = grid.finer(again, fine)
        line.search(finer, again, (grid.high[again] * (unit / fine)).astype("float32"))
    return line.at(everyone, line.size), line.label >= 0, line.label


class Line:
    """Images on their way along a direction; the smallest success of each so far.

    size: float32 (n,), how far along, 0 without success. label: the class there, -1 without.
    """

    def __init__(self, start, direction):
        self.start, self.direction = start, direction
        self.size = np.zeros(len(start.x), "float32")
        self.label = np.full(len(start.x), -1)

    def at(self, rows, size):
        """The images `rows`, so far along."""
        return np.clip(self.start.x[rows] + per_image(size) * self.direction[rows], 0, 1)

    def search(self, grid, images, unit, progress=None):
        """GridSearch for some images; unit: size of the first step of each, (images,)."""

        def step(rows):
            number, some = grid.next_numbers(rows), images[rows]
            size = unit[rows] * number.astype("float32")
            z = self.start.calls.logits(self.at(some, size))
            label, y = z.argmax(axis=1), self.start.y[some]
            hit = label != y
            self.label[some[hit]], self.size[some[hit]] = label[hit], size[hit]
            return grid.record(rows, number, margin(z, y), hit)

        in_full_batches(len(images), self.start.calls.batch, step, progress)


class GridSearch:
    """The smallest of the numbers 1 .. count that succeeds, for n images.

    Between the largest number known to fail, `low`, and the smallest known to succeed, `high` (0:
    none yet), the next one is where the line through their margins crosses 0, or halfway where the
    last one did not halve the interval. That finds what trying all finds wherever larger numbers
    than the smallest succeed, too. Before the first success: a guess, then twice as many.
    """

    def __init__(self, count, margin_at_0, guess=0):
        n = len(margin_at_0)
        self.count = count
        self.low, self.high = np.zeros(n, "int64"), np.zeros(n, "int64")
        self.margin_low, self.margin_high = margin_at_0.copy(), np.full(n, -np.inf, "float32")
        self.guess = np.clip(np.broadcast_to(guess, n), 1, count / 2)
        self.halve = np.zeros(n, bool)

    def finer(self, rows, count):
        """The search for `rows` among `count` numbers up to the one found; the last one is it."""
        grid = GridSearch(count, self.margin_low[rows])
        grid.low = count * self.low[rows] // self.high[rows]
        grid.high[:], grid.margin_high = count, self.margin_high[rows]
        return grid

    def next_numbers(self, rows):
        """Which number to try next, for each of some images."""
        low, high = self.low[rows], self.high[rows]
        larger = np.where(low == 0, self.guess[rows], np.minimum(2 * low, self.count))
        share = self.margin_low[rows] / (self.margin_low[rows] - self.margin_high[rows])
        crossing = np.ceil(low + (high - low) * share)
        crossing = np.clip(crossing, low + 1, np.maximum(high, low + 2) - 1)
        between = np.where(self.halve[rows], (low + high) // 2, crossing)
        return np.where(high == 0, np.ceil(larger), between).astype("int64")

    def record(self, rows, number, margin, hit):
        """Note what was tried; returns which images are finished."""
        width, bracketed = self.high[rows] - self.low[rows], self.high[rows] > 0
        self.high[rows[hit]], self.margin_high[rows[hit]] = number[hit], margin[hit]
        self.low[rows[~hit]], self.margin_low[rows[~hit]] = number[~hit], margin[~hit]
        low, high = self.low[rows], self.high[rows]
        slow = 2 * (high - low) > width
        self.halve[rows] = bracketed & ~self.halve[rows] & slow
        return np.where(high > 0, high - low <= 1, low == self.count)


# ------------------------------------------------------------------------------------ over epsilon


@dataclass
class Attempt:
    """How attempts at an epsilon ended, one each for some images; arrays (images,).

    epsilon. hit: the decision changed. steps: taken. size: of the perturbation. margin: at the
    end. gain: what the last step took from the margin.
    """

    epsilon: np.ndarray
    hit: np.ndarray
    steps: np.ndarray
    size: np.ndarray
    margin: np.ndarray
    gain: np.ndarray


class EpsilonSearch:
    """The smallest perturbation of an attack whose step is a fixed share of epsilon.

    Foolbox 2.3.0 multiplies epsilon by 1.5 until the attack succeeds (20 times at most), then
    bisects 20 times. Every attempt starts from the image and ends at its first success; of all
    successes the smallest counts. Bisecting takes about 24 attempts. Here two or three do: the
    margin falls almost in proportion to epsilon, so that an attempt tells which epsilon comes next
    (`expected`). An example, with pgd, which needs 30 steps to reach epsilon:

    1. At 0.3 it succeeds after 5 steps, so at about 5/30 of 0.3. Shorter steps get there with a
       little less: the next epsilon is 0.88 of the size where the margin crossed 0.
    2. At 0.044 it fails, with a tenth of the margin left: the line through the margins at 0 and at
       the end crosses 0 at 0.049.
    3. At 0.049 it succeeds in its last steps. Nothing smaller by 5% is expected to: the end.

    What is known lies between `low`, the largest epsilon that failed, and `high`, the smallest that
    succeeded. Where the expected epsilon does not, the next is halfway, but at most 10% below
    `high`. Attacks that are not `predictable` are narrowed to 5%. An `erratic` image, whose first
    attempt failed or succeeded late, is bisected as Foolbox does: there a larger epsilon may fail
    where a smaller one succeeds. tests/test_attacks.py compares with the literal search.
    """

    START, GROWTH, GROWTHS, BISECTIONS = 0.3, 1.5, 20, 20
    TOLERANCE = 0.05
    # Found by trial on Fashion-MNIST; a wrong one costs attempts, or some percent of the size.
    SHORTER = 0.88  # of the size where longer steps crossed the boundary, shorter ones reach it
    BEFORE_BOUND = 0.7  # what a later step takes from the margin, as a share of the last one's,
    AT_BOUND = 0.2  # before and after epsilon bounds the change
    LATE = 0.8  # share of the steps to the bound, from which on a success counts as near it
    HOPELESS = 1.5  # an attempt ends if all its steps left would have to gain so much more

    def __init__(self, start, take_step, size, steps, rel_stepsize, predictable=True):
        """What every attempt begins with, and nothing known yet.

        start: StartingPoint. take_step(x, x0, gradient, epsilon) -> x. size(change) -> (n,), what epsilon
        bounds. steps: of an attempt. rel_stepsize: of a step, as a share of epsilon. predictable:
        whether the search may end where no smaller success is expected.
        """
        n, x = len(start.x), start.x
        self.calls, self.x0, self.y = start.calls, x, start.y
        self.gradient_at_0, self.margin_at_0 = start.gradient, start.margin
        self.take_step, self.size, self.steps = take_step, size, steps
        self.to_bound = round(1 / rel_stepsize)  # steps until epsilon bounds the change
        self.largest = 1 / rel_stepsize if predictable else np.inf  # every step goes to 0 or 1
        self.predictable = predictable
        # The present attempt.
        self.epsilon = np.full(n, self.START, "float32")
        self.x, self.taken = x.copy(), np.zeros(n, "int64")
        self.margin_before = self.margin_at_0.copy()
        # What is known from those before it.
        self.attempts = np.zeros(n, "int64")
        self.low, self.high = np.zeros(n, "float32"), np.full(n, np.inf, "float32")
        self.near_bound, self.erratic = np.zeros(n, bool), np.zeros(n, bool)
        self.best, self.best_size = x.copy(), np.full(n, np.inf, "float32")

    def run(self, progress=None):
        """Returns the smallest adversarial images (the image itself if there is none), success."""
        vanished = ~self.gradient_at_0.any(axis=(1, 2, 3))
        self.attempts[vanished] = self.GROWTHS  # no step moves anything, whatever epsilon
        self.move(np.arange(len(self.x)), self.gradient_at_0)
        in_full_batches(len(self.x), self.calls.batch, self.step, progress)
        return self.best, np.isfinite(self.best_size)

    def step(self, rows):
        """One step of the attempts of some images; returns which images are finished."""
        z, gradient = self.calls.gradient(self.x[rows], self.y[rows], log_odds)
        now = margin(z, self.y[rows])
        attempt = Attempt(
            epsilon=self.epsilon[rows],
            hit=z.argmax(axis=1) != self.y[rows],
            steps=self.taken[rows],
            size=self.size(self.x[rows] - self.x0[rows]),
            margin=now,
            gain=self.margin_before[rows] - now,
        )
        ended = attempt.hit | (attempt.steps >= self.steps) | self.hopeless(rows, attempt)
        self.margin_before[rows[~ended]] = now[~ended]
        self.move(rows[~ended], gradient[~ended])

        finished = ended.copy()
        attempt = Attempt(*(values[ended] for values in vars(attempt).values()))
        finished[ended] = self.choose_epsilon(rows[ended], attempt)
        self.begin_again(rows[ended & ~finished])
        return finished

    def move(self, rows, gradient):
        """Take a step; an image that it does not move has no steps left."""
        epsilon = per_image(self.epsilon[rows])
        moved = self.take_step(self.x[rows], self.x0[rows], gradient, epsilon)
        stuck = (moved == self.x[rows]).all(axis=(1, 2, 3))
        self.x[rows] = moved
        self.taken[rows] = np.where(stuck, self.steps, self.taken[rows] + 1)

    def begin_again(self, rows):
        self.x[rows], self.taken[rows] = self.x0[rows], 0
        self.margin_before[rows] = self.margin_at_0[rows]
        self.move(rows, self.gradient_at_0[rows])

    def hopeless(self, rows, attempt):
        """Attempts near the smallest epsilon whose margin will not reach 0 any more."""
        left = self.steps - attempt.steps
        far = attempt.margin > self.HOPELESS * attempt.gain * left
        near = self.near_bound[rows] & ~self.erratic[rows]
        return near & (attempt.steps > self.to_bound) & far

    def choose_epsilon(self, rows, attempt):
        """The rule of the class for attempts that have ended; returns which images are finished."""
        self.keep_smallest(rows, attempt)
        self.narrow(rows, attempt)
        expected = self.expected(rows, attempt)
        self.attempts[rows] += 1

        low, high, erratic = self.low[rows], self.high[rows], self.erratic[rows]
        target = (1 - self.TOLERANCE) * high
        growing = np.isinf(high)
        grown = (self.attempts[rows] >= self.GROWTHS) | (attempt.epsilon >= self.largest)
        none_expected = self.near_bound[rows] & ~erratic & (expected > target) & self.predictable
        finished = np.where(growing, grown, (low >= target) | none_expected)
        finished |= self.attempts[rows] >= self.GROWTHS + self.BISECTIONS

        halfway = np.maximum((low + high) / 2, np.where(erratic, 0, 0.9 * high))
        usable = ~erratic & (low < expected) & (expected < target)
        smaller = np.where(usable, expected, halfway)
        self.epsilon[rows] = np.where(growing, attempt.epsilon * self.GROWTH, smaller)
        return finished

    def keep_smallest(self, rows, attempt):
        smaller = attempt.hit & (attempt.size < self.best_size[rows])
        self.best[rows[smaller]] = self.x[rows[smaller]]
        self.best_size[rows[smaller]] = attempt.size[smaller]

    def narrow(self, rows, attempt):
        """Update low, high, near_bound and erratic."""
        first_hit = attempt.hit & np.isinf(self.high[rows])
        late = (self.attempts[rows] > 0) | (attempt.steps > self.to_bound)
        self.erratic[rows] |= first_hit & late
        near = attempt.steps > self.LATE * self.to_bound
        self.near_bound[rows] |= attempt.hit & ~first_hit & near
        reached = attempt.epsilon * np.minimum(attempt.steps / self.to_bound, 1)
        high = np.where(attempt.hit, np.minimum(self.high[rows], reached), self.high[rows])
        failed = ~attempt.hit & np.isfinite(high)
        self.high[rows] = high
        low = self.low[rows]
        self.low[rows] = np.where(failed, np.maximum(low, attempt.epsilon), low)

    def expected(self, rows, attempt):
        """The epsilon at which all steps together are expected to just reach the boundary."""
        steps, to_bound, at_0 = attempt.steps, self.to_bound, self.margin_at_0[rows]
        before = steps - 1 + (attempt.margin + attempt.gain) / np.maximum(attempt.gain, 1e-12)
        crossing = self.SHORTER * attempt.epsilon * np.minimum(before, to_bound) / to_bound
        left = self.BEFORE_BOUND * np.maximum(to_bound - steps, 0)
        left = left + self.AT_BOUND * (self.steps - np.maximum(steps, to_bound))
        end = attempt.margin - attempt.gain * left
        on_line = 1.01 * attempt.epsilon * at_0 / np.maximum(at_0 - end, 1e-12)
        return np.where(attempt.hit & (steps <= self.LATE * to_bound), crossing, on_line)
