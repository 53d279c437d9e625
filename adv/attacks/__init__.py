"""The attacks of the study: fgsm, bim, pgd, cw and jsma on pixels in [0, 1].

Mode minimal looks for the smallest perturbation that changes the decision, as the attacks of
Foolbox 2.3.0 did, which the paper used. All images of a batch are attacked at once, each with its
own epsilon, and finished images leave the batch. Mode fixed attacks at given epsilons: fgsm, bim
and pgd are Foolbox 3's own attacks; cw and jsma minimise as before, and count if they stay within
epsilon.
"""

from functools import partial

import numpy as np

from adv import ATTACKS
from adv.attacks.carlini_wagner import cw
from adv.attacks.classifier import BatchedModel, StartingPoint
from adv.attacks.fixed import attack_at_epsilons
from adv.attacks.losses import norms
from adv.attacks.saliency_map import jsma
from adv.attacks.search import bim, fgsm, pgd
from train.shared.checks import check_arrays, checked_inputs
from train.shared.flags import UserError
from train.utils import pixels

__all__ = ["attack", "norms"]

# Every attack is called as attack(start, steps=None, progress=None), with a StartingPoint of images
# that are classified correctly, and returns adversarial images and success.
MINIMAL = {"fgsm": fgsm, "bim": bim, "pgd": pgd, "cw": cw, "jsma": jsma}


def attack(name, model, x, y, mode="minimal", epsilons=None, seed=0, steps=None, progress=None):
    """Adversarial images of a Keras classifier.

    Args:
        name: fgsm, bim, pgd, cw or jsma.
        model: Keras classifier, or a BatchedModel with pixels in [0, 1].
        x, y: images (n, h, w, c), uint8 or as the model takes them, and labels (n,). Images that
            the model gets wrong are returned unchanged, as successes.
        mode: "minimal" or "fixed".
        epsilons: in mode fixed the size of the perturbation of pixels in [0, 1] (fgsm, bim, pgd:
            Linf; cw: L2; jsma: number of features). If there are several, the first that succeeds
            counts.
        seed: of random starts and random target classes.
        steps: number of iterations; None: the attack's own.
        progress: called with the work done since the last call, in images, or None.

    Returns:
        Adversarial images, float32 (n, h, w, c) as the model takes them, where an attack failed the
        image itself, and success, bool (n,).

    Raises:
        UserError: an unknown name or mode, mode fixed without epsilon, gradients that are not
            finite, or what `checked_inputs` refuses.
    """
    if name not in ATTACKS:
        raise UserError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}.")
    check_mode(mode, epsilons)
    highest = 1
    if isinstance(model, BatchedModel):
        x, y = check_arrays(x, y)
    else:
        model, x, y, highest = checked_inputs(model, x, y)
        model = BatchedModel.of(model, highest)
    result = np.array(pixels(x))
    start = StartingPoint.at(model, result / np.float32(highest), y, seed)
    is_right = start.logits.argmax(axis=1) == y
    success = ~is_right
    if progress is not None:
        progress(int(success.sum()))
    if is_right.any():
        run = MINIMAL[name]
        if mode == "fixed":
            run = partial(attack_at_epsilons, name, run, np.atleast_1d(epsilons))
        adversarial, has_succeeded = run(start.subset(is_right), steps=steps, progress=progress)
        hit = np.flatnonzero(is_right)[has_succeeded]
        result[hit] = adversarial[has_succeeded] * np.float32(highest)
        success[hit] = True
    return result, success


def check_mode(mode, epsilon):
    """Raise UserError unless the mode is known, and given an epsilon exactly if it needs one."""
    if mode not in ("minimal", "fixed"):
        raise UserError(f"unknown mode {mode!r}: choose from minimal, fixed.")
    if (mode == "fixed") != (epsilon is not None):
        raise UserError(
            f"--mode {mode} with --epsilon {epsilon}: mode fixed needs an epsilon, mode minimal "
            f"takes none."
        )
