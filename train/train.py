"""Step 2: train a network on x_train and keep every epoch.

    python data/prepare.py --dataset cifar10
    python train/train.py --dataset cifar10 --model vgg16

Reads data/<dataset>/. Writes to models/<dataset>_<model>_seed<N>/: model.keras (the architecture
with its normalisation), checkpoints/model.001.weights.h5 ... and log.csv. After an interruption the
same command continues from the last complete epoch. alexnet.py is short for --model alexnet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from train import params
from train.fit import Run, fit
from train.fused_batch_norm import faster_class
from train.models import NETWORKS, build_model, statistics
from train.shared.artifacts import atomic_write, data_sha256
from train.shared.backend import keras
from train.shared.flags import UserError, options, run_script
from train.shared.graph import is_normalisation, layers_by_path, output_layer
from train.shared.log import stage
from train.shared.paths import epochs_in, study_folder
from train.utils import Batches, load_data, pixels, selection_images, set_seed

dataset = "cifar10"  # digits, fashion_mnist, cifar10, svhn, or your own
model = "vgg16"  # vgg16, vgg19, alexnet, lenet, resnet20
seed = 0  # of initial weights, order, augmentation and dropout
epochs = params.epochs
precision = params.precision


def augment(x, rng, shift, fill, flip):
    """Shift every image by whole pixels, at random, and mirror half of them.

    Args:
        x: images, float32 (n, h, w, c). rng: np.random.Generator.
        shift: the largest shift, as a share of height and width.
        fill: how np.pad fills the border. flip: whether to mirror images.

    Returns:
        float32 (n, h, w, c).
    """
    n, h, w, _ = x.shape
    max_dy = int(shift * h)
    max_dx = int(shift * w)
    padded = np.pad(x, ((0, 0), (max_dy, max_dy), (max_dx, max_dx), (0, 0)), mode=fill)
    rows = rng.integers(0, 2 * max_dy + 1, n)[:, None] + np.arange(h)
    columns = rng.integers(0, 2 * max_dx + 1, n)[:, None] + np.arange(w)
    if flip:
        mirrored = rng.random(n) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    # One gather for the whole batch.
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train_batches(x, y, model, dataset, seed, mean=0.0):
    """Shuffled, augmented Batches for a network.

    What a shift uncovers gets the network's mean or the nearest pixel (params.shift).
    """
    shift, fill = params.shift[params.network_family(model)]
    mean = mean if fill == "constant" else np.float32(0)
    flip = dataset not in params.no_flip

    def make_batch(rows, rng):
        return augment(pixels(x[rows]) - mean, rng, shift, fill, flip) + mean, y[rows]

    return Batches(len(x), make_batch, params.batch_size(len(x)), (seed,))


def validation_batches(x_test, y_test, dataset):
    """Batches of the selection images of x_test."""
    index = selection_images(dataset, len(y_test))

    def make_batch(rows, _):
        return pixels(x_test[index[rows]]), y_test[index[rows]]

    return Batches(len(index), make_batch, 256)


def new_network(model, x, classes):
    """An untrained network for images like x (n, h, w, c), and the mean that it subtracts."""
    mean, variance = statistics(model, x)
    try:
        network = build_model(model, x.shape[1:], classes, mean, variance)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{model} cannot take images of shape {x.shape[1:]} ({reason}).") from None
    return network, mean


def compiled(network):
    """The network, compiled for training."""
    network.compile(
        keras.optimizers.SGD(momentum=params.momentum, nesterov=True),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return network


def training_copy(network, precision):
    """A copy of the network, with its weights, that trains in "float32" or "bfloat16".

    In bfloat16, by Keras's policy mixed_bfloat16, the weights, the normalisation of the pixels and
    the softmax stay float32. Batch normalisation uses its faster class, where there is one.
    """
    stay = [*filter(is_normalisation, layers_by_path(network).values()), output_layer(network)]

    def copy_layer(layer):
        if not isinstance(layer, keras.layers.Layer):  # an operation, such as a sum of tensors
            return layer
        config = layer.get_config()
        if precision == "bfloat16" and layer not in stay:
            config["dtype"] = "mixed_bfloat16"
        return faster_class(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=copy_layer, recursive=True)
    copy_weights(network, copy)
    return copy


def copy_weights(source, target):
    """Copy all weights between a network and its copy, in either direction."""
    target.set_weights(source.get_weights())


def save_architecture(network, model, path):
    """Save the network without its optimizer as model.keras."""
    with atomic_write(path) as temporary:
        keras.Model(network.inputs[0], network.outputs[0], name=model).save(temporary)


def train(dataset, model, seed, epochs, precision=params.precision):
    """Train a network into its study's folder, or continue an interrupted training.

    Args:
        dataset: name of a prepared data set. model: a key of NETWORKS. seed: training seed.
        epochs: length of the training.
        precision: "float32" or "bfloat16". Checkpoints are float32 in both. val_accuracy in log.csv
            is that of the network as it trains.

    Raises:
        UserError: an unknown network, missing data, or other settings than those of the training in
            the folder.
    """
    if model not in NETWORKS:
        raise UserError(
            f"--model {model} is unknown: choose from {', '.join(NETWORKS)}, or add it to "
            f"train/models."
        )
    x, y = load_data(dataset, "train")
    x_test, y_test = load_data(dataset, "test")
    classes = int(max(y.max(), y_test.max())) + 1
    folder = study_folder(dataset, model, seed)
    checkpoints = folder / "checkpoints"
    settings = {"dataset": dataset, "seed": seed, "epochs": epochs}
    settings |= {"images": len(x), "precision": precision}
    with stage(folder / "train.log", f"train {model}", settings) as log:
        set_seed(seed)
        network, mean = new_network(model, x, classes)
        if not (folder / "model.keras").exists() or not epochs_in(checkpoints):
            save_architecture(network, model, folder / "model.keras")
        batches = train_batches(x, y, model, dataset, seed, mean)
        run = Run(
            checkpoints,
            epochs,
            provenance={
                "dataset": dataset,
                "model": model,
                "seed": seed,
                "precision": precision,
                "recipe": params.recipe(model, dataset, len(x)),
                "data_sha256": data_sha256(dataset),
            },
            schedule=params.learning_rate_schedule(model, epochs, len(batches)),
            log=folder / "log.csv",
        )
        trained = compiled(training_copy(network, precision))
        validation = validation_batches(x_test, y_test, dataset)
        log["idle"] = not fit(trained, batches, run, network, copy_weights, validation)


def main(argv=None):
    args = options(__doc__, argv, globals())
    train(**vars(args))


if __name__ == "__main__":
    run_script(main)
