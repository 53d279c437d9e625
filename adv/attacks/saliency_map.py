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

import eagerpy as ep
import numpy as np
from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.distances import LpDistance

from adv.attacks.classifier import BatchedModel, StartingPoint, in_full_batches
from adv.attacks.losses import chosen_logit, per_image
from adv.attacks.search import along


def jsma(start, steps=None, progress=None, **settings):
    """JSMA towards the class that a gradient attack reaches; any misclassification ends it.

    Returns adversarial images, where the attack failed the image itself, and success, bool (n,).
    settings: of `saliency_map`.
    """

    def is_reached(predicted, rows):
        return predicted != start.y[rows]

    settings |= {"steps": steps or 2000, "progress": progress}
    return saliency_map(start.model, start.x, target_classes(start), is_reached, **settings)


def saliency_map(
    model, x, target, is_reached,
    theta=0.1, max_changes=7, steps=2000, block=0.03, progress=None,
):  # fmt: skip
    """Increase the target's logit by changing the most salient features.

    A gradient for every change is what the attack costs. So one gradient serves several features,
    `block` times as many as the changes so far: the first changes have a gradient each.

    Args:
        model: BatchedModel. x: images, float32 (n, h, w, c). target: classes, int (n,).
        is_reached: function (predicted classes, rows) -> which of these images are finished.
        theta: size of a change, as a share of the model's bounds. max_changes: of one feature.
        steps: changes of one image. block: see above; 0: a gradient for every change.
        progress: called with numbers of finished images, or None.

    Returns:
        Adversarial images, where the attack failed the image itself, and success, bool (n,).
    """
    n = len(x)
    lowest, highest = model.fmodel.bounds
    size = np.float32(theta * (highest - lowest))
    moved = x.reshape(n, -1).copy()
    times = np.zeros(moved.shape, "int64")  # that each feature has changed
    changes = np.zeros(n, "int64")
    success = np.zeros(n, bool)

    def step(rows):
        images = moved[rows].reshape(-1, *x.shape[1:])
        z, gradient = model.gradient(images, target[rows], chosen_logit)
        gradient = gradient.reshape(len(rows), -1)
        success[rows] = is_reached(z.argmax(axis=1), rows)
        room = np.where(gradient > 0, highest - moved[rows], moved[rows] - lowest)
        is_movable = (room > 1e-4 * size) & (times[rows] < max_changes)
        saliency = np.where(is_movable, np.abs(gradient), 0)
        finished = success[rows] | (changes[rows] >= steps) | ~(saliency > 0).any(axis=1)
        going = ~finished
        if going.any():
            change(rows[going], saliency[going], np.sign(gradient[going]))
        return finished

    def change(rows, saliency, sign):
        most = np.minimum(np.maximum(1, block * changes[rows]), steps - changes[rows]).astype(int)
        features = np.argsort(-saliency, axis=1)[:, : most.max()]
        is_chosen = np.arange(features.shape[1]) < most[:, None]
        is_chosen &= np.take_along_axis(saliency, features, axis=1) > 0
        place = rows[:, None], features
        move = size * is_chosen * np.take_along_axis(sign, features, axis=1)
        moved[place] = np.clip(moved[place] + move, lowest, highest)
        is_at_bound = (moved[place] <= lowest) | (moved[place] >= highest)
        times[place] = np.where(is_chosen & is_at_bound, max_changes, times[place] + is_chosen)
        changes[rows] += is_chosen.sum(axis=1)

    in_full_batches(n, model.batch, step, progress)
    adversarial = moved.reshape(x.shape)
    return np.where(per_image(success), adversarial, x), success


def target_classes(start):
    """The classes that a gradient attack (L2, growing steps) reaches from a StartingPoint.

    Where it fails, a random other class. Returns int (n,).
    """
    rms = np.sqrt(np.square(start.gradient).mean(axis=(1, 2, 3)))
    adversarial, success = along(start, start.gradient / per_image(np.maximum(rms, 1e-12)))
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
        self, theta=0.1, max_perturbations_per_pixel=7, steps=2000, block=0.03, seed=0, batch=128
    ):
        self.settings = {"theta": theta, "max_changes": max_perturbations_per_pixel}
        self.settings |= {"steps": steps, "block": block}
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
        if isinstance(criterion, Misclassification):
            start = StartingPoint.at(batched_model, x, criterion.labels.numpy(), self.seed)
            adversarial, _ = jsma(start, **self.settings)
        elif isinstance(criterion, TargetedMisclassification):
            target = criterion.target_classes.numpy()

            def is_reached(predicted, rows):
                return predicted == target[rows]

            adversarial, _ = saliency_map(batched_model, x, target, is_reached, **self.settings)
        else:
            raise ValueError(
                f"unsupported criterion {criterion}: use Misclassification or "
                f"TargetedMisclassification"
            )
        return restore_type(ep.from_numpy(images, adversarial))
