"""Images, batches, seeds and predictions: what every step needs."""

import math

import numpy as np

from train import artifacts
from train.artifacts import data_folder, data_info
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
