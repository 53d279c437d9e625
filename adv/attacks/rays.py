"""RayS (Chen and Gu 2020): the smallest Linf perturbation that changes a decision, from decisions.

It needs neither gradients nor logits, so a model that only hides its gradients does not defeat it.
worst_case.py uses it.
"""

import numpy as np

from adv.attacks.classifier import in_full_batches
from adv.attacks.losses import per_image


class Rays:
    """The smallest perturbation along directions of +1 and -1, for n images.

    1. Every image begins with +1 everywhere.
    2. The whole direction, its halves, its quarters and so on are flipped in turn.
    3. A flip that is adversarial at the present size is kept, and the size is bisected.

    A step makes one query per image, so that batches stay full. The search for an image ends after
    `max_decisions` queries, once its size is at most `enough`, or once `needed` is out of reach:
    after CHECKED queries the size is still more than GIVE_UP times `needed`.
    """

    # From query 200 to 1,000 the sizes of 95% of images, on digits and on Fashion-MNIST, fell by
    # less than this factor.
    CHECKED = 200
    GIVE_UP = 1.6
    BISECTIONS = 7

    def __init__(self, model, x, y, max_decisions=1000, enough=0, needed=np.inf):
        """model: BatchedModel. x: float32 (n, h, w, c) that it gets right. y: labels (n,).

        needed: a number, or one for each image (n,).
        """
        n = len(x)
        self.model = model
        self.x = x
        self.y = y
        self.max_decisions = max_decisions
        self.enough = enough
        self.needed = np.broadcast_to(needed, n)
        # The best direction and its size, which is inf until one has changed the decision.
        self.direction = np.ones(x.shape, "float32")
        self.size = np.full(n, np.inf)
        self.decisions = np.zeros(n, "int64")
        # The bisection: a size that fails, and how many halvings remain.
        self.size_low = np.zeros(n)
        self.halvings = np.zeros(n, "int64")
        # The next flip: which part of how many; -1 is no flip, for +1 everywhere.
        self.parts = np.ones(n, "int64")
        self.part = np.full(n, -1)

    def run(self):
        """Returns adversarial images (else the image itself) and success, bool (n,)."""
        rows = np.arange(len(self.x))
        in_full_batches(len(rows), self.model.batch, self.step)
        success = np.isfinite(self.size)
        return self.image(rows, self.direction, np.where(success, self.size, 0)), success

    def step(self, rows):
        """One decision for each of some images; returns which are finished."""
        is_bisected = self.halvings[rows] > 0
        direction = np.where(per_image(is_bisected), self.direction[rows], self.flipped(rows))
        present_size = np.minimum(self.size[rows], 1)
        size = np.where(is_bisected, (self.size_low[rows] + present_size) / 2, present_size)
        logits = self.model.logits(self.image(rows, direction, size))
        is_adversarial = logits.argmax(axis=1) != self.y[rows]

        self.decisions[rows] += 1
        self.direction[rows[is_adversarial]] = direction[is_adversarial]
        self.size[rows[is_adversarial]] = size[is_adversarial]
        size_low = np.where(is_adversarial, self.size_low[rows], size)
        self.size_low[rows] = np.where(is_bisected, size_low, 0)
        new_halvings = np.where(is_adversarial, self.BISECTIONS, 0)
        self.halvings[rows] = np.where(is_bisected, self.halvings[rows] - 1, new_halvings)
        self.next_part(rows[~is_bisected])
        return self.is_finished(rows)

    def is_finished(self, rows):
        size = self.size[rows]
        decisions = self.decisions[rows]
        is_out_of_reach = (decisions >= self.CHECKED) & (size > self.GIVE_UP * self.needed[rows])
        is_over = (decisions >= self.max_decisions) | (size <= self.enough)
        return (is_over | is_out_of_reach) & (self.halvings[rows] == 0)

    def flipped(self, rows):
        """The directions of some images with their next part flipped, (images, h, w, c)."""
        direction = self.direction[rows].reshape(len(rows), -1)
        part_of_feature = np.arange(direction.shape[1]) // self.part_length(rows)[:, None]
        flipped = np.where(part_of_feature == self.part[rows, None], -direction, direction)
        return flipped.reshape(self.x[rows].shape)

    def next_part(self, rows):
        """Go on to the next part, or after the last one to parts of half the length."""
        parts = self.parts[rows]
        part = self.part[rows]
        length = self.part_length(rows)
        is_last = (part + 1) * length >= self.x[0].size
        more_parts = np.where(length == 1, 1, 2 * parts)
        self.part[rows] = np.where(is_last, 0, part + 1)
        self.parts[rows] = np.where(is_last, more_parts, parts)

    def part_length(self, rows):
        """Features in a part, (images,)."""
        return -(-self.x[0].size // self.parts[rows])

    def image(self, rows, direction, size):
        return np.clip(self.x[rows] + per_image(size.astype("float32")) * direction, 0, 1)
