"""Step 2: train a network on x_train and keep every epoch.

    python data/prepare.py --dataset cifar10
    python train/train.py --dataset cifar10 --model vgg16

Reads data/<dataset>/. Writes models/<dataset>_<model>/: model.keras (the architecture with its normalisation),
checkpoints/model.001.weights.h5 ... and log.csv. Interrupted, the same command goes on after the last whole epoch.
AlexNet has a script of its own, alexnet.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from train import params
from train.files import UserError, data_sha256, disk_space, load_data, model_folder, options, pixels, run, stage, whole
from train.utils import Batches, fit, set_seed

import keras  # isort: skip  (after train.utils, which imports it quietly)
from train.models import NETWORKS, build_model, statistics  # isort: skip

dataset = "cifar10"  # digits, fashion_mnist, cifar10, svhn, or your own
model = "vgg16"  # vgg16, vgg19
seed = 0  # of initial weights, order, augmentation, dropout
epochs = params.epochs
keep_from = 1  # save checkpoints from this epoch on only


def augment(x, rng, shift, fill, flip):
    """Shift every image by whole pixels, up to `shift` of its size, and flip every other one.

    x: float32 (n, h, w, c). fill: how np.pad fills the border. One gather for the whole batch, no Python per image.
    """
    n, h, w, _ = x.shape
    dy, dx = int(shift * h), int(shift * w)
    padded = np.pad(x, ((0, 0), (dy, dy), (dx, dx), (0, 0)), mode=fill)
    rows = rng.integers(0, 2 * dy + 1, n)[:, None] + np.arange(h)
    columns = rng.integers(0, 2 * dx + 1, n)[:, None] + np.arange(w)
    if flip:
        mirrored = rng.random(n) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train_batches(x, y, model, dataset, seed):
    """The shuffled, augmented batches that `model` trains on."""
    shift, fill = params.shift[params.family(model)]
    flip = dataset not in params.no_flip
    return Batches(len(x), lambda rows, rng: (augment(pixels(x[rows]), rng, shift, fill, flip), y[rows]), params.batch_of(len(x)), (seed,))


def train(dataset, model, seed, epochs, keep_from=1):
    """Train `model` on `dataset` into its folder; continues an interrupted run."""
    if model not in NETWORKS:
        raise UserError(f"--model {model} is unknown: choose from {', '.join(NETWORKS)}, or add it to train/models.")
    x, y = load_data(dataset, "train")
    x_test, y_test = load_data(dataset, "test")
    classes = int(max(y.max(), y_test.max())) + 1
    if missing := sorted(set(range(classes)) - set(y.tolist())):
        raise UserError(f"data/{dataset} has no training image of class {missing[0]}: prepare more images, or all classes.")
    folder = model_folder(dataset, model, seed)
    data = data_sha256(dataset)
    with stage(folder / "train.log", f"train {model}", dataset=dataset, seed=seed, epochs=epochs, keep_from=keep_from, images=len(x)):
        set_seed(seed)
        try:
            network = build_model(model, x.shape[1:], classes, *statistics(model, x))
        except ValueError as error:
            raise UserError(f"{model} cannot take images of shape {x.shape[1:]} ({str(error).splitlines()[0]}).") from None
        # Checkpoints, and the optimiser's state of two epochs while the later one is being written.
        disk_space(folder, network.count_params() * 4 * (epochs - min(keep_from, epochs) + 1 + 4), f"{epochs} epochs of {model}")
        with whole(folder / "model.keras", ".keras") as temporary:
            network.save(temporary)
        rate = params.learning_rate(model, epochs)
        network.compile(
            keras.optimizers.SGD(rate(0), momentum=params.momentum, nesterov=True),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        fit(
            network,
            train_batches(x, y, model, dataset, seed),
            folder / "checkpoints",
            epochs,
            {"dataset": dataset, "model": model, "seed": seed, "data_sha256": data},
            validation=Batches(len(x_test), lambda rows, _: (pixels(x_test[rows]), y_test[rows]), 256),
            schedule=rate,
            keep_from=keep_from,
        )


def main(argv=None):
    args = options(__doc__, argv, dataset=dataset, model=model, seed=seed, epochs=epochs, keep_from=keep_from)
    train(**vars(args))


if __name__ == "__main__":
    run(main)
