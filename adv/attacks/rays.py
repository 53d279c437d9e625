"""RayS (Chen and Gu 2020): the smallest Linf perturbation that changes a decision, from decisions.

It needs no gradients and no logits, so that a model that only hides its gradients does not defeat
it. Called by adv/worst_case.py, whose docstring compares it with other attacks.
"""

import numpy as np

from adv.attacks.classifier import in_full_batches, per_image


class Rays:
    """The smallest Linf perturbation along directions of +1 and -1, from decisions alone.

    Every image begins with +1 everywhere. The whole direction, its halves, its quarters and so on
    are flipped in turn. A flip that is adversarial at the present size stays, and the size is
    bisected. An image ends after `most` decisions, at the size `enough`, or where the size that is
    `wanted` of it is out of reach: it has more than REACH times that after CHECKED decisions.

    A step asks for one decision of every image, so that batches stay full.
    """

    # From decision 200 to 1,000 the sizes of 95% of images, digits or Fashion-MNIST, fell by less
    # than this factor.
    CHECKED, REACH = 200, 1.6
    BISECTIONS = 7

    def __init__(self, calls, x, y, most=1000, enough=0, wanted=np.inf):
        """calls: adv.model.BatchedModel. x: float32 (n, h, w, c), which it gets right. y: labels (n,).

        enough: a number. wanted: a number, or one for each image (n,).
        """
        n = len(x)
        self.calls, self.x, self.y = calls, x, y
        self.most, self.enough = most, enough
        self.wanted = np.broadcast_to(wanted, n)
        # The best direction, and its size: inf where none has changed the decision yet.
        self.direction, self.size = np.ones(x.shape, "float32"), np.full(n, np.inf)
        self.decisions = np.zeros(n, "int64")
        # The bisection: below the size, and how many halvings are left.
        self.low, self.halvings = np.zeros(n), np.zeros(n, "int64")
        # What is flipped next: which part of how many; -1, none, as +1 everywhere comes first.
        self.parts, self.part = np.ones(n, "int64"), np.full(n, -1)

    def run(self):
        """Returns adversarial images (the image itself where there is none), success (n,)."""
        rows = np.arange(len(self.x))
        in_full_batches(len(rows), self.calls.batch, self.step)
        success = np.isfinite(self.size)
        return self.image(rows, self.direction, np.where(success, self.size, 0)), success

    def step(self, rows):
        """One decision for each of some images; returns which are finished."""
        bisected = self.halvings[rows] > 0
        direction = np.where(per_image(bisected), self.direction[rows], self.flipped(rows))
        present = np.minimum(self.size[rows], 1)
        size = np.where(bisected, (self.low[rows] + present) / 2, present)
        logits = self.calls.logits(self.image(rows, direction, size))
        adversarial = logits.argmax(axis=1) != self.y[rows]

        self.decisions[rows] += 1
        self.direction[rows[adversarial]] = direction[adversarial]
        self.size[rows[adversarial]] = size[adversarial]
        self.low[rows] = np.where(bisected, np.where(adversarial, self.low[rows], size), 0)
        begun = np.where(adversarial, self.BISECTIONS, 0)
        self.halvings[rows] = np.where(bisected, self.halvings[rows] - 1, begun)
        self.next_part(rows[~bisected])
        return self.finished(rows)

    def finished(self, rows):
        size, decisions = self.size[rows], self.decisions[rows]
        hopeless = (decisions >= self.CHECKED) & (size > self.REACH * self.wanted[rows])
        ended = (decisions >= self.most) | (size <= self.enough) | hopeless
        return ended & (self.halvings[rows] == 0)

    def flipped(self, rows):
        """The directions of some images with their next part flipped, (len(rows), h, w, c)."""
        direction = self.direction[rows].reshape(len(rows), -1)
        place = np.arange(direction.shape[1]) // self.length(rows)[:, None]
        flipped = np.where(place == self.part[rows, None], -direction, direction)
        return flipped.reshape(self.x[rows].shape)

    def next_part(self, rows):
        parts, part, length = self.parts[rows], self.part[rows], self.length(rows)
        last = (part + 1) * length >= self.x[0].size
        finer = np.where(length == 1, 1, 2 * parts)
        self.part[rows], self.parts[rows] = (
            np.where(last, 0, part + 1),
            np.where(last, finer, parts),
        )

    def length(self, rows):
        """Features of a part, (len(rows),)."""
        return -(-self.x[0].size // self.parts[rows])

    def image(self, rows, direction, size):
        return np.clip(self.x[rows] + per_image(size.astype("float32")) * direction, 0, 1)
