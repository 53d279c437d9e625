"""Shared by the tests of attacks."""

import eagerpy as ep
import numpy as np
import pytest
from conftest import patterns

from adv.attacks import norms
from adv.attacks.classifier import BatchedModel, foolbox_model
from train.shared.checkpoints import load_classifier
from train.utils import predict


@pytest.fixture(scope="module")
def subject(trained):
    """(classifier, images that it gets right, labels, BatchedModel)."""
    model = load_classifier(trained / "models" / "toy_tiny_seed0")
    x, y = patterns(160, seed=7)
    x = x.astype("float32") / 255
    right = predict(model, x).argmax(axis=1) == y
    return model, x[right][:100], y[right][:100], BatchedModel(foolbox_model(model), batch=64)


def size(name, change):
    """What an attack makes small: (n, h, w, c) -> (n,)."""
    if name == "bim":
        return np.abs(change).mean(axis=(1, 2, 3))
    return norms(change)[{"cw": "l2", "jsma": "l0"}.get(name, "linf")]


def by_foolbox(make, batched, x, y, epsilons):
    """One of Foolbox's attacks: (clipped images, success), arrays (epsilons, n, ...)."""
    inputs, labels = (ep.from_numpy(batched.like, a).raw for a in (x, y))
    _, clipped, hit = make(batched.fmodel, inputs, labels, epsilons=epsilons)
    return np.stack([ep.astensor(c).numpy() for c in clipped]), ep.astensor(hit).numpy()
