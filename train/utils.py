"""Images, batches, seeds and predictions, which every step needs."""

import math

import numpy as np

from train.shared import artifacts
from train.shared.artifacts import data_info
from train.shared.backend import keras
from train.shared.checkpoints import load_classifier
from train.shared.flags import UserError
from train.shared.paths import data_folder

__all__ = ["Batches", "Rows", "load_classifier", "load_data", "pixels", "predict", "set_seed"]

# Images of the selection half for val_accuracy: enough to resolve one point.
SELECTION_IMAGES = 2000
IMAGES_AT_ONCE = 2048  # images whose activations are in memory at a time

# ----------------------------------------------------------------------------------------- images


def pixels(x):
    """Images as float32: uint8 divided by 255, floats as they are."""
    return np.asarray(x, "float32") / 255 if x.dtype == np.uint8 else np.asarray(x, "float32")


def load_data(dataset, part):
    """One part of a prepared data set: "train", "validation" or "test".

    Returns:
        x, uint8 (n, h, w, c), mapped from disk rather than read, and y, int64 (n,).

    Raises:
        UserError: a file is missing, broken, or not what prepare.py writes.
    """
    step = artifacts.prepare_command(dataset)
    folder = data_folder(dataset)
    x, y = (artifacts.load_array(folder / f"{letter}_{part}.npy", step) for letter in "xy")
    are_images = x.ndim == 4 and x.dtype == np.uint8 and len(x)
    if not are_images or y.shape != x.shape[:1] or y.dtype.kind not in "ui":
        raise UserError(
            f"{folder} holds {x.dtype} images of shape {x.shape} and {y.dtype} labels of shape "
            f"{y.shape} in its {part} part, not uint8 (n, h, w, c) and integers (n,): run `{step}`."
        )
    return x, np.asarray(y, "int64")


def halves_of_test(dataset, n):
    """The selection half and the reporting half of the n test images, as sorted indices.

    val_accuracy in log.csv is measured on the selection half, clean accuracy on the reporting half.
    """
    order = np.random.default_rng([data_info(dataset).get("seed", 0), 11]).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def selection_images(dataset, n):
    """Sorted indices of at most SELECTION_IMAGES images of the selection half of n test images."""
    selection, _ = halves_of_test(dataset, n)
    if len(selection) > SELECTION_IMAGES:
        rng = np.random.default_rng(0)
        selection = np.sort(rng.choice(selection, SELECTION_IMAGES, replace=False))
    return selection


def class_names(dataset, classes):
    """Names of the classes for pictures; their numbers if prepare.py knew no names."""
    return data_info(dataset).get("class_names") or [str(c) for c in range(classes)]


# ------------------------------------------------------------------------------ seeds and batches


def set_seed(*seed):
    """Seed Python, NumPy and the backend with a tuple of numbers; the one way to set a seed.

    Choices of images and the like have NumPy generators of [seed, number].
    """
    keras.utils.set_random_seed(seed_number(*seed))


def seed_number(*seed):
    """A number below 2^31 for a tuple of numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31)


class Batches(keras.utils.PyDataset):
    """Batches for fit and predict, in order or shuffled anew in every epoch.

    Order and augmentation depend on the seed, the epoch and the number of the batch alone, so that
    a resumed training sees the batches that it would have seen.

    n: number of images.
    make_batch: function (rows, rng) that makes the batch of some rows. Rows are sorted, as HDF5
        needs them; within a batch the order does not matter.
    batch: images in a batch.
    seed: tuple of numbers; None: in order, and rng is None.
    max_batches: an epoch ends after this many batches.
    """

    def __init__(self, n, make_batch, batch=128, seed=None, max_batches=None):
        super().__init__()
        self.n = n
        self.make_batch = make_batch
        self.batch = batch
        self.seed = seed
        self.max_batches = max_batches
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch
        if self.seed is not None:
            self.order = np.random.default_rng([*self.seed, epoch]).permutation(self.n)

    def __len__(self):
        return min(math.ceil(self.n / self.batch), self.max_batches or self.n)

    def __getitem__(self, i):
        rows = np.arange(i * self.batch, min((i + 1) * self.batch, self.n))
        if self.seed is None:
            return self.make_batch(rows, None)
        rng = np.random.default_rng([*self.seed, self.epoch, i])
        return self.make_batch(np.sort(self.order[rows]), rng)


class Rows:
    """x[index], without a copy: only the rows that are asked for are read."""

    def __init__(self, x, index):
        self.x = x
        self.index = index

    def __getitem__(self, rows):
        return self.x[self.index[rows]]


# ------------------------------------------------------------------------------------ predictions


def predict(model, x):
    """A model's outputs, float32, for images x (n, h, w, c), uint8 or float32 as it takes.

    In batches. Unlike model.predict it does not build a new data set for every call.
    """
    batches = (pixels(x[first : first + 256]) for first in range(0, len(x), 256))
    outputs = [model.predict_on_batch(batch) for batch in batches]
    join = lambda *parts: np.asarray(np.concatenate(parts), "float32")  # noqa: E731
    return keras.tree.map_structure(join, *outputs)


def is_softmax(outputs):
    """Whether a classifier's outputs (n, classes) are probabilities, not logits."""
    return outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=0.01)
