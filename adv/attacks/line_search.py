"""The smallest step along one direction that changes the decision (Foolbox 2.3.0's fgsm).

Foolbox tries 1,000 sizes in turn. Here the margin, the logit of the right class minus the largest
other one, tells which size to try next. The result is the same wherever larger steps succeed, too.
"""

import numpy as np

from adv.attacks.classifier import in_full_batches
from adv.attacks.losses import margin
from adv.attacks.perturbations import per_image


def line_search(start, direction, coarse=1000, fine=20, progress=None):
    """The smallest step along a direction that changes the decision, by forward passes only.

    The sizes are 1/coarse, 2/coarse, ..., 1 of the range of pixels. If one of the first `fine`
    succeeds, `fine` smaller sizes below it are tried as well.

    Args:
        start: StartingPoint. direction: (n, h, w, c).
        coarse, fine: numbers of sizes.
        progress: called with numbers of finished images, or None.

    Returns:
        Adversarial images, success, bool (n,), and the predicted class, -1 without success.
    """
    line = Line(start, direction)
    everyone = np.arange(len(start.x))
    unit = np.float32(1 / coarse)
    # The size at which the linearised margin is 0, in units.
    slope = np.maximum(line.range * (start.gradient * direction).sum(axis=(1, 2, 3)), 1e-12)
    grid = GridSearch(coarse, start.margin, start.margin / slope * coarse)
    line.search(grid, everyone, np.full(len(everyone), unit), progress)

    # Among the first sizes one step of `unit` is a large share of the size.
    is_small = (grid.high > 0) & (grid.high <= fine)
    small = np.flatnonzero(is_small)
    if len(small):
        fine_unit = (grid.high[small] * (unit / fine)).astype("float32")
        line.search(grid.refined(small, fine), small, fine_unit)
    return line.at(everyone, line.size), line.label >= 0, line.label


class Line:
    """Images moved along a direction, and the smallest success of each so far.

    size: float32 (n,), of the smallest success, as a share of the range of pixels; 0 without one.
    label: int (n,), the class predicted there; -1 without success.
    """

    def __init__(self, start, direction):
        self.start = start
        self.direction = direction
        self.lowest, self.highest = start.model.fmodel.bounds
        self.range = np.float32(self.highest - self.lowest)
        self.size = np.zeros(len(start.x), "float32")
        self.label = np.full(len(start.x), -1)

    def at(self, rows, size):
        """The images `rows` at a distance of `size` along the direction."""
        moved = self.start.x[rows] + self.range * per_image(size) * self.direction[rows]
        return np.clip(moved, self.lowest, self.highest)

    def search(self, grid, images, unit, progress=None):
        """Run a GridSearch for some images; unit: the size of number 1, for each of them."""

        def step(rows):
            number = grid.next_numbers(rows)
            image_rows = images[rows]
            size = unit[rows] * number.astype("float32")
            z = self.start.model.logits(self.at(image_rows, size))
            label = z.argmax(axis=1)
            y = self.start.y[image_rows]
            is_hit = label != y
            self.label[image_rows[is_hit]] = label[is_hit]
            self.size[image_rows[is_hit]] = size[is_hit]
            return grid.record(rows, number, margin(z, y), is_hit)

        in_full_batches(len(images), self.start.model.batch, step, progress)


class GridSearch:
    """The smallest of the numbers 1 .. count that succeeds, for n images.

    low: the largest number known to fail. high: the smallest known to succeed, 0 if none is.

    1. Before the first success: the guess, then twice as much each time.
    2. After it: the number at which the line through the margins at low and high crosses 0, or the
       middle, if the last number did not halve the interval.
    """

    def __init__(self, count, margin_at_0, guess=0):
        n = len(margin_at_0)
        self.count = count
        self.low = np.zeros(n, "int64")
        self.high = np.zeros(n, "int64")
        self.margin_low = margin_at_0.copy()
        self.margin_high = np.full(n, -np.inf, "float32")
        self.guess = np.clip(np.broadcast_to(guess, n), 1, count / 2)
        self.halve_next = np.zeros(n, bool)

    def refined(self, rows, count):
        """A search for some images among `count` numbers, of which the last is the one found."""
        grid = GridSearch(count, self.margin_low[rows])
        grid.low = count * self.low[rows] // self.high[rows]
        grid.high[:] = count
        grid.margin_high = self.margin_high[rows]
        return grid

    def next_numbers(self, rows):
        """The number to try next, for each of some images."""
        low = self.low[rows]
        high = self.high[rows]
        growing = np.where(low == 0, self.guess[rows], np.minimum(2 * low, self.count))
        # The zero of the line through (low, margin_low) and (high, margin_high), rounded up and put
        # strictly between low and high, so that every try narrows the interval.
        share = self.margin_low[rows] / (self.margin_low[rows] - self.margin_high[rows])
        crossing = np.ceil(low + (high - low) * share)
        crossing = np.clip(crossing, low + 1, np.maximum(high, low + 2) - 1)
        between = np.where(self.halve_next[rows], (low + high) // 2, crossing)
        return np.where(high == 0, np.ceil(growing), between).astype("int64")

    def record(self, rows, number, margin, is_hit):
        """Record what was tried; returns which images are finished."""
        width_before = self.high[rows] - self.low[rows]
        was_bracketed = self.high[rows] > 0
        self.high[rows[is_hit]] = number[is_hit]
        self.margin_high[rows[is_hit]] = margin[is_hit]
        self.low[rows[~is_hit]] = number[~is_hit]
        self.margin_low[rows[~is_hit]] = margin[~is_hit]
        low = self.low[rows]
        high = self.high[rows]
        # Interpolation can creep up from one end. Then the next try halves the interval.
        is_slow = 2 * (high - low) > width_before
        self.halve_next[rows] = was_bracketed & ~self.halve_next[rows] & is_slow
        return np.where(high > 0, high - low <= 1, low == self.count)
