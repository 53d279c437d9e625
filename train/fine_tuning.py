"""Fine-tuning of the classifier itself: adversarial training, dare-sl and control-finetune."""

import numpy as np

from train.fit import Run, fit
from train.shared.backend import keras
from train.shared.graph import is_normalisation, layers_by_path, up_to
from train.shared.log import stage
from train.shared.paths import tuned_folder
from train.utils import Batches, pixels, set_seed


def fine_tune(
    study, images, labels, made_from, settings, epochs, loss, frozen=0, last_layer=None, batch=32
):
    """Tune a study's network with Adam, in the folder that the settings name.

    Args:
        study: train.shared.study.Study.
        images: (n, h, w, c), an array or anything that is indexed like one with sorted rows.
        labels: int (n,). made_from: the provenance of the images.
        settings: the method and what the name of the folder spells out: lr_rate, of Adam, run ...
        epochs: a larger number than before continues the earlier run.
        loss: "mse" (on the softmax and one-hot labels) or "categorical_crossentropy".
        frozen: how many of the first layers are frozen, counted as in train/params.py.
        last_layer: path of the last layer that is tuned; None: the last one of the network.
        batch: images in a step. 32 is the default of Keras's fit, which the released code uses.
    """
    folder = tuned_folder(study.folder, **settings)
    recipe = {"recipe": f"{loss}, {frozen} frozen layers, batch {batch}"}
    run = Run(folder, epochs, study.provenance | settings | made_from | recipe, extendable=True)
    seed = study.seed, settings["run"]
    one_hot = np.eye(study.classifier.output_shape[-1], dtype="float32")

    def make_batch(rows, _):
        return pixels(images[rows]), one_hot[labels[rows]]

    logged = study.names | settings | {"epochs": epochs}
    with stage(folder / "tune.log", settings["method"], logged) as log:
        set_seed(*seed)
        classifier = study.original()
        drop_penalties(classifier)
        freeze_layers(classifier, frozen, last_layer)
        # A model of the same layers, so that the classifier is saved uncompiled.
        trained = keras.Model(classifier.inputs[0], classifier.outputs[0])
        trained.compile(keras.optimizers.Adam(settings["lr_rate"]), loss, metrics=["accuracy"])
        batches = Batches(len(labels), make_batch, batch, (*seed, 1))
        log["idle"] = not fit(trained, batches, run, classifier)


def freeze_layers(classifier, frozen, last_layer=None):
    """Freeze the first layers of a classifier, and those that do not lead to `last_layer`."""
    layers = [x for x in layers_by_path(classifier).values() if not is_normalisation(x)]
    leading = layers if last_layer is None else up_to(classifier, last_layer).layers
    for number, layer in enumerate(layers, 1):  # the input is number 0
        layer.trainable = number >= frozen and layer in leading


def drop_penalties(model):
    """Drop the l2 terms of training and the like, which are not part of the losses of tuning."""
    for variable in model.variables:
        variable.regularizer = None
    for layer in layers_by_path(model).values():
        layer.activity_regularizer = None
