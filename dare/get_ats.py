"""Step 4: mine the training history: for every image of x_validation, its surest checkpoint.

    python dare/get_ats.py --dataset digits --model lenet

Reads data/<dataset>/ and models/<dataset>_<model>_seed<N>/checkpoints/. Writes ats_<layer>.h5
there: which images are modified, by which epoch, and that checkpoint's activations at the chosen
layer, the targets of the regression. On the way it keeps the probabilities of all checkpoints in
history_*.h5: mining another layer, or going on after an interruption, does not compute them again.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from train.artifacts import (
    already_made,
    atomic_write,
    fingerprint,
    remove_temporary_files,
    set_attributes,
    sha256,
    targets_path,
)
from train.checkpoints import load_weights
from train.flags import UserError, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import predict, up_to

dataset = "digits"
model = "lenet"
seed = 0
first = None  # first historical checkpoint; None: the second half of training
last = None  # last historical checkpoint; None: the last but one
choose_layer = None  # None: that of the network in train/params.py

IMAGES_AT_ONCE = 2048  # activations of this many images are in memory at a time


@dataclass
class Mined:
    """The modified images (ASE 2022), ordered by best epoch and index.

    index: int64 (m,), into x_validation. epoch: int32 (m,), the best one. probability,
    final_probability: float32 (m,), of the right class, by that checkpoint and by the final model.
    activation: float32 (m, ...), an array or an HDF5 dataset.
    """

    index: np.ndarray
    epoch: np.ndarray
    probability: np.ndarray
    final_probability: np.ndarray
    activation: np.ndarray

    @classmethod
    def read(cls, file):
        """Mined of an open ats file; the activations stay on disk."""
        arrays = {name: file[name] for name in cls.__dataclass_fields__}
        return cls(**{k: v if k == "activation" else v[()] for k, v in arrays.items()})


def mine(checkpoints, x, y, model, layer, path=None, history=None, provenance=None):
    """Data augmentation from the training history (ASE 2022), in two passes.

    First the probabilities of all checkpoints, then the activations of each image at its best one:
    one forward pass a checkpoint, and one more.

    Args:
        checkpoints: {epoch: weights file}, the historical ones and, last, the final model's.
        x, y: x_validation, uint8 or float32 pixels (n, h, w, c), and its int labels (n,).
        model: the classifier; on return it holds the final weights again.
        layer: name of the chosen layer.
        path: HDF5 file for the result, with the attributes `provenance`; activations are streamed
            to it. None: in memory.
        history: HDF5 file that keeps the first pass, or None.

    Returns:
        Mined, or None where it is in `path`.

    Raises:
        UserError: no historical checkpoint, an unknown layer, or no modified image at all.
    """
    if len(checkpoints) < 2:
        raise UserError(
            "mining needs at least one historical checkpoint before the final one: train for more "
            "epochs."
        )
    up_to(model, layer)
    epochs, paths = np.array(list(checkpoints)), list(checkpoints.values())
    probability, right = probabilities(checkpoints, x, y, model, history)
    best = best_checkpoint(probability, right)
    index = np.flatnonzero(best >= 0)
    if not len(index):
        raise UserError(
            f"no checkpoint from {epochs[0]} to {epochs[-2]} is surer of any image than the final "
            f"model: mine earlier ones (--first)."
        )
    index = index[np.argsort(best[index], kind="stable")]
    best = best[index]
    with result_file(path) as file:
        set_attributes(file, provenance or {})
        file["index"] = index.astype("int64")
        file["epoch"] = epochs[best].astype("int32")
        file["probability"] = probability[best, index].astype("float32")
        file["final_probability"] = probability[-1, index].astype("float32")
        record_activations(file, model, layer, x, index, best, paths)
        load_weights(model, paths[-1])
        if path is None:
            return Mined(*(file[name][()] for name in Mined.__dataclass_fields__))


def probabilities(checkpoints, x, y, model, history=None):
    """First pass: what every checkpoint thinks of every image.

    checkpoints: {epoch: path}. history: HDF5 file that keeps finished rows, or None.
    Returns the probability of the right class, float32 (checkpoints, n), and whether that class is
    the prediction, bool (checkpoints, n).
    """
    digests = [sha256(path) for path in checkpoints.values()]
    known = read_history(history, y)
    paths = dict(zip(digests, checkpoints.values(), strict=True))
    for digest, path in progress(paths.items(), desc="history", unit="checkpoint"):
        if digest not in known:
            softmax = predict(load_weights(model, path), x)
            known[digest] = softmax[np.arange(len(y)), y], softmax.argmax(axis=1) == y
            if history is not None:
                write_history(history, known, y)
    return tuple(np.stack([known[digest][k] for digest in digests]) for k in (0, 1))


def read_history(path, y):
    """{SHA-256 of a checkpoint: (probability, right)} that a first pass over images y has kept."""
    with contextlib.suppress(OSError, KeyError, TypeError), h5py.File(path, "r") as file:
        if file.attrs["labels_sha256"] == fingerprint(y):
            digests = file["checkpoint_sha256"].asstr()[()]
            rows = zip(file["probability"][()], file["right"][()], strict=True)
            return dict(zip(digests, rows, strict=True))
    return {}


def write_history(path, known, y):
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, {"labels_sha256": fingerprint(y)})
        file["checkpoint_sha256"] = list(known)
        file["probability"], file["right"] = (
            np.stack([row[k] for row in known.values()]) for k in (0, 1)
        )


def best_checkpoint(probability, right):
    """For every image the row of its best historical checkpoint, or -1; the last row is the final.

    A right final model is improved on by a higher probability, a wrong one only by a checkpoint
    that is right, too (ASE 2022). Of equal probabilities the earliest checkpoint counts:
    only more is an improvement.
    """
    history, final = probability[:-1], probability[-1]
    allowed = right[:-1] | right[-1]
    candidates = np.where(allowed, history, -np.inf)
    best = candidates.argmax(axis=0)
    return np.where(candidates.max(axis=0) > final, best, -1)


@contextlib.contextmanager
def result_file(path):
    """An HDF5 file to write to: `path`, whole at the end, or one in memory."""
    if path is None:
        with h5py.File("mined", "w", driver="core", backing_store=False) as file:
            yield file
    else:
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            yield file


def record_activations(file, model, layer, x, index, best, paths):
    """Second pass: activations of images x[index] at `layer`, each by its checkpoint, in `file`.

    best: int (m,), ascending, which of the weights files `paths` gives each image's activations.
    """
    part = up_to(model, layer)
    shape = part.output_shape[1:]
    activation = file.create_dataset(
        "activation", (len(index), *shape), "float32", chunks=(1, *shape)
    )
    with progress(total=len(index), desc="activations", unit="image") as bar:
        for row in np.unique(best):
            load_weights(model, paths[row])
            begin, end = np.searchsorted(best, [row, row + 1])
            for start in range(begin, end, IMAGES_AT_ONCE):
                rows = slice(start, min(start + IMAGES_AT_ONCE, end))
                activation[rows] = predict(part, x[index[rows]])
                bar.update(rows.stop - rows.start)


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    checkpoints = study.history(args.first, args.last)
    layer = study.layer(args.choose_layer)
    x, y = study.data("validation")
    begin, end = next(iter(checkpoints)), list(checkpoints)[-2]
    provenance = study.provenance | {"choose_layer": layer, "first": begin, "last": end}
    path = targets_path(study.folder, layer)
    history = study.folder / f"history_{study.provenance['data_sha256'][:12]}.h5"
    with stage(study.folder / "get_ats.log", "mine", vars(args) | {"images": len(x)}) as record:
        remove_temporary_files(study.folder)
        record.idle = already_made(path, provenance)
        if record.idle:
            print(f"{path} is there.")
            return
        mine(checkpoints, x, y, study.classifier, layer, path, history, provenance)
        with h5py.File(path, "r") as file:
            found = len(file["index"])
        share = f"{100 * found / len(x):.1f}%"
        print(f"{path}: {found:,} of {len(x):,} images modified ({share}), epochs {begin} to {end}")


if __name__ == "__main__":
    run_script(main)
