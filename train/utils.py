"""What the steps share around a network: a study, images, seeds, predictions, checkpoints."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from train import artifacts, params
from train.artifacts import (
    attributes,
    checkpoint_path,
    data_folder,
    data_info,
    epochs_in,
    need,
    open_artifact,
    set_attributes,
    sha256,
    study_folder,
)
from train.backend import keras
from train.flags import UserError

SELECTION_IMAGES = 2000  # of the selection half: enough to tell a point

# ----------------------------------------------------------------------------------------- images


def pixels(x):
    """Images as the networks take them: float32 in [0, 1], from uint8 or from themselves."""
    return np.asarray(x, "float32") / 255 if x.dtype == np.uint8 else np.asarray(x, "float32")


def load_data(dataset, part):
    """One part (train, validation or test) of a prepared data set.

    Returns x uint8 (n, h, w, c), mapped from disk rather than read, and y int64 (n,).
    Raises UserError if a file is missing, broken or not what prepare.py writes.
    """
    step = f"python data/prepare.py --dataset {dataset}"
    folder = data_folder(dataset)
    x, y = (artifacts.load_array(folder / f"{letter}_{part}.npy", step) for letter in "xy")
    images = x.ndim == 4 and x.dtype == np.uint8 and len(x)
    if not images or y.shape != x.shape[:1] or y.dtype.kind not in "ui":
        raise UserError(
            f"{folder} holds {x.dtype} images of shape {x.shape} and {y.dtype} labels of shape "
            f"{y.shape} in its {part} part, not uint8 (n, h, w, c) and integers (n,): run `{step}`."
        )
    return x, np.asarray(y, "int64")


def halves_of_test(dataset, n):
    """(selection, reporting): sorted indices of the halves of the n test images, by the seed.

    The selection rule sees the first only, and what is reported comes from the second only.
    """
    order = np.random.default_rng([data_info(dataset).get("seed", 0), 11]).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def selection_images(dataset, n):
    """Sorted indices of the images, of the selection half, that choices of models may look at."""
    selection, _ = halves_of_test(dataset, n)
    if len(selection) > SELECTION_IMAGES:
        rng = np.random.default_rng(0)
        selection = np.sort(rng.choice(selection, SELECTION_IMAGES, replace=False))
    return selection


def class_names(dataset, classes):
    """Names of the classes, for pictures; their numbers where prepare.py knew no names."""
    return data_info(dataset).get("class_names") or [str(c) for c in range(classes)]


# -------------------------------------------------------------------------- seeds and predictions


def set_seed(*seed):
    """The one way to set a seed: any tuple of numbers fixes Python, NumPy and the backend."""
    keras.utils.set_random_seed(seed_number(*seed))


def seed_number(*seed):
    """The number below 2^31 that stands for a tuple of numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31)


class Batches(keras.utils.PyDataset):
    """Batches of `make(rows, rng)`, for fit and predict: in order, or shuffled anew every epoch.

    Order and augmentation depend on (seed, epoch, batch) alone, so that training continued at any
    epoch sees what it would have seen. `make` gets sorted rows: HDF5 wants that, and within a
    batch the order does not matter. most: an epoch ends after so many batches.
    """

    def __init__(self, n, make, batch=128, seed=None, most=None):
        super().__init__()
        self.n, self.make, self.batch, self.seed, self.most = n, make, batch, seed, most
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch
        if self.seed is not None:
            self.order = np.random.default_rng([*self.seed, epoch]).permutation(self.n)

    def __len__(self):
        return min(math.ceil(self.n / self.batch), self.most or self.n)

    def __getitem__(self, i):
        rows = np.arange(i * self.batch, min((i + 1) * self.batch, self.n))
        if self.seed is None:
            return self.make(rows, None)
        rng = np.random.default_rng([*self.seed, self.epoch, i])
        return self.make(np.sort(self.order[rows]), rng)


class Rows:
    """x[index], of which only the rows asked for are ever taken."""

    def __init__(self, x, index):
        self.x, self.index = x, index

    def __getitem__(self, rows):
        return self.x[self.index[rows]]


def predict(model, x, batch=256):
    """model's outputs on images x (n, h, w, c), uint8 or float32 in [0, 1], batch by batch."""
    images = Batches(len(x), lambda rows, _: (pixels(x[rows[0] : rows[-1] + 1]),), batch)
    return predict_batches(model, images)


def predict_batches(model, batches):
    """model's outputs on Batches of (images,): model.predict without a new data set every time."""
    outputs = [model.predict_on_batch(*batches[i]) for i in range(len(batches))]
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)


def up_to(model, layer):
    """The model's own layers, weights shared, up to `layer`, whose activations are the output."""
    names = [known.name for known in model.layers if type(known).__name__ != "InputLayer"]
    if layer not in names:
        raise UserError(
            f"--choose_layer {layer} is not a layer of this network: choose from "
            f"{', '.join(names)}."
        )
    return keras.Model(model.inputs[0], model.get_layer(layer).output)


def known_layer(model):
    """Name of the chosen layer of a network in train/params.py, or None."""
    return params.layer_of(model.name, params.is_small(model.input_shape[1:]))


def default_layer(model):
    """Name of the chosen layer of a network of train/models (train/params.py)."""
    layer = known_layer(model)
    if layer is None:
        names = ", ".join(known.name for known in model.layers[1:-1])
        raise UserError(
            f"{model.name} has no chosen layer in train/params.py: name one with --choose_layer, "
            f"of {names}."
        )
    return layer


# ------------------------------------------------------------------------------------ checkpoints


def load_architecture(folder):
    """The untrained classifier of a study's folder: model.keras, which holds its normalisation."""
    path = need(Path(folder) / "model.keras", "python train/train.py")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a Keras model ({reason}): delete it and run the training command again."
        ) from None


def load_weights(model, path):
    """Load a checkpoint into the model and return it, or raise a UserError that names the file."""
    need(Path(path), "python train/train.py")
    try:
        with h5py.File(path, "r") as file:
            values = values_of_layers(model, file)
        if values is None:
            model.load_weights(path)
        else:
            for layer, of_layer in values:
                layer.load_own_variables(of_layer)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} does not fit the network or is corrupt ({reason}): make it again."
        ) from None
    return model


def values_of_layers(model, file):
    """[(layer, {"0": array, ...})] of an open checkpoint; None where only Keras's reader will do.

    That one goes through every attribute of every layer: 0.15 s for a network of seven layers, of
    which a study loads hundreds. It is needed where layers hold other layers, are not named in the
    file or are not saved in float32.
    """
    groups = [group["vars"] for group in file.get("layers", {}).values() if "vars" in group]
    saved = {group.attrs.get("name"): group for group in groups}
    layers = [layer for layer in model.layers if layer.weights]
    if any(len(saved.get(layer.name, ())) != len(layer.weights) for layer in layers):
        return None
    if any("dtype" in values.attrs for layer in layers for values in saved[layer.name].values()):
        return None
    return [(layer, {k: v[()] for k, v in saved[layer.name].items()}) for layer in layers]


def save_weights(classifier, path, **made_from):
    """Save a checkpoint, whole or not at all, with what it was made from as root attributes."""
    # A model of its own, of the same layers: a compiled one would save its optimiser, too.
    bare = keras.Model(classifier.inputs[0], classifier.outputs[0], name="classifier")
    with artifacts.atomic_write(path, ".weights.h5") as temporary:
        bare.save_weights(temporary)
        with h5py.File(temporary, "a") as file:
            set_attributes(file, **made_from)


def final_checkpoint(folder):
    """Path of the final model: the last epoch's checkpoint, of a training that has ended.

    Raises UserError if there is none, or if training was cut short.
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


def load_classifier(folder, epoch=None):
    """The classifier of a study's folder (a Path or str) at an epoch (default: the last)."""
    path = final_checkpoint(folder) if epoch is None else checkpoint_path(folder, epoch)
    return load_weights(load_architecture(folder), path)


# ------------------------------------------------------------------------------------------ study


@dataclass
class Study:
    """One trained network, and the folder of all that is made from it; what every step opens.

    checkpoint: path of the final model's weights. classifier: the network, with these weights.
    made_from: dataset, model, seed and the fingerprints of checkpoint and data, the attributes of
    everything that is made from this study.
    """

    dataset: str
    model: str
    seed: int
    folder: Path
    checkpoint: Path
    classifier: keras.Model
    made_from: dict

    @classmethod
    def open(cls, args):
        """The study that flags --dataset, --model and --seed name; UserError if it is missing."""
        folder = study_folder(args.dataset, args.model, args.seed)
        if not folder.exists():
            script = "alexnet.py" if args.model == "alexnet" else f"train.py --model {args.model}"
            raise UserError(f"{folder} is missing: train it with train/{script}.")
        checkpoint = final_checkpoint(folder)
        made_from = {"dataset": args.dataset, "model": args.model, "seed": args.seed}
        made_from["checkpoint_sha256"] = sha256(checkpoint)
        need(data_folder(args.dataset) / "x_train.npy", f"data/prepare.py --dataset {args.dataset}")
        made_from["data_sha256"] = artifacts.data_sha256(args.dataset)
        classifier = load_weights(load_architecture(folder), checkpoint)
        return cls(args.dataset, args.model, args.seed, folder, checkpoint, classifier, made_from)

    @property
    def names(self):
        """{"dataset", "model", "seed"}, as flags and tables call them."""
        return {"dataset": self.dataset, "model": self.model, "seed": self.seed}

    def original(self):
        """The classifier, with the weights of the final checkpoint again, all of them trainable."""
        self.classifier.trainable = True
        return load_weights(self.classifier, self.checkpoint)

    def with_weights(self, weights, do):
        """(key, do(classifier, key)) for every {key: weights file}, as they are ready.

        Two at a time, in threads with a classifier each: one prepares what the other computes.
        """
        own = threading.local()

        def done(key):
            if not hasattr(own, "classifier"):
                own.classifier = load_architecture(self.folder)
            return key, do(load_weights(own.classifier, weights[key]), key)

        pool = ThreadPoolExecutor(2)
        try:
            for ready in as_completed([pool.submit(done, key) for key in weights]):
                yield ready.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def data(self, part):
        """load_data, refused where it is not the data that the network was trained on."""
        x, y = load_data(self.dataset, part)
        takes, classes = self.classifier.input_shape[1:], self.classifier.output_shape[-1]
        if x.shape[1:] != takes or y.min() < 0 or y.max() >= classes:
            raise UserError(
                f"data/{self.dataset} has {part} images of shape {x.shape[1:]} and labels "
                f"{y.min()} to {y.max()}, but the model takes {takes} and has {classes} classes: "
                f"prepare the data or train again."
            )
        trained_on = attributes(self.checkpoint).get("data_sha256")
        if trained_on != self.made_from["data_sha256"]:
            raise UserError(
                f"{self.folder} was trained on data_sha256 {str(trained_on)[:12]}, not "
                f"{self.made_from['data_sha256'][:12]}: data/{self.dataset} was prepared anew "
                f"since, so train again, under another --seed or with this folder moved away."
            )
        return x, y

    def command(self, script, **flags):
        """The command that makes something of this study, for messages."""
        return f"python {script} " + " ".join(f"--{k} {v}" for k, v in (self.names | flags).items())

    def open_made(self, path, step, **expected):
        """open_artifact of something that must have been made from this study's checkpoint."""
        same = {k: self.made_from[k] for k in ("checkpoint_sha256", "data_sha256")}
        return open_artifact(path, step, **same, **expected)

    def layer(self, choose_layer):
        """The chosen layer: the one asked for, which has to exist, or the network's own."""
        layer = choose_layer or default_layer(self.classifier)
        up_to(self.classifier, layer)
        return layer

    def mined_layer(self):
        """The layer whose targets name the mined images: its own, or else the first mined one."""
        known = known_layer(self.classifier)
        mined = [attributes(path) for path in sorted(self.folder.glob("ats_*.h5"))]
        layers = [about["choose_layer"] for about in mined if "first" in about]
        return known or (layers[0] if layers else default_layer(self.classifier))

    def history(self, first=None, last=None):
        """{epoch: path} of the historical checkpoints first..last and of the final one.

        Default: the second half of training, without its last epoch.
        Raises UserError if the history is too short, or lacks one of them.
        """
        epochs = epochs_in(self.folder / "checkpoints")
        final = epochs[-1]
        first = first or final // 2 + final % 2
        last = last or final - 1
        if not 1 <= first <= last < final:
            raise UserError(
                f"--first {first} to --last {last} is no stretch of history before the final "
                f"epoch {final} of {self.folder}: train for more epochs or choose another."
            )
        if missing := [e for e in range(first, last + 1) if e not in epochs]:
            raise UserError(
                f"{checkpoint_path(self.folder, missing[0])} is missing: train again, without "
                f"--keep_from or with an earlier one."
            )
        return {e: checkpoint_path(self.folder, e) for e in [*range(first, last + 1), final]}
