"""Step 4: mine the training history for the best checkpoint of every image of x_validation.

    python dare/get_ats.py --dataset digits --model lenet

Reads data/<dataset>/ and the checkpoints in models/<dataset>_<model>_seed<N>/. Writes
ats_<layer>.h5 there (a name of the released code): the mined images, on which an earlier checkpoint
is better than the final model; the epoch of the best one; and its activations at the chosen layer,
which are the targets of the regression. The probabilities of all checkpoints are kept in
history_*.h5, so that mining another layer, or resuming after an interruption, does not compute them
again.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import scipy.special

from train import params
from train.shared.artifacts import (
    atomic_write,
    check,
    fingerprint,
    open_hdf5,
    set_attributes,
    sha256,
)
from train.shared.checkpoints import load_weights
from train.shared.checks import checked_inputs
from train.shared.flags import UserError, options, run_script
from train.shared.graph import up_to
from train.shared.log import progress, stage
from train.shared.paths import checkpoint_path, epochs_in, targets_path
from train.shared.study import Study
from train.utils import IMAGES_AT_ONCE, Rows, is_softmax, predict

dataset = "digits"
model = "lenet"
seed = 0
first = None  # first historical checkpoint; None: the second half of training
last = None  # last historical checkpoint; None: the last before the final one
images = None  # random images of x_validation to mine and tune on; None: all, as in the paper
choose_layer = params.choose_layer  # None: the network's chosen layer in train/params.py


@dataclass
class MinedImages:
    """The mined images and their targets (ASE 2022), in order of epoch and index.

    index: int64 (m,), into x_validation.
    epoch: int32 (m,), the checkpoint that gives the target.
    probability, final_probability: float32 (m,), of the right class, by that checkpoint and by the
        final model.
    activation: float32 (m, ...), the targets, an array or an HDF5 dataset.
    """

    index: np.ndarray
    epoch: np.ndarray
    probability: np.ndarray
    final_probability: np.ndarray
    activation: np.ndarray

    @classmethod
    def read(cls, file):
        """The mined images of an open ats file. The activations stay on disk."""
        names = ("index", "epoch", "probability", "final_probability")
        return cls(*(file[name][()] for name in names), file["activation"])


def mine(checkpoints, x, y, model, choose_layer, path=None, provenance=None, history=None):
    """Augment the data from the training history (ASE 2022).

    Two passes, so that no target is overwritten: first the probabilities of all checkpoints, then
    the activations of each image at its best one. They cost one forward pass for each checkpoint
    and one more.

    Args:
        checkpoints: {epoch: file that Keras's load_weights reads}; the last epoch's is the final
            model's.
        x, y: images (n, h, w, c), uint8 or as the model takes them, and labels (n,): x_validation.
        model: the classifier with its final weights, which it has again on return.
        choose_layer: path of the layer whose activations become the targets.
        path: HDF5 file to which the targets are written; None: they are kept in memory.
        provenance: attributes of that file.
        history: HDF5 file that keeps the probabilities of all checkpoints, or None. Any layer of
            the same network and images can reuse it. Only the labels are checked, not the images.

    Returns:
        MinedImages, or None if they are in `path`.

    Raises:
        UserError: no historical checkpoint, an unknown layer, no mined image, or what
            `checked_inputs` refuses.
    """
    checkpoints = sorted_checkpoints(checkpoints)
    model, x, y, _ = checked_inputs(model, x, y)
    up_to(model, choose_layer)  # an unknown layer is refused before the first pass
    epochs = np.array(list(checkpoints))
    paths = list(checkpoints.values())
    probability, is_right = probabilities(checkpoints, x, y, model, history)
    best = best_checkpoint(probability, is_right)
    index = np.flatnonzero(best >= 0)
    if not len(index):
        raise UserError(
            f"no checkpoint from epoch {epochs[0]} to {epochs[-2]} improves on the final model for "
            f"any image: mine earlier ones (--first)."
        )
    # In order of checkpoint, so that each is loaded once in the second pass.
    index = index[np.argsort(best[index], kind="stable")]
    best_of_mined = best[index]
    with result_file(path) as file:
        set_attributes(file, provenance or {})
        file["index"] = index.astype("int64")
        file["epoch"] = epochs[best_of_mined].astype("int32")
        file["probability"] = probability[best_of_mined, index].astype("float32")
        file["final_probability"] = probability[-1, index].astype("float32")
        record_activations(file, model, choose_layer, Rows(x, index), best_of_mined, paths)
        load_weights(model, paths[-1])
        if path is None:
            mined = MinedImages.read(file)
            mined.activation = mined.activation[()]
            return mined


def sorted_checkpoints(checkpoints):
    """{epoch: Path}, ascending; UserError for anything but two or more files of numbered epochs."""
    try:
        found = {int(epoch): Path(path) for epoch, path in dict(checkpoints).items()}
    except (TypeError, ValueError):
        raise UserError("the checkpoints must be {number of the epoch: weights file}.") from None
    if missing := [path for path in found.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: make it again, or mine others (--first).")
    if len(found) < 2:
        raise UserError(
            "mining needs at least one historical checkpoint before the final one: train for more "
            "epochs."
        )
    return dict(sorted(found.items()))


def best_checkpoint(probability, is_right):
    """The best historical checkpoint of every image (ASE 2022).

    A checkpoint improves on a final model that is right if it gives the right class a higher
    probability. It improves on one that is wrong if it is also right itself. Among equal
    probabilities the earliest checkpoint counts.

    Args:
        probability: of the right class, (checkpoints, n); the last row is the final model's.
        is_right: whether the right class is predicted, bool (checkpoints, n).

    Returns:
        int (n,), the row of the best checkpoint, or -1 where none improves on the final model.
    """
    history = probability[:-1]
    final = probability[-1]
    final_is_right = is_right[-1]
    may_improve = is_right[:-1] | final_is_right
    candidates = np.where(may_improve, history, -np.inf)
    best = candidates.argmax(axis=0)
    return np.where(candidates.max(axis=0) > final, best, -1)


# ------------------------------------------------------------------------- the historical epochs


def historical_checkpoints(study, first=None, last=None):
    """{epoch: path} of the historical checkpoints of a study and, last, of the final one.

    first, last: epochs; None: those of the second half of training.
    Raises UserError if the history is too short.
    """
    final = epochs_in(study.folder / "checkpoints")[-1]
    first, last = first or (final + 1) // 2, last or final - 1
    if not 1 <= first <= last < final:
        raise UserError(
            f"--first {first} to --last {last} is not a range of epochs before the final epoch "
            f"{final} of {study.folder}: train for more epochs or choose another range."
        )
    return {e: checkpoint_path(study.folder, e) for e in [*range(first, last + 1), final]}


# --------------------------------------------------------------------------------- the first pass


def probabilities(checkpoints, x, y, model, history=None):
    """First pass: the probability of the right class, by every checkpoint, of every image.

    Args:
        checkpoints: {epoch: path}. x, y, model: as in `mine`.
        history: HDF5 file that keeps the results of finished checkpoints, or None.

    Returns:
        probability, float32 (checkpoints, n), and is_right, bool (checkpoints, n): whether the
        right class is predicted.
    """
    digests = [sha256(path) for path in checkpoints.values()]
    paths = dict(zip(digests, checkpoints.values(), strict=True))
    results = read_history(history, y)
    for digest, path in progress(paths.items(), desc="history", unit="checkpoint"):
        if digest not in results:
            softmax = predict(load_weights(model, path), x)
            if not np.isfinite(softmax).all():
                raise UserError(f"{path} gives outputs that are NaN or infinite: leave it out.")
            if not is_softmax(softmax):
                softmax = scipy.special.softmax(softmax, axis=1)
            results[digest] = softmax[np.arange(len(y)), y], softmax.argmax(axis=1) == y
            if history is not None:
                write_history(history, results, y)
    probability = np.stack([results[digest][0] for digest in digests])
    is_right = np.stack([results[digest][1] for digest in digests])
    return probability, is_right


def read_history(path, y):
    """{SHA-256 of a checkpoint: (probability, is_right)}, kept by an earlier pass; {} if none."""
    with contextlib.suppress(UserError, KeyError, TypeError), open_hdf5(path) as file:
        if file.attrs["labels_sha256"] == fingerprint(y):
            digests = file["checkpoint_sha256"].asstr()[()]
            rows = zip(file["probability"][()], file["right"][()], strict=True)
            return dict(zip(digests, rows, strict=True))
    return {}


def write_history(path, results, y):
    """Keep the results of the first pass; y: the labels that they belong to."""
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, {"labels_sha256": fingerprint(y)})
        file["checkpoint_sha256"] = list(results)
        file["probability"] = np.stack([probability for probability, _ in results.values()])
        file["right"] = np.stack([is_right for _, is_right in results.values()])


# -------------------------------------------------------------------------------- the second pass


@contextlib.contextmanager
def result_file(path):
    """An open HDF5 file for the result: `path`, written whole or not at all, or one in memory."""
    if path is None:
        with h5py.File("mined", "w", driver="core", backing_store=False) as file:
            yield file
    else:
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            yield file


def record_activations(file, model, choose_layer, images, best, paths):
    """Second pass: write the activations of each image by its best checkpoint to `file`.

    Args:
        file: open HDF5 file. model: the classifier. choose_layer: path of a layer.
        images: m images, indexed by slices. best: int (m,), ascending, an index into `paths`.
        paths: weights files.
    """
    part = up_to(model, choose_layer)
    shape = part.output_shape[1:]
    activation = file.create_dataset(
        "activation", (len(best), *shape), "float32", chunks=(1, *shape)
    )
    with progress(total=len(best), desc="activations", unit="image") as bar:
        for row in np.unique(best):
            load_weights(model, paths[row])
            begin, end = np.searchsorted(best, [row, row + 1])
            for start in range(begin, end, IMAGES_AT_ONCE):
                rows = slice(start, min(start + IMAGES_AT_ONCE, end))
                activation[rows] = predict(part, images[rows])
                bar.update(rows.stop - rows.start)


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    checkpoints = historical_checkpoints(study, args.first, args.last)
    *epochs, _ = checkpoints
    choose_layer = study.layer(args.choose_layer)
    path = targets_path(study.folder, choose_layer)
    provenance = study.provenance | {"choose_layer": choose_layer}
    x, y = study.data("validation")
    images = args.images if args.images and args.images < len(y) else None
    x, y = x[:images], y[:images]  # prepare.py has shuffled them
    provenance |= {"first": epochs[0], "last": epochs[-1], "images": images}
    logged = vars(args) | {"images": len(x), "choose_layer": choose_layer}
    with stage(study.folder / "get_ats.log", "mine", logged) as log:
        if check(path, provenance):
            log["idle"] = True
            print(f"{path} already exists.")
            return
        data = study.provenance["data_sha256"][:12]
        history = study.folder / f"history_{data}_{len(x)}.h5"
        mine(checkpoints, x, y, study.classifier, choose_layer, path, provenance, history)
        with open_hdf5(path) as file:
            mined = len(file["index"])
        share = 100 * mined / len(x)
        print(
            f"{path}: {mined:,} of {len(x):,} images mined ({share:.1f}%), from epochs "
            f"{epochs[0]} to {epochs[-1]}"
        )


if __name__ == "__main__":
    run_script(main)
