"""Sizes of perturbations, for arrays with one image in each row."""

import numpy as np


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


def mean_absolute(perturbation):
    """L1 norm divided by the number of features, as Foolbox 2 measures it: (n, h, w, c) -> (n,)."""
    return np.abs(perturbation).mean(axis=(1, 2, 3))


def largest_absolute(perturbation):
    """Linf norm: (n, h, w, c) -> (n,)."""
    return np.abs(perturbation).max(axis=(1, 2, 3))


def per_image(values):
    """Values (n,) as (n, 1, 1, 1), so that they broadcast over images."""
    return values.reshape(-1, 1, 1, 1)
