"""Step 2: train a network on x_train and keep every epoch.

    python data/prepare.py --dataset cifar10
    python train/train.py --dataset cifar10 --model vgg16

Reads data/<dataset>/. Writes models/<dataset>_<model>_seed<N>/: model.keras (the architecture with
its normalisation), checkpoints/model.001.weights.h5 ... and log.csv. Interrupted, the same command
goes on after the last whole epoch. AlexNet has a script of its own, alexnet.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from train import params
from train.artifacts import atomic_write, data_sha256, epochs_in, require_space, study_folder
from train.backend import keras
from train.fit import fit
from train.flags import UserError, options, run_script
from train.log import stage
from train.models import NETWORKS, build_model, statistics
from train.precision import copy_weights, in_precision, precision_of
from train.utils import Batches, load_data, pixels, selection_images, set_seed

dataset = "cifar10"  # digits, fashion_mnist, cifar10, svhn, or your own
model = "vgg16"  # vgg16, vgg19, lenet, alexnet
seed = 0  # of initial weights, order, augmentation, dropout
epochs = params.epochs
keep_from = 1  # save checkpoints from this epoch on only
precision = params.precision


def augment(x, rng, shift, fill, flip):
    """Shift every image by whole pixels, up to `shift` of its size, and flip every other one.

    x: float32 (n, h, w, c). fill: how np.pad fills the border. One gather for the whole batch.
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


def train_batches(x, y, model, dataset, seed, mean=0.0):
    """The shuffled, augmented batches that `model` trains on; mean: what its shifts fill with."""
    shift, fill = params.shift[params.network_family(model)]
    mean = mean if fill == "constant" else np.float32(0)
    flip = dataset not in params.no_flip

    def make(rows, rng):
        return augment(pixels(x[rows]) - mean, rng, shift, fill, flip) + mean, y[rows]

    return Batches(len(x), make, params.batch_size(len(x)), (seed,))


def class_count(dataset, *labels):
    """Number of classes of a data set; UserError if the first labels lack one."""
    classes = int(max(y.max() for y in labels)) + 1
    if missing := sorted(set(range(classes)) - set(labels[0].tolist())):
        raise UserError(
            f"data/{dataset} has no training image of class {missing[0]}: prepare more images, or "
            f"all classes."
        )
    return classes


def new_network(model, x, classes):
    """An untrained network for images like x, and the mean that it subtracts."""
    mean, variance = statistics(model, x)
    try:
        network = build_model(model, x.shape[1:], classes, mean, variance)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{model} cannot take images of shape {x.shape[1:]} ({reason}).") from None
    return network, mean


def compiled(network):
    network.compile(
        keras.optimizers.SGD(momentum=params.momentum, nesterov=True),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return network


def train(dataset, model, seed, epochs, keep_from=1, precision=None):
    """Train `model` on `dataset` into its study's folder; goes on with an interrupted run.

    precision: "float32", "bfloat16" or None, what the hardware has; the checkpoints are float32,
    and val_accuracy in log.csv, on selection images alone, is that of the network as it trains.
    """
    if model not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UserError(
            f"--model {model} is unknown: choose from {known}, or add it to train/models."
        )
    x, y = load_data(dataset, "train")
    x_test, y_test = load_data(dataset, "test")
    classes = class_count(dataset, y, y_test)
    folder = study_folder(dataset, model, seed)
    checkpoints, architecture = folder / "checkpoints", folder / "model.keras"
    precision = precision_of(precision, checkpoints)
    settings = {"dataset": dataset, "seed": seed, "epochs": epochs, "keep_from": keep_from}
    settings |= {"images": len(x), "precision": precision}
    with stage(folder / "train.log", f"train {model}", settings) as record:
        set_seed(seed)
        network, mean = new_network(model, x, classes)
        # Checkpoints, and the optimiser's state of two epochs while the later one is written.
        kept = epochs - min(keep_from, epochs) + 1 + 4
        require_space(folder, network.count_params() * 4 * kept, f"{epochs} epochs of {model}")
        if not architecture.exists() or not epochs_in(checkpoints):
            with atomic_write(architecture, ".keras") as temporary:
                keras.Model(network.inputs[0], network.outputs[0], name=model).save(temporary)
        batches = train_batches(x, y, model, dataset, seed, mean)

        few = selection_images(dataset, len(y_test))

        def test_batch(rows, _):
            return pixels(x_test[few[rows]]), y_test[few[rows]]

        provenance = {"dataset": dataset, "model": model, "seed": seed, "precision": precision}
        trained = fit(
            compiled(in_precision(network, precision)), batches, checkpoints, epochs,
            provenance | {"data_sha256": data_sha256(dataset)},
            classifier=network, synchronise=copy_weights,
            schedule=params.learning_rate(model, epochs, len(batches)),
            validation=Batches(len(few), test_batch, 256),
            keep_from=keep_from, log=folder / "log.csv",
        )  # fmt: skip
        record.idle = not trained


def main(argv=None):
    args = options(__doc__, argv, globals())
    train(**vars(args))


if __name__ == "__main__":
    run_script(main)
