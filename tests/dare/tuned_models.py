"""Shared by the tests of tuning."""

from train.shared.checkpoints import load_classifier, load_weights
from train.shared.paths import tuned_folder, weights_path

RATE = ("--lr_rate", "0.001")  # faster than the default of the toy network


def tuned_model(folder, epoch, **settings):
    """The classifier in a tuned folder, after an epoch."""
    path = weights_path(tuned_folder(folder, **settings), epoch)
    return load_weights(load_classifier(folder), path)


def moved(before, after):
    """Names of layers of which any weight differs."""
    return {name.split("/")[0] for name in before if (before[name] != after[name]).any()}
