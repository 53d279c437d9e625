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

from adv.adapter import Calls, chosen_logit, cross_entropy, line_search, margin, pool


def saliency_map(calls, x, y, target, theta=0.1, most=7, steps=2000, patience=300, untargeted=False, bar=None):
    """Change one feature at a time, the one that raises the target's logit most, until the image is classified as wanted.

    Args:
        calls: Calls. x: float32 (n, ...). y, target: the class of each image and the one to reach, (n,).
        theta: size of a change, as a fraction of the bounds. most: changes of one feature. steps: changes of one image.
        patience: an image that has come no closer for so many changes is given up; None never does. Raising the target's
            logit often raises that of the right class more, and then no number of changes helps; of 96 images of Fashion-MNIST
            none that succeeded within 1,500 changes came closer later than 200 after the last time.
        untargeted: any class but y will do; otherwise it has to be the target.

    Returns:
        adversarial images (the image itself where there is none) and success, bool (n,).
    """
    lowest, highest = calls.fmodel.bounds
    current = x.reshape(len(x), -1).copy()
    times = np.zeros(current.shape, "uint16")
    taken, success = np.zeros(len(x), "int64"), np.zeros(len(x), bool)
    change = np.float32(theta * (highest - lowest))
    closest, since = np.full(len(x), np.inf), np.zeros(len(x), "int64")

    def step(rows):
        z, gradient = calls.gradient(current[rows].reshape(-1, *x.shape[1:]), target[rows], chosen_logit)
        predicted = z.argmax(axis=1)
        success[rows] = predicted != y[rows] if untargeted else predicted == target[rows]
        left = margin(z, y[rows]) if untargeted else -margin(z, target[rows])
        closer = left < closest[rows] - 1e-3
        since[rows] = np.where(closer, 0, since[rows] + 1)
        closest[rows[closer]] = left[closer]
        gradient = gradient.reshape(len(rows), -1)
        movable = np.where(gradient > 0, current[rows] < highest, current[rows] > lowest) & (times[rows] < most)
        saliency = np.where(movable, np.abs(gradient), 0)
        feature = saliency.argmax(axis=1)
        at = np.arange(len(rows))
        finished = success[rows] | (taken[rows] >= steps) | (since[rows] >= (patience or steps)) | (saliency[at, feature] == 0)
        rows, feature, sign = rows[~finished], feature[~finished], np.sign(gradient[at, feature])[~finished]
        moved = np.clip(current[rows, feature] + change * sign, lowest, highest)
        current[rows, feature] = moved
        # A feature that has reached a bound leaves the search for good.
        times[rows, feature] = np.where((moved <= lowest) | (moved >= highest), most, times[rows, feature] + 1)
        taken[rows] += 1
        return finished

    pool(len(x), calls.batch, step, bar)
    result = np.where(success[:, None], current, x.reshape(len(x), -1))
    return result.reshape(x.shape), success


def target_classes(calls, x, y, seed):
    """The class that a gradient attack (L2, growing steps) lands in; where it fails, a random other one, from the seed."""
    z, gradient = calls.gradient(x, y, cross_entropy)
    rms = np.sqrt(np.square(gradient).mean(axis=tuple(range(1, x.ndim)), keepdims=True))
    _, success, label = line_search(calls, x, y, z, gradient, gradient / np.maximum(rms, 1e-12))
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
        seed: of the random target classes that an untargeted attack falls back to.
        patience: as in saliency_map. batch: images in one call of the model.
    """

    distance = _ChangedFeatures(0)

    def __init__(self, theta=0.1, max_perturbations_per_pixel=7, steps=2000, seed=0, patience=300, batch=128):
        self.theta, self.most, self.steps, self.patience = theta, max_perturbations_per_pixel, steps, patience
        self.seed, self.batch = seed, batch

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        """Adversarial images of the type of `inputs`; criterion: labels, Misclassification or TargetedMisclassification."""
        raise_if_kwargs(kwargs)
        images, restore_type = ep.astensor_(inputs)
        criterion = get_criterion(criterion)
        calls, x = Calls(model, images, self.batch), images.numpy()
        if isinstance(criterion, Misclassification):
            y = criterion.labels.numpy()
            target = target_classes(calls, x, y, self.seed)
        elif isinstance(criterion, TargetedMisclassification):
            y = target = criterion.target_classes.numpy()
        else:
            raise ValueError(f"unsupported criterion {criterion}: use Misclassification or TargetedMisclassification")
        untargeted = isinstance(criterion, Misclassification)
        found, _ = saliency_map(calls, x, y, target, self.theta, self.most, self.steps, self.patience, untargeted)
        return restore_type(ep.from_numpy(images, found))
