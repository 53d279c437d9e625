"""RayS (Chen and Gu 2020): the smallest Linf perturbation that changes a decision, from decisions.

It needs no gradients and no logits, so that a model that only hides its gradients does not defeat
it. Called by dare/adaptive.py, whose docstring compares it with other attacks.
"""

import numpy as np

from adv.model import in_full_batches, per_image


class Rays:
    """The smallest Linf perturbation along directions of +1 and -1, from decisions alone.

    Every image begins with +1 everywhere. The whole direction, its halves, its quarters and so on
    are flipped in turn. A flip that is adversarial at the present size stays, and the size is
    bisected. An image ends after `most` decisions, at the size `enough`, or where the size that is
    `wanted` of it is out of reach: it has more than REACH times that after CHECKED decisions.

    size: float64 (n,), of the perturbation; inf where no direction has changed the decision yet.
    """

    # From decision 200 to 1,000 the sizes of 97 in 100 digits fell by a factor of less than 1.5.
    CHECKED, REACH = 200, 1.5
    BISECTIONS = 7

    def __init__(self, calls, x, y, most=1000, enough=0, wanted=np.inf):
        """calls: adv.model.Calls. x: float32 (n, h, w, c), which it gets right. y: labels (n,).

        enough: a number. wanted: a number, or one for each image (n,).
        """
        n = len(x)
        self.calls, self.x, self.y = calls, x, y
        self.most, self.enough = most, enough
        self.wanted = np.broadcast_to(wanted, n)
        self.direction = np.ones(x.shape, "float32")
        self.size, self.decisions = np.full(n, np.inf), np.zeros(n, "int64")
        self.parts, self.part = np.ones(n, "int64"), np.zeros(n, "int64")  # the part flipped next

    def run(self):
        """Returns adversarial images (the image itself where there is none), success (n,)."""
        rows = np.arange(len(self.x))
        self.try_direction(rows, self.direction)
        in_full_batches(len(rows), self.calls.batch, self.step)
        success = np.isfinite(self.size)
        return self.image(rows, np.where(success, self.size, 0), self.direction), success

    def step(self, rows):
        """Flip the next part of the directions of some images; returns which are finished."""
        self.try_direction(rows, self.flip_next_part(rows))
        size, decisions = self.size[rows], self.decisions[rows]
        hopeless = (decisions >= self.CHECKED) & (size > self.REACH * self.wanted[rows])
        return (decisions >= self.most) | (size <= self.enough) | hopeless

    def flip_next_part(self, rows):
        """Directions with their next part flipped, (len(rows), h, w, c); moves on to the next."""
        direction = self.direction[rows].reshape(len(rows), -1)
        features = direction.shape[1]
        parts, part = self.parts[rows], self.part[rows]
        length = -(-features // parts)  # of a part, rounded up
        flipped = np.arange(features) // length[:, None] == part[:, None]
        last = (part + 1) * length >= features
        finest = length == 1
        self.part[rows] = np.where(last, 0, part + 1)
        self.parts[rows] = np.where(last, np.where(finest, 1, 2 * parts), parts)
        return np.where(flipped, -direction, direction).reshape(self.x[rows].shape)

    def try_direction(self, rows, direction):
        """Where it is adversarial at the present size, it stays, and the size is bisected."""
        high = np.minimum(self.size[rows], 1)
        hit = self.is_adversarial(rows, high, direction)
        rows, high, low, direction = rows[hit], high[hit], np.zeros(hit.sum()), direction[hit]
        self.direction[rows] = direction
        for _ in range(self.BISECTIONS if len(rows) else 0):
            middle = (low + high) / 2
            inside = self.is_adversarial(rows, middle, direction)
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        self.size[rows] = high

    def is_adversarial(self, rows, size, direction):
        self.decisions[rows] += 1
        return self.calls.logits(self.image(rows, size, direction)).argmax(axis=1) != self.y[rows]

    def image(self, rows, size, direction):
        change = per_image(size.astype("float32")) * direction
        return np.clip(self.x[rows] + change, 0, 1)
