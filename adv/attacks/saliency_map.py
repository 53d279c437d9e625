"""The Jacobian-based saliency map attack (JSMA), which Foolbox 3 lacks, as a Foolbox 3 attack.

Papernot et al. 2016 change pairs of features by the saliency of both, computed from the gradients
of all logits. This is the fast variant of the paper's tool, Foolbox 2.3.0: one feature at a time,
from the gradient of the target's logit alone. Where implementations differ:

- Papernot et al.: pairs of features, theta 1 (to the bound at once), a limit on the share of
  changed features.
- ART: pairs as well, theta 0.1, each feature changed as often as it likes within gamma (share of
  features).
- Foolbox 2.3.0 and this one: single features, theta 0.1, each changed at most 7 times, at most
  2,000 changes; an untargeted attack takes its target from a gradient attack and stops at any
  misclassification. Here a feature is chosen among those that can still move in the direction of
  their gradient; a change that could not move anything would cost a step.
"""

import eagerpy as ep
import numpy as np
from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.distances import LpDistance

from adv.attacks.classifier import BatchedModel, StartingPoint, chosen_logit, in_full_batches
from adv.attacks.search import line_search

# Changes of one feature in a block. With one, changes are spread over too many features; with three
# or more, features go on to be changed after others have become better.
IN_A_ROW = 2
# An image on which blocks fail is tried again with blocks so many times shorter: a few fail only
# because of them.
SECOND_TRY = 5


def saliency_map(
    calls, x, y, target,
    theta=0.1, max_changes=7, steps=2000, block=0.05, untargeted=False, progress=None,
):  # fmt: skip
    """Raise the target's logit, one feature at a time, until the image is classified as wanted.

    Args:
        calls: BatchedModel. x: float32 (n, ...). y, target: the class of each image and the one to reach,
            int (n,).
        theta: size of a change, as a fraction of the bounds. max_changes: of one feature.
        steps: changes of one image. block: see SaliencyMap; 0: a gradient for every change.
        untargeted: any class but y will do; otherwise it has to be the target.
        progress: called with numbers of finished images.

    Returns:
        adversarial images (the image itself where there is none) and success, bool (n,).
    """

    def run(rows, block, progress=None):
        settings = theta, max_changes, steps, block, untargeted
        state = SaliencyMap(calls, x[rows], y[rows], target[rows], *settings)
        in_full_batches(len(rows), calls.batch, state.step, progress)
        return state.result()

    found, success = run(np.arange(len(x)), block, progress)
    failed = np.flatnonzero(~success)
    if block and len(failed):
        found[failed], success[failed] = run(failed, block / SECOND_TRY)
    return found, success


class SaliencyMap:
    """JSMA on n images at once, each at its own pace; features are flattened, (n, features).

    A gradient for every change is what the attack costs. So one gradient serves for a block of
    changes: IN_A_ROW of every feature, the most salient feature first. A block is as long as
    `block` times the changes so far: while there are few, one change decides which comes next, and
    each has a gradient of its own. Of the last block only as much is kept as the success needs.
    """

    def __init__(self, calls, x, y, target, theta, max_changes, steps, block, untargeted):
        self.calls, self.shape, self.y, self.target = calls, x.shape[1:], y, target
        self.lowest, self.highest = calls.fmodel.bounds
        self.size = np.float32(theta * (self.highest - self.lowest))  # of a change
        self.steps, self.block, self.untargeted = steps, block, untargeted
        n = len(x)
        self.original, self.perturbed = self.flat(x), self.flat(x).copy()
        self.changes_left = np.full(self.perturbed.shape, max_changes)  # of each feature
        self.changes, self.success = np.zeros(n, "int64"), np.zeros(n, bool)
        # The last block of each image: where it began; its features in order, the signed change of
        # each, and the most changes of it.
        self.before = self.perturbed.copy()
        longest = int(min(-(-self.block_length(steps) // IN_A_ROW), self.perturbed.shape[1]))
        self.features = np.zeros((n, longest), "int64")
        self.change = np.zeros((n, longest), "float32")
        self.most = np.zeros((n, longest), "int64")
        self.length = np.zeros(n, "int64")

    def flat(self, x):
        return x.reshape(len(x), int(np.prod(self.shape)))

    def block_length(self, changes):
        return np.maximum(1, self.block * changes).astype("int64")

    def reached(self, z, rows):
        """Which images are classified as wanted, from their logits."""
        predicted = z.argmax(axis=1)
        return predicted != self.y[rows] if self.untargeted else predicted == self.target[rows]

    def step(self, rows):
        """A gradient and the block of changes it serves for; returns which images are finished."""
        images = self.perturbed[rows].reshape(-1, *self.shape)
        z, gradient = self.calls.gradient(images, self.target[rows], chosen_logit)
        gradient = self.flat(gradient)
        saliency = np.where(self.movable(rows, gradient), np.abs(gradient), 0)
        self.success[rows] = self.reached(z, rows)
        exhausted = (self.changes[rows] >= self.steps) | ~saliency.any(axis=1)
        finished = self.success[rows] | exhausted
        if not finished.all():
            self.change_block(rows[~finished], saliency[~finished], np.sign(gradient[~finished]))
        return finished

    def movable(self, rows, gradient):
        """Which features have changes left and room in the direction of their gradient."""
        x = self.perturbed[rows]
        room = np.where(gradient > 0, self.highest - x, x - self.lowest)
        return (self.changes_left[rows] > 0) & (room > 1e-4 * self.size)

    def change_block(self, rows, saliency, sign):
        """Change the most salient features of each image."""
        length = np.minimum(self.block_length(self.changes[rows]), self.steps - self.changes[rows])
        widest = min(-(-length.max() // IN_A_ROW), saliency.shape[1])
        features = most_salient(saliency, widest)
        still = np.take_along_axis(saliency, features, axis=1) > 0
        left = np.take_along_axis(self.changes_left[rows], features, axis=1)
        block = rows, slice(features.shape[1])
        self.features[block], self.most[block] = features, np.where(still, left, 0)
        self.change[block] = self.size * np.take_along_axis(sign, features, axis=1)
        self.before[rows], self.length[rows] = self.perturbed[rows], length
        self.perturbed[rows], times = self.after(rows, length)
        self.changes[rows] += times.sum(axis=1)
        self.count_changes(rows, features, times)

    def after(self, rows, length):
        """The images after the first `length` changes of their last block.

        And how often each feature of the block was changed.
        """
        widest = min(-(-length.max(initial=0) // IN_A_ROW), self.features.shape[1])
        features, change = self.features[rows, :widest], self.change[rows, :widest]
        times = np.clip(length[:, None] - IN_A_ROW * np.arange(widest), 0, IN_A_ROW)
        times = np.minimum(times, self.most[rows, :widest])
        images = self.before[rows]
        moved = np.take_along_axis(images, features, axis=1) + change * times
        moved = np.clip(moved, self.lowest, self.highest).astype("float32")
        np.put_along_axis(images, features, moved, axis=1)
        return images, times

    def count_changes(self, rows, features, times):
        """Count the changes of features; one that was moved to a bound leaves the search."""
        x, left = self.perturbed[rows], self.changes_left[rows]
        changed = np.take_along_axis(x, features, axis=1)
        at_bound = (times > 0) & ((changed <= self.lowest) | (changed >= self.highest))
        remaining = np.take_along_axis(left, features, axis=1) - times
        np.put_along_axis(left, features, np.where(at_bound, 0, remaining), axis=1)
        self.changes_left[rows] = left

    def result(self):
        """Adversarial images, the image itself where there is none, and success."""
        self.shorten_last_block()
        found = np.where(self.success[:, None], self.perturbed, self.original)
        return found.reshape(-1, *self.shape), self.success

    def shorten_last_block(self):
        """Cut the last block of each success to the shortest that succeeds, by bisection."""
        fails, succeeds = np.zeros_like(self.length), np.where(self.success, self.length, 0)
        while len(rows := np.flatnonzero(succeeds - fails > 1)):
            middle = (fails[rows] + succeeds[rows]) // 2
            trial, _ = self.after(rows, middle)
            hit = self.reached(self.calls.logits(trial.reshape(-1, *self.shape)), rows)
            succeeds[rows[hit]], fails[rows[~hit]] = middle[hit], middle[~hit]
            self.perturbed[rows[hit]] = trial[hit]


def most_salient(saliency, k):
    """Indices (rows, k) of the k largest of every row of saliency (rows, n), the largest first."""
    top = np.argpartition(-saliency, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(saliency, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def target_classes(start):
    """The class that a gradient attack (L2, growing steps) lands in, for the images of a StartingPoint.

    Where that attack fails: a random other class, from the seed. Returns int (n,).
    """
    axes = tuple(range(1, start.x.ndim))
    rms = np.sqrt(np.square(start.gradient).mean(axis=axes, keepdims=True))
    # Only the class matters: 100 sizes find the same one as the 1,000 of a search for the smallest.
    direction = start.gradient / np.maximum(rms, 1e-12)
    _, success, label = line_search(start, direction, coarse=100, fine=0)
    classes = start.logits.shape[1]
    shift = np.random.default_rng(start.seed).integers(1, classes, len(start.y))
    return np.where(success, label, (start.y + shift) % classes)


class _ChangedFeatures(LpDistance):
    """L0. Clipping to epsilon cannot shrink a number of features, so that it keeps or undoes all.

    A perturbation within epsilon is kept, a larger one undone.
    """

    def clip_perturbation(self, references, perturbed, epsilon):
        (x, found), restore_type = ep.astensors_(references, perturbed)
        within = self(x, found) <= epsilon
        return restore_type(ep.where(within.reshape((-1, *[1] * (x.ndim - 1))), found, x))


class SaliencyMapAttack(MinimizationAttack):
    """JSMA, called like Foolbox's own attacks: attack(fmodel, images, criterion, epsilons=None).

    The distance is L0, the number of changed features; an epsilon is the most of them that count as
    a success.

    Args:
        theta: size of a change, as a fraction of the model's bounds.
        max_perturbations_per_pixel: changes of one feature. steps: changes of one image.
        block: changes after one gradient, as a share of those before; 0: a gradient for every one.
        seed: of the random target classes that an untargeted attack falls back to.
        batch: images in one call of the model.
    """

    distance = _ChangedFeatures(0)

    def __init__(
        self, theta=0.1, max_perturbations_per_pixel=7, steps=2000, block=0.05, seed=0, batch=128
    ):
        self.theta, self.max_changes = theta, max_perturbations_per_pixel
        self.steps, self.block, self.seed, self.batch = steps, block, seed, batch

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        """Adversarial images of the type of `inputs`.

        criterion: labels, Misclassification or TargetedMisclassification; ValueError otherwise.
        """
        raise_if_kwargs(kwargs)
        images, restore_type = ep.astensor_(inputs)
        criterion = get_criterion(criterion)
        calls, x = BatchedModel(model, images, self.batch), images.numpy()
        untargeted = isinstance(criterion, Misclassification)
        if untargeted:
            y = criterion.labels.numpy()
            target = target_classes(StartingPoint.at(calls, x, y, self.seed))
        elif isinstance(criterion, TargetedMisclassification):
            y = target = criterion.target_classes.numpy()
        else:
            raise ValueError(
                f"unsupported criterion {criterion}: use Misclassification or "
                f"TargetedMisclassification"
            )
        found, _ = saliency_map(
            calls, x, y, target, self.theta, self.max_changes, self.steps, self.block, untargeted
        )
        return restore_type(ep.from_numpy(images, found))
