"""Checkpoints: saving and loading the weights of a classifier."""

from pathlib import Path

import h5py

from train.shared.artifacts import atomic_write, attributes, command_of, require, set_attributes
from train.shared.backend import keras
from train.shared.flags import UserError
from train.shared.paths import checkpoint_path, epochs_in


def load_classifier(folder, epoch=None):
    """The classifier in a study's folder (Path or str) after an epoch; None: after the last."""
    path = final_checkpoint(folder) if epoch is None else checkpoint_path(folder, epoch)
    return load_weights(load_architecture(folder), path)


def load_architecture(folder):
    """The untrained classifier in a study's folder, from model.keras."""
    path = require(Path(folder) / "model.keras", command_of("train/train.py"))
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a Keras model ({reason}): delete it and run the training command again."
        ) from None


def load_weights(model, path):
    """Load a checkpoint into a model and return the model.

    Raises UserError if the file is missing, corrupt or of another network.
    """
    if not Path(path).exists():
        raise UserError(f"{path} is missing: make these weights again, or name others.")
    try:
        with h5py.File(path, "r") as file:
            values = values_by_layer(model, file)
        if values is None:
            model.load_weights(path)
        else:
            for layer, variables in values:
                layer.load_own_variables(variables)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} does not fit the network or is corrupt ({reason}): make it again."
        ) from None
    return model


def values_by_layer(model, file):
    """The arrays of an open checkpoint as [(layer, {"0": array, ...})].

    Keras's own reader takes 0.15 s for seven layers, because it visits every attribute of every
    layer; a study loads hundreds of checkpoints. Returns None where only Keras's reader will do:
    layers inside layers, layers that the file does not name, and weights that are not float32.
    """
    groups = [group["vars"] for group in file.get("layers", {}).values() if "vars" in group]
    saved = {group.attrs.get("name"): group for group in groups}
    layers = [layer for layer in model.layers if layer.weights]
    if any(len(saved.get(layer.name, ())) != len(layer.weights) for layer in layers):
        return None
    if any("dtype" in values.attrs for layer in layers for values in saved[layer.name].values()):
        return None
    return [(layer, {k: v[()] for k, v in saved[layer.name].items()}) for layer in layers]


def save_weights(classifier, path, provenance):
    """Save a checkpoint, whole or not at all, with its provenance as root attributes."""
    # A new model of the same layers, because a compiled one would also save its optimizer.
    bare = keras.Model(classifier.inputs[0], classifier.outputs[0], name="classifier")
    with atomic_write(path, ".weights.h5") as temporary:
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
