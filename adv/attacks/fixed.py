"""Mode fixed: attacks at given epsilons; fgsm, bim and pgd are Foolbox 3's own attacks."""

from functools import partial

import eagerpy as ep
import foolbox
import numpy as np

from adv.attacks.losses import log_odds, norms, per_image

# The norm in which an attack's epsilon is measured, as `norms` has it; l0 is a number of features.
NORM = {"fgsm": "linf", "bim": "linf", "pgd": "linf", "cw": "l2", "jsma": "l0"}


def attack_at_epsilons(name, minimal_attack, epsilons, start, steps=None, progress=None):
    """Attack at given epsilons; if there are several, the first that succeeds counts.

    Args:
        name: of the attack. minimal_attack: the same attack in mode minimal.
        epsilons: array of sizes. start: StartingPoint. steps, progress: as in `attack`.

    Returns:
        Adversarial images, where the attack failed the image itself, and success, bool (n,).
    """
    if NORM[name] != "linf":  # cw and jsma minimise: what they find counts if it is small enough
        adversarial, success = minimal_attack(start, steps=steps, progress=progress)
        success &= norms(adversarial - start.x)[NORM[name]] <= max(epsilons)
        return np.where(per_image(success), adversarial, start.x), success
    if name == "fgsm":
        foolbox_attack = foolbox.attacks.LinfFastGradientAttack()
    elif name == "bim":
        foolbox_attack = foolbox.attacks.LinfBasicIterativeAttack(steps=steps or 10)
    else:
        foolbox_attack = foolbox.attacks.LinfPGD(steps=steps or 40)
        rng = np.random.default_rng(start.seed)
        foolbox_attack.get_random_start = partial(random_start, rng)
    # Its own loss, cross-entropy, saturates.
    foolbox_attack.get_loss_fn = lambda model, y: lambda x: log_odds(model(x), y)
    return run_foolbox_attack(foolbox_attack, epsilons, start, progress)


def run_foolbox_attack(foolbox_attack, epsilons, start, progress=None):
    """One of Foolbox's Linf attacks, in batches; returns adversarial images and success."""
    model = start.model
    result = start.x.copy()
    success = np.zeros(len(result), bool)
    for first in range(0, len(result), model.batch):
        rows = slice(first, first + model.batch)
        inputs = ep.from_numpy(model.like, start.x[rows]).raw
        labels = ep.from_numpy(model.like, start.y[rows]).raw
        _, images, hits = foolbox_attack(
            model.fmodel, inputs, labels, epsilons=[float(epsilon) for epsilon in epsilons]
        )
        hits = ep.astensor(hits).numpy()
        # In reverse, so that the first epsilon that succeeds is written last.
        for adversarial, hit in zip(images[::-1], hits[::-1], strict=True):
            result[rows][hit] = ep.astensor(adversarial).numpy()[hit]
            success[rows] |= hit
        if progress is not None:
            progress(len(hits[0]))
    return result, success


def random_start(rng, x, epsilon):
    """Images in the Linf ball around x, by random numbers that nobody else draws from."""
    noise = rng.uniform(-epsilon, epsilon, x.shape)
    return x + ep.from_numpy(x, noise.astype("float32"))
