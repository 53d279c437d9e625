"""Step 4: mine the training history: for every image of x_validation, the checkpoint that was surest of its class.

    python dare/get_ats.py --dataset digits --model alexnet

Reads data/<dataset>/ and models/<dataset>_<model>/checkpoints/. Writes ats_<layer>.h5 there: which images are modified,
by which epoch, and that checkpoint's activations at the chosen layer, the targets of the regression. history.h5, which it
writes on the way, holds the probabilities of all checkpoints: mining another layer, or going on after an interruption,
does not compute them again.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
from tqdm import tqdm

from train.files import UserError, checkpoint_path, data_sha256, epochs_in, options, run, set_attributes, sha256, stage, sweep, whole
from train.utils import load_fitting_data, load_study, load_weights, predict

import keras  # isort: skip

dataset = "digits"
model = "alexnet"
seed = 0
first = None  # first historical checkpoint; None: the second half of training
last = None  # last historical checkpoint; None: the last but one
choose_layer = None  # None: default_layer

IMAGES_AT_ONCE = 2048  # activations of this many images are in memory at a time


@dataclass
class Mined:
    """The modified images (design section 5), ordered by best epoch and index.

    index: int64 (m,), into x_validation. epoch: int32 (m,), the best one. probability, final_probability: float32 (m,), of
    the right class, by that checkpoint and by the final model. activation: float32 (m, ...), an array or an HDF5 dataset.
    """

    index: np.ndarray
    epoch: np.ndarray
    probability: np.ndarray
    final_probability: np.ndarray
    activation: np.ndarray


def default_layer(model):
    """Name of the layer whose activations are the targets: the last convolution's own ReLU, or that convolution.

    alexnet: conv5; vgg: the ReLU after the last conv of the last block (design section 5). Without a convolution, the last
    hidden layer with weights.
    """
    layers = model.layers
    weighted = [i for i, layer in enumerate(layers[:-1]) if hasattr(layer, "kernel")]
    convolutions = [i for i in weighted if "Conv" in type(layers[i]).__name__]
    if not weighted:
        raise UserError("the network has no hidden layer to choose: --choose_layer needs one.")
    chosen = (convolutions or weighted)[-1]
    for i in range(chosen + 1, len(layers)):
        kind = type(layers[i]).__name__
        if kind in ("ReLU", "Activation", "LeakyReLU"):
            return layers[i].name
        if "Normalization" not in kind:
            break
    return layers[chosen].name


def part_up_to(model, layer):
    """The isomorphic regression model: the same layers, weights shared, up to `layer`, whose activations are the output."""
    if layer not in [known.name for known in model.layers[1:]]:
        names = ", ".join(known.name for known in model.layers[1:])
        raise UserError(f"--choose_layer {layer} is not a layer of this network: choose from {names}.")
    return keras.Model(model.inputs[0], model.get_layer(layer).output)


def probabilities(checkpoints, x, y, model, path=None):
    """First pass: what every checkpoint thinks of every image.

    checkpoints: {epoch: path}. path: HDF5 file that keeps finished rows, or None. Returns the probability of the right
    class, float32 (checkpoints, n), and whether it is the prediction, bool (checkpoints, n).
    """
    digests = [sha256(p) for p in checkpoints.values()]
    rows = {}
    if path is not None:
        with contextlib.suppress(OSError, KeyError), h5py.File(path, "r") as file:
            if file["probability"].shape[1] == len(x):
                kept = zip(file["checkpoint_sha256"].asstr()[()], file["probability"][()], file["right"][()], strict=True)
                rows = {digest: (p, right) for digest, p, right in kept}
    for digest, checkpoint in tqdm(list(zip(digests, checkpoints.values(), strict=True)), desc="history", unit="checkpoint", disable=None):
        if digest in rows:
            continue
        softmax = predict(load_weights(model, checkpoint), x)
        rows[digest] = softmax[np.arange(len(y)), y], softmax.argmax(axis=1) == y
        if path is not None:
            known = [d for d in digests if d in rows]
            with whole(path) as temporary, h5py.File(temporary, "w") as file:
                set_attributes(file)
                file["epoch"] = [e for e, d in zip(checkpoints, digests, strict=True) if d in rows]
                file["checkpoint_sha256"] = known
                file["probability"], file["right"] = (np.stack([rows[d][k] for d in known]) for k in (0, 1))
    return tuple(np.stack([rows[d][k] for d in digests]) for k in (0, 1))


def best_checkpoint(probability, right):
    """For every image the row of its best historical checkpoint, or -1; the last row is the final model's (section 5).

    A right final model is improved on by a higher probability, a wrong one only by a checkpoint that is right, too.
    Of equal probabilities the earliest checkpoint counts: only more is an improvement.
    """
    history, final = probability[:-1], probability[-1]
    allowed = right[:-1] | right[-1]
    candidates = np.where(allowed, history, -np.inf)
    best = candidates.argmax(axis=0)
    return np.where(candidates.max(axis=0) > final, best, -1)


def mine(checkpoints, x, y, model, layer, path=None, history=None, made_from=None):
    """The two passes of design section 5 (ASE 2022, data augmentation from the training history).

    Args:
        checkpoints: {epoch: weights file}, the historical ones and, last, the final model's.
        x, y: x_validation, uint8 or float32 pixels (n, h, w, c), and its labels (n,).
        model: the classifier; its weights end as the final ones. layer: name of the chosen layer.
        path: HDF5 file for the result, with the attributes `made_from`; activations are streamed to it. None: in memory.
        history: HDF5 file that keeps the first pass, or None.

    Raises:
        UserError: no historical checkpoint, an unknown layer, or no modified image at all.
    """
    if len(checkpoints) < 2:
        raise UserError("mining needs at least one historical checkpoint before the final one: train for more epochs.")
    part = part_up_to(model, layer)
    epochs, paths = np.array(list(checkpoints)), list(checkpoints.values())
    probability, right = probabilities(checkpoints, x, y, model, history)
    best = best_checkpoint(probability, right)
    index = np.flatnonzero(best >= 0)
    if not len(index):
        raise UserError(f"no checkpoint from {epochs[0]} to {epochs[-2]} is surer of any image than the final model: mine earlier ones (--first).")
    index = index[np.argsort(best[index], kind="stable")]
    best = best[index]
    with contextlib.ExitStack() as stack:
        if path is not None:
            temporary = stack.enter_context(whole(path))
            file = stack.enter_context(h5py.File(temporary, "w"))
        else:
            file = stack.enter_context(h5py.File("mined", "w", driver="core", backing_store=False))
        set_attributes(file, **(made_from or {}))
        file["index"] = index.astype("int64")
        file["epoch"] = epochs[best].astype("int32")
        file["probability"] = probability[best, index].astype("float32")
        file["final_probability"] = probability[-1, index].astype("float32")
        shape = part.output_shape[1:]
        activation = file.create_dataset("activation", (len(index), *shape), "float32", chunks=(1, *shape))
        with tqdm(total=len(index), desc="activations", unit="image", disable=None) as bar:
            for row in np.unique(best):
                load_weights(model, paths[row])
                begin, end = np.searchsorted(best, [row, row + 1])
                for start in range(begin, end, IMAGES_AT_ONCE):
                    stop = min(start + IMAGES_AT_ONCE, end)
                    activation[start:stop] = predict(part, x[index[start:stop]])
                    bar.update(stop - start)
        load_weights(model, paths[-1])
        return None if path is not None else Mined(*(file[f][()] for f in Mined.__dataclass_fields__))


def history_of(folder, first=None, last=None):
    """{epoch: path} of the historical checkpoints first..last and the final one, of a model folder.

    Raises UserError if the history is too short, or lacks one of them.
    """
    epochs = epochs_in(folder / "checkpoints")
    final = epochs[-1]
    first = first or final // 2 + final % 2
    last = last or final - 1
    if not 1 <= first <= last < final:
        raise UserError(
            f"--first {first} to --last {last} is no stretch of history before the final epoch {final} of {folder}: train for more epochs or choose another."
        )
    if missing := [e for e in range(first, last + 1) if e not in epochs]:
        raise UserError(f"{checkpoint_path(folder, missing[0])} is missing: train again, without --keep_from or with an earlier one.")
    return {e: checkpoint_path(folder, e) for e in [*range(first, last + 1), final]}


def main(argv=None):
    args = options(__doc__, argv, dataset=dataset, model=model, seed=seed, first=first, last=last, choose_layer=choose_layer)
    folder, classifier, _, digest = load_study(args)
    checkpoints = history_of(folder, args.first, args.last)
    layer = args.choose_layer or default_layer(classifier)
    x, y = load_fitting_data(args, "validation", classifier)
    history = list(checkpoints)[:-1]
    begin, end = history[0], history[-1]
    with stage(folder / "get_ats.log", "mine", **vars(args), images=len(x)):
        sweep(folder)
        data = data_sha256(args.dataset)
        path = folder / f"ats_{layer}.h5"
        made_from = {"dataset": args.dataset, "model": args.model, "seed": args.seed, "choose_layer": layer}
        made_from |= {"first": begin, "last": end, "checkpoint_sha256": digest, "data_sha256": data}
        mine(checkpoints, x, y, classifier, layer, path, folder / f"history_{data[:12]}.h5", made_from)
        with h5py.File(path, "r") as file:
            found = len(file["index"])
        print(f"{path}: {found:,} of {len(x):,} images modified ({100 * found / len(x):.1f}%) by epochs {begin} to {end}")


if __name__ == "__main__":
    run(main)
