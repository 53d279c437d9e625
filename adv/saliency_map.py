"""The Jacobian-based saliency map attack (JSMA), which Foolbox 3 lacks, as a Foolbox 3 attack.

Papernot et al. 2016 change pairs of features by the saliency of both, computed from the gradients of all logits. This is the
fast variant of the paper's tool, Foolbox 2.3.0: one feature at a time, from the gradient of the target's logit alone.
Where implementations differ:

- Papernot et al.: pairs of features, theta 1 (to the bound at once), a limit on the share of changed features.
- ART: pairs as well, theta 0.1, each feature changed as often as it likes within gamma (share of features).
- Foolbox 2.3.0 and this one: single features, theta 0.1, each changed at most 7 times, at most 2,000 changes; an untargeted
  attack takes its target from a gradient attack and stops at any misclassification. Here a feature is chosen among those
  that can still move in the direction of their gradient; a change that could not move anything would cost a step.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eagerpy as ep
import numpy as np
from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.distances import LpDistance

from adv.adapter import Calls, chosen_logit, cross_entropy, line_search, pool

FADE = np.float32(0.93)  # what is left of a feature's gradient after a change of it, as far as a block can know; found by trial


def saliency_map(calls, x, y, target, theta=0.1, most=7, steps=2000, block=0.3, untargeted=False, bar=None):
    """Change one feature at a time, the one that raises the target's logit most, until the image is classified as wanted.

    A gradient after every change is what the attack costs. So the gradient serves for a block of changes, which is the longer the
    more there have been: after n changes it is 1 + block * n long. The last block is cut to the shortest that does, by bisection.
    tests/benchmark.py compares with a gradient for every change, which is block = 0.

    Args:
        calls: Calls. x: float32 (n, ...). y, target: the class of each image and the one to reach, (n,).
        theta: size of a change, as a fraction of the bounds. most: changes of one feature. steps: changes of one image.
        untargeted: any class but y will do; otherwise it has to be the target.

    Returns:
        adversarial images (the image itself where there is none) and success, bool (n,).
    """
    lowest, highest = calls.fmodel.bounds
    n, features = len(x), x[0].size if len(x) else 0
    change = np.float32(theta * (highest - lowest))
    fade = FADE ** np.arange(most, dtype="float32")
    current = x.reshape(n, -1).copy()
    left = np.full(current.shape, most)  # changes that a feature has left
    taken, success = np.zeros(n, "int64"), np.zeros(n, bool)
    # The last block of each image: where it began, the features in the order they are changed, where to, and how many.
    before, sign = current.copy(), np.zeros(current.shape, "int8")
    order, length = np.zeros((n, int(1 + block * steps)), "int32"), np.zeros(n, "int64")

    def reached(z, rows):
        return z.argmax(axis=1) != y[rows] if untargeted else z.argmax(axis=1) == target[rows]

    def changed(rows, length):
        """Images and times each feature is changed (rows, features), after the first `length` changes of their last block."""
        first = np.arange(length.max(initial=0)) < length[:, None]
        at = (np.arange(len(rows))[:, None] * features + order[rows, : first.shape[1]])[first]
        times = np.bincount(at, minlength=len(rows) * features).reshape(len(rows), features)
        return np.clip(before[rows] + change * (times * sign[rows]).astype("float32"), lowest, highest), times

    def step(rows):
        z, gradient = calls.gradient(current[rows].reshape(-1, *x.shape[1:]), target[rows], chosen_logit)
        gradient, success[rows] = gradient.reshape(len(rows), -1), reached(z, rows)
        room = np.where(gradient > 0, highest - current[rows], current[rows] - lowest) / change
        can = np.minimum(np.ceil(room - 1e-4), left[rows])  # changes that still move it
        saliency = np.where(can > 0, np.abs(gradient), 0)
        finished = success[rows] | (taken[rows] >= steps) | ~saliency.any(axis=1)

        rows, saliency, can = rows[~finished], saliency[~finished], can[~finished]
        if len(rows):
            wanted = np.minimum(1 + block * taken[rows], steps - taken[rows]).astype("int64")
            widest = wanted.max()
            feature = leading(saliency, widest)
            gain = np.take_along_axis(saliency, feature, axis=1)[:, :, None] * fade
            gain *= np.arange(most) < np.take_along_axis(can, feature, axis=1)[:, :, None]
            gain = gain.reshape(len(rows), -1)
            best = leading(gain, widest)
            order[rows, : best.shape[1]] = np.take_along_axis(feature, best // most, axis=1)
            length[rows] = np.minimum(wanted, (gain > 0).sum(axis=1))
            before[rows], sign[rows] = current[rows], np.sign(gradient[~finished])
            current[rows], times = changed(rows, length[rows])
            # A feature that has been moved to a bound leaves the search for good.
            at_bound = (times > 0) & ((current[rows] <= lowest) | (current[rows] >= highest))
            left[rows] = np.where(at_bound, 0, left[rows] - times)
            taken[rows] += length[rows]
        return finished

    pool(n, calls.batch, step, bar)
    short, long = np.zeros(n, "int64"), np.where(success, length, 0)
    while len(rows := np.flatnonzero(long - short > 1)):
        middle = (short[rows] + long[rows]) // 2
        trial, _ = changed(rows, middle)
        hit = reached(calls.logits(trial.reshape(-1, *x.shape[1:])), rows)
        long[rows[hit]], short[rows[~hit]] = middle[hit], middle[~hit]
        current[rows[hit]] = trial[hit]
    return np.where(success[:, None], current, x.reshape(n, -1)).reshape(x.shape), success


def leading(values, k):
    """Indices (rows, k) of the k largest of every row of values (rows, n), in descending order; all n of them if k > n."""
    top = np.argpartition(-values, k - 1, axis=1)[:, :k] if k < values.shape[1] else np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(values, top, axis=1), axis=1, kind="stable"), axis=1)


def target_classes(calls, x, y, z, gradient, seed):
    """The class that a gradient attack (L2, growing steps) lands in; where it fails, a random other one, from the seed.

    z, gradient: what calls.gradient(x, y, cross_entropy) returns.
    """
    rms = np.sqrt(np.square(gradient).mean(axis=tuple(range(1, x.ndim)), keepdims=True))
    # Only the class matters: the 1,000 sizes of a search for the smallest step would cost forward passes and not change it.
    _, success, label = line_search(calls, x, y, z, gradient, gradient / np.maximum(rms, 1e-12), coarse=100, fine=0)
    other = (y + np.random.default_rng(seed).integers(1, z.shape[1], len(y))) % z.shape[1]
    return np.where(success, label, other)


class _ChangedFeatures(LpDistance):
    """L0. Clipping to epsilon cannot shrink a number of features: a perturbation within it is kept, a larger one undone."""

    def clip_perturbation(self, references, perturbed, epsilon):
        (x, found), restore_type = ep.astensors_(references, perturbed)
        within = self(x, found) <= epsilon
        return restore_type(ep.where(within.reshape((-1, *[1] * (x.ndim - 1))), found, x))


class SaliencyMapAttack(MinimizationAttack):
    """JSMA, called like Foolbox's own attacks: attack(fmodel, images, criterion, epsilons=None).

    The distance is L0, the number of changed features; an epsilon is the most of them that count as a success.

    Args:
        theta: size of a change, as a fraction of the model's bounds.
        max_perturbations_per_pixel: changes of one feature. steps: changes of one image.
        block: changes after one gradient, as a share of those before (saliency_map); 0: a gradient for every change.
        seed: of the random target classes that an untargeted attack falls back to. batch: images in one call of the model.
    """

    distance = _ChangedFeatures(0)

    def __init__(self, theta=0.1, max_perturbations_per_pixel=7, steps=2000, block=0.3, seed=0, batch=128):
        self.theta, self.most, self.steps, self.block = theta, max_perturbations_per_pixel, steps, block
        self.seed, self.batch = seed, batch

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        """Adversarial images of the type of `inputs`; criterion: labels, Misclassification or TargetedMisclassification."""
        raise_if_kwargs(kwargs)
        images, restore_type = ep.astensor_(inputs)
        criterion = get_criterion(criterion)
        calls, x = Calls(model, images, self.batch), images.numpy()
        if isinstance(criterion, Misclassification):
            y = criterion.labels.numpy()
            target = target_classes(calls, x, y, *calls.gradient(x, y, cross_entropy), self.seed)
        elif isinstance(criterion, TargetedMisclassification):
            y = target = criterion.target_classes.numpy()
        else:
            raise ValueError(f"unsupported criterion {criterion}: use Misclassification or TargetedMisclassification")
        untargeted = isinstance(criterion, Misclassification)
        found, _ = saliency_map(calls, x, y, target, self.theta, self.most, self.steps, self.block, untargeted)
        return restore_type(ep.from_numpy(images, found))
