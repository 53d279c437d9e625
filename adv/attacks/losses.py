"""Losses of the attacks, on eagerpy tensors; the margin and sizes of perturbations, in NumPy."""

import eagerpy as ep
import numpy as np


def log_odds(z, y):
    """Log of the odds against class y, summed over images; untargeted attacks increase it.

    It is log sum exp of the other classes' logits minus the logit of y. Its gradient is that of the
    cross-entropy divided by 1 - p_y: it has the same direction, but it does not vanish in float32
    where the softmax is saturated (on Fashion-MNIST, for one image in six).

    z: logits (n, classes). y: int (n,).
    """
    one_hot = ep.onehot_like(z, y)
    others = z - one_hot * 1e9
    top = others.max(axis=-1, keepdims=True)
    log_sum = (others - top).exp().sum(axis=-1).log() + top.squeeze(axis=-1)
    return (log_sum - (z * one_hot).sum(axis=-1)).sum()


def chosen_logit(z, y):
    """The logit of class y, summed over images."""
    return (z * ep.onehot_like(z, y)).sum()


def margin_loss(z, y):
    """The margin, summed over images (Carlini and Wagner 2017)."""
    one_hot = ep.onehot_like(z, y)
    return (z * one_hot).sum() - (z - one_hot * 1e9).max(axis=-1).sum()


def margin(z, y):
    """The logit of class y minus the largest other one, float (n,); negative: misclassified.

    z: NumPy logits (n, classes). y: int (n,).
    """
    logit = np.take_along_axis(z, y[:, None], axis=1)
    others = z.copy()
    np.put_along_axis(others, y[:, None], -np.inf, axis=1)
    return logit[:, 0] - others.max(axis=1)


def norms(perturbation):
    """Norms of perturbations (n, ...): {"linf", "l2", "l0"}, each float32 (n,).

    l0 is the number of features that are changed.
    """
    flat = perturbation.reshape(len(perturbation), -1)
    sizes = {
        "linf": np.abs(flat).max(axis=1, initial=0),
        "l2": np.linalg.norm(flat, axis=1),
        "l0": (flat != 0).sum(axis=1),
    }
    return {name: size.astype("float32") for name, size in sizes.items()}


def per_image(values):
    """Values (n,) as (n, 1, 1, 1), so that they broadcast over images."""
    return values.reshape(-1, 1, 1, 1)
