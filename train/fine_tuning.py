"""Fine-tuning of the classifier itself: adversarial training, dare-sl and control-finetune."""

from dataclasses import dataclass

import numpy as np

from train.fit import Run, fit
from train.shared.backend import keras
from train.shared.graph import is_normalisation, layers_by_path, up_to
from train.shared.log import stage
from train.shared.paths import tuned_folder
from train.utils import Batches, pixels, set_seed


@dataclass
class FineTuning:
    """Settings of `fine_tune`.

    loss: "mse" (on the softmax and one-hot labels) or "categorical_crossentropy".
    lr_rate: of Adam.
    frozen: how many of the first layers are frozen, counted as in train/params.py.
    last_layer: path of the last layer that is tuned; None: the last layer of the network.
    batch: images in a step. 32 is the default of Keras's fit, which the released code uses.
    seed: of the order of the images, a tuple of numbers.
    """

    loss: str
    lr_rate: float
    frozen: int = 0
    last_layer: str | None = None
    batch: int = 32
    seed: tuple = (0,)

    @property
    def recipe(self):
        """The settings that no folder's name spells out, in one text."""
        return f"{self.loss}, {self.frozen} frozen layers, batch {self.batch}"


def fine_tune(classifier, images, labels, tuning, run):
    """Tune a classifier in place with Adam.

    Args:
        classifier: Keras softmax classifier on pixels in [0, 1].
        images: (n, h, w, c), an array or anything that is indexed like one with sorted rows.
        labels: int (n,). tuning: FineTuning. run: train.fit.Run.

    Returns:
        True if anything was left to do.
    """
    set_seed(*tuning.seed)
    drop_penalties(classifier)
    freeze_layers(classifier, tuning.frozen, tuning.last_layer)
    # A model of the same layers, so that the classifier stays uncompiled and is saved that way.
    trained = keras.Model(classifier.inputs[0], classifier.outputs[0])
    trained.compile(keras.optimizers.Adam(tuning.lr_rate), tuning.loss, metrics=["accuracy"])
    one_hot = np.eye(classifier.output_shape[-1], dtype="float32")

    def make_batch(rows, _):
        return pixels(images[rows]), one_hot[labels[rows]]

    batches = Batches(len(labels), make_batch, tuning.batch, (*tuning.seed, 1))
    return fit(trained, batches, run, classifier)


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


def fine_tune_study(study, images, labels, made_from, settings, tuning, epochs):
    """Fine-tune a study's network into the folder that the settings name.

    Args:
        study: train.shared.study.Study. images, labels: as in fine_tune.
        made_from: the provenance of the images.
        settings: the method, and the settings that the folder's name spells out.
        tuning: FineTuning, with the seed of the run.
        epochs: a larger number than before continues the earlier run.
    """
    folder = tuned_folder(study.folder, **settings)
    provenance = study.provenance | settings | made_from | {"recipe": tuning.recipe}
    logged = study.names | settings | {"epochs": epochs}
    with stage(folder / "tune.log", settings["method"], logged) as log:
        run = Run(folder, epochs, provenance, extendable=True)
        log["idle"] = not fine_tune(study.original(), images, labels, tuning, run)
