"""The Jacobian-based saliency map attack (JSMA), which Foolbox 3 lacks, as a Foolbox 3 attack.

Papernot et al. (2016) change pairs of features by the saliency of both, computed from the gradients
of all logits. This is the faster variant of the paper's tool, Foolbox 2.3.0: one feature at a time,
by the gradient of the target's logit. Implementations differ:

- Papernot et al.: pairs of features, theta 1 (straight to the bound), a limit on the share of
  changed features.
- ART: pairs too, theta 0.1, any number of changes of a feature within gamma (share of features).
- Foolbox 2.3.0 and this one: single features, theta 0.1, at most 7 changes of a feature and 2,000
  in all. An untargeted attack takes its target from a gradient attack and ends at any
  misclassification. Here features that cannot move in the direction of their gradient are passed
  over, because a change that moves nothing would cost a step.
"""

from dataclasses import dataclass

import eagerpy as ep
import numpy as np
from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.distances import LpDistance

from adv.attacks.classifier import BatchedModel, StartingPoint, in_full_batches
from adv.attacks.losses import chosen_logit
from adv.attacks.search import along

# Changes of one feature in a block. With one, changes are spread over too many features. With three
# or more, features are changed further after others have become more salient.
CHANGES_IN_A_ROW = 2
# Images on which blocks fail are tried again with blocks that are this many times shorter.
SECOND_TRY = 5


@dataclass
class SaliencyMapSettings:
    """Settings of JSMA.

    theta: size of a change, as a share of the model's bounds.
    max_changes: of one feature.
    steps: changes of one image.
    block: changes after one gradient, as a share of those before; 0: a gradient for every change.
    is_untargeted: any class but the image's own will do; else it has to be the target.
    """

    theta: float = 0.1
    max_changes: int = 7
    steps: int = 2000
    block: float = 0.05
    is_untargeted: bool = False


def jsma(start, steps=None, progress=None):
    """JSMA towards the class that a gradient attack reaches; any misclassification ends it.

    Returns adversarial images, where the attack failed the image itself, and success, bool (n,).
    """
    settings = SaliencyMapSettings(steps=steps or 2000, is_untargeted=True)
    return saliency_map(start.model, start.x, start.y, target_classes(start), settings, progress)


def saliency_map(model, x, y, target, settings, progress=None):
    """Increase the target's logit, one feature at a time, until the image is misclassified.

    Args:
        model: BatchedModel. x: float32 (n, ...).
        y, target: the class of each image and the one to reach, int (n,).
        settings: SaliencyMapSettings.
        progress: called with the work done since the last call, in images, or None.

    Returns:
        Adversarial images, where the attack failed the image itself, and success, bool (n,).
    """

    def run(rows, block, progress=None):
        state = SaliencyMap(model, x[rows], y[rows], target[rows], settings, block)
        in_full_batches(len(rows), model.batch, state.step, progress, state.share_done)
        return state.result()

    adversarial, success = run(np.arange(len(x)), settings.block, progress)
    # Long blocks can miss a success that shorter ones reach.
    failed = np.flatnonzero(~success)
    if settings.block and len(failed):
        adversarial[failed], success[failed] = run(failed, settings.block / SECOND_TRY)
    return adversarial, success


class SaliencyMap:
    """JSMA on n images at once, each at its own pace. Features are flattened, (n, features).

    A gradient for every change is what the attack costs. Here one gradient serves a block of
    changes: CHANGES_IN_A_ROW of every feature, the most salient first. The block is `block` times
    as long as the changes so far, so that the first changes have a gradient each. Of the last block
    only what the success needs is kept.
    """

    def __init__(self, model, x, y, target, settings, block):
        """block: of SaliencyMapSettings, or shorter. The others as in `saliency_map`."""
        n = len(x)
        self.model = model
        self.shape = x.shape[1:]
        self.y = y
        self.target = target
        self.settings = settings
        self.block = block
        self.lowest, self.highest = model.fmodel.bounds
        self.size = np.float32(settings.theta * (self.highest - self.lowest))  # of a change
        self.original = self.flat(x)
        self.x = self.flat(x).copy()
        self.changes_left = np.full(self.x.shape, settings.max_changes)  # of each feature
        self.changes = np.zeros(n, "int64")
        self.success = np.zeros(n, bool)
        # The last block of each image: the image before it, its features in order, the signed
        # change of each, how often each may change, and its length in changes.
        max_length = self.block_length(settings.steps)
        max_features = int(min(-(-max_length // CHANGES_IN_A_ROW), self.x.shape[1]))
        self.x_before = self.x.copy()
        self.features = np.zeros((n, max_features), "int64")
        self.change = np.zeros((n, max_features), "float32")
        self.max_times = np.zeros((n, max_features), "int64")
        self.length = np.zeros(n, "int64")

    def flat(self, x):
        """Images as rows of features."""
        return x.reshape(len(x), int(np.prod(self.shape)))

    def block_length(self, changes):
        """Changes that the next gradient serves, after so many changes."""
        return np.maximum(1, self.block * changes).astype("int64")

    def is_reached(self, z, rows):
        """Which images are classified as wanted, by their logits z."""
        predicted = z.argmax(axis=1)
        if self.settings.is_untargeted:
            return predicted != self.y[rows]
        return predicted == self.target[rows]

    def share_done(self, rows):
        """An estimate for progress; successes before the last change make it too low."""
        return np.minimum(self.changes[rows] / self.settings.steps, 0.95)

    def step(self, rows):
        """A gradient and the block of changes that it serves; returns which are finished."""
        images = self.x[rows].reshape(-1, *self.shape)
        z, gradient = self.model.gradient(images, self.target[rows], chosen_logit)
        gradient = self.flat(gradient)
        # A feature that cannot move has saliency 0, and is never chosen.
        saliency = np.where(self.is_movable(rows, gradient), np.abs(gradient), 0)
        self.success[rows] = self.is_reached(z, rows)
        is_exhausted = (self.changes[rows] >= self.settings.steps) | ~saliency.any(axis=1)
        finished = self.success[rows] | is_exhausted
        if not finished.all():
            self.change_block(rows[~finished], saliency[~finished], np.sign(gradient[~finished]))
        return finished

    def is_movable(self, rows, gradient):
        """Which features have changes left, and room in the direction of their gradient."""
        x = self.x[rows]
        room = np.where(gradient > 0, self.highest - x, x - self.lowest)
        return (self.changes_left[rows] > 0) & (room > 1e-4 * self.size)

    def change_block(self, rows, saliency, sign):
        """Change the most salient features of each image, in the direction of `sign`."""
        changes_left = self.settings.steps - self.changes[rows]
        length = np.minimum(self.block_length(self.changes[rows]), changes_left)
        width = min(-(-length.max() // CHANGES_IN_A_ROW), saliency.shape[1])
        features = most_salient(saliency, width)
        is_salient = np.take_along_axis(saliency, features, axis=1) > 0
        times_left = np.take_along_axis(self.changes_left[rows], features, axis=1)
        place = rows, slice(features.shape[1])
        self.features[place] = features
        self.max_times[place] = np.where(is_salient, times_left, 0)
        self.change[place] = self.size * np.take_along_axis(sign, features, axis=1)
        self.x_before[rows] = self.x[rows]
        self.length[rows] = length
        self.x[rows], times = self.after(rows, length)
        self.changes[rows] += times.sum(axis=1)
        self.count_changes(rows, features, times)

    def after(self, rows, length):
        """The images after the first `length` changes of their last block.

        Returns them, and how often each feature of the block was changed, (images, features).
        """
        width = min(-(-length.max(initial=0) // CHANGES_IN_A_ROW), self.features.shape[1])
        features = self.features[rows, :width]
        first_change = CHANGES_IN_A_ROW * np.arange(width)  # of each feature, in the block
        times = np.clip(length[:, None] - first_change, 0, CHANGES_IN_A_ROW)
        times = np.minimum(times, self.max_times[rows, :width])
        images = self.x_before[rows]
        moved = np.take_along_axis(images, features, axis=1) + self.change[rows, :width] * times
        moved = np.clip(moved, self.lowest, self.highest).astype("float32")
        np.put_along_axis(images, features, moved, axis=1)
        return images, times

    def count_changes(self, rows, features, times):
        """Count the changes of features. One that has reached a bound is not changed again."""
        changed = np.take_along_axis(self.x[rows], features, axis=1)
        is_at_bound = (times > 0) & ((changed <= self.lowest) | (changed >= self.highest))
        changes_left = self.changes_left[rows]
        remaining = np.take_along_axis(changes_left, features, axis=1) - times
        np.put_along_axis(changes_left, features, np.where(is_at_bound, 0, remaining), axis=1)
        self.changes_left[rows] = changes_left

    def result(self):
        """Adversarial images, where the attack failed the image itself, and success."""
        self.shorten_last_block()
        adversarial = np.where(self.success[:, None], self.x, self.original)
        return adversarial.reshape(-1, *self.shape), self.success

    def shorten_last_block(self):
        """Cut the last block of each success to the shortest that succeeds, by bisection."""
        fails = np.zeros_like(self.length)
        succeeds = np.where(self.success, self.length, 0)
        while len(rows := np.flatnonzero(succeeds - fails > 1)):
            middle = (fails[rows] + succeeds[rows]) // 2
            trial, _ = self.after(rows, middle)
            is_hit = self.is_reached(self.model.logits(trial.reshape(-1, *self.shape)), rows)
            succeeds[rows[is_hit]] = middle[is_hit]
            fails[rows[~is_hit]] = middle[~is_hit]
            self.x[rows[is_hit]] = trial[is_hit]


def most_salient(saliency, k):
    """Indices (rows, k) of the k largest values of every row, the largest first."""
    top = np.argpartition(-saliency, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(saliency, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def target_classes(start):
    """The classes that a gradient attack (L2, growing steps) reaches from a StartingPoint.

    Where it fails, a random other class. Returns int (n,).
    """
    axes = tuple(range(1, start.x.ndim))
    rms = np.sqrt(np.square(start.gradient).mean(axis=axes, keepdims=True))
    direction = start.gradient / np.maximum(rms, 1e-12)
    adversarial, success = along(start, direction)
    label = start.model.logits(adversarial).argmax(axis=1)
    classes = start.logits.shape[1]
    shift = np.random.default_rng(start.seed).integers(1, classes, len(start.y))
    return np.where(success, label, (start.y + shift) % classes)


# ---------------------------------------------------------------------------- as a Foolbox attack


class _ChangedFeatures(LpDistance):
    """L0, the number of changed features.

    Clipping to epsilon cannot reduce it, so a perturbation is kept within epsilon and undone
    beyond.
    """

    def clip_perturbation(self, references, perturbed, epsilon):
        (x, adversarial), restore_type = ep.astensors_(references, perturbed)
        within = self(x, adversarial) <= epsilon
        return restore_type(ep.where(within.reshape((-1, *[1] * (x.ndim - 1))), adversarial, x))


class SaliencyMapAttack(MinimizationAttack):
    """JSMA, called like Foolbox's own attacks: attack(fmodel, images, criterion, epsilons=None).

    The distance is L0; epsilon is the largest number of changed features that counts as a success.

    Args:
        theta: size of a change, as a share of the model's bounds.
        max_perturbations_per_pixel: changes of one feature. steps: changes of one image.
        block: changes after one gradient, as a share of those before; 0: a gradient for every one.
        seed: of random target classes. batch: images in one call of the model.
    """

    distance = _ChangedFeatures(0)

    def __init__(
        self, theta=0.1, max_perturbations_per_pixel=7, steps=2000, block=0.05, seed=0, batch=128
    ):
        self.settings = SaliencyMapSettings(theta, max_perturbations_per_pixel, steps, block)
        self.seed = seed
        self.batch = batch

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        """Adversarial images of the type of `inputs`.

        criterion: labels, Misclassification or TargetedMisclassification; ValueError otherwise.
        """
        raise_if_kwargs(kwargs)
        images, restore_type = ep.astensor_(inputs)
        criterion = get_criterion(criterion)
        batched_model = BatchedModel(model, images, self.batch)
        x = images.numpy()
        self.settings.is_untargeted = isinstance(criterion, Misclassification)
        if self.settings.is_untargeted:
            y = criterion.labels.numpy()
            target = target_classes(StartingPoint.at(batched_model, x, y, self.seed))
        elif isinstance(criterion, TargetedMisclassification):
            y = target = criterion.target_classes.numpy()
        else:
            raise ValueError(
                f"unsupported criterion {criterion}: use Misclassification or "
                f"TargetedMisclassification"
            )
        adversarial, _ = saliency_map(batched_model, x, y, target, self.settings)
        return restore_type(ep.from_numpy(images, adversarial))
