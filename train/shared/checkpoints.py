"""Checkpoints: saving and loading the weights of a classifier."""

import contextlib
from pathlib import Path

import h5py
import numpy as np

from train.shared.artifacts import atomic_write, attributes, open_hdf5, require, set_attributes
from train.shared.backend import keras
from train.shared.flags import UserError, command_of
from train.shared.graph import is_normalisation, layers_by_path
from train.shared.paths import checkpoint_path, epochs_in


def load_classifier(folder, epoch=None):
    """The classifier in a study's folder (Path or str) after an epoch; None: after the last."""
    path = final_checkpoint(folder) if epoch is None else checkpoint_path(folder, epoch)
    return load_weights(load_architecture(folder), path)


def load_architecture(folder):
    """The untrained classifier in a study's folder, from model.keras."""
    path = require(Path(folder) / "model.keras", command_of("train/train.py"))
    path.open("rb").close()  # Keras takes a file that it may not read for a broken one
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a Keras model ({reason}): delete it and run the training command again."
        ) from None
    for layer in filter(is_normalisation, layers_by_path(model).values()):
        if layer.input_mean is not None:
            # As arrays: lists of every pixel make Keras take 0.15 s longer for each checkpoint.
            layer.input_mean = np.array(layer.input_mean)
            layer.input_variance = np.array(layer.input_variance)
    return model


def load_weights(model, path):
    """Load a checkpoint into a model and return the model.

    Raises UserError if the file is missing, cannot be opened, or is of another network.
    """
    if not Path(path).exists():
        raise UserError(f"{path} is missing: make these weights again, or name others.")
    # For its sentences: Keras opens the file itself. A whole model (.keras) is a zip file.
    with open_hdf5(path) if Path(path).suffix == ".h5" else contextlib.nullcontext():
        try:
            model.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{path} does not fit the network or is corrupt ({reason}): make it again."
            ) from None
    return model


def save_weights(classifier, path, provenance):
    """Save a checkpoint, whole or not at all, with its provenance as root attributes."""
    # A new model of the same layers, because a compiled one would also save its optimizer.
    bare = keras.Model(classifier.inputs[0], classifier.outputs[0], name="classifier")
    with atomic_write(path) as temporary:
        bare.save_weights(temporary)
        with h5py.File(temporary, "a") as file:
            set_attributes(file, provenance)


def final_checkpoint(folder):
    """Path of the last checkpoint of a finished training run.

    Raises UserError if there is none, or if the training was interrupted.
    """
    epochs = epochs_in(Path(folder) / "checkpoints")
    if not epochs:
        raise UserError(
            f"{folder}/checkpoints holds no checkpoint: train with train/alexnet.py or "
            f"train/train.py first."
        )
    path = checkpoint_path(folder, epochs[-1])
    planned = attributes(path).get("epochs", epochs[-1])
    if planned != epochs[-1]:
        raise UserError(
            f"{folder} was trained for {epochs[-1]} of {planned} epochs: run the training command "
            f"again first."
        )
    return path
