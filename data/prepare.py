"""Step 1: prepare a data set, from official files or a folder of images.

    python data/prepare.py                                          # digits, of scikit-learn
    python data/prepare.py --dataset fashion_mnist                  # downloads the official files
    python data/prepare.py --dataset cifar10 --source ~/Downloads   # reads local official files
    python data/prepare.py --dataset leaves --source ~/leaves       # your own folder of images

A folder of images has train/<class>/*.png (.jpg, .webp, ...) and test/<class>/*. Writes
data/<dataset>/{x,y}_{train,validation,test}.npy, images uint8 (n, h, w, c), labels uint8 from 0,
and info.json with the names of the classes. The training images are shuffled with --seed and cut in
half: x_train is for training, x_validation for mining and tuning. A data set that was prepared with
other settings is refused, never overwritten. Nothing in the files that are read is executed.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.official import OFFICIAL, READERS, download
from train.shared import artifacts, paths
from train.shared.flags import UserError, options, run_script
from train.shared.log import stage

dataset = "digits"  # digits, fashion_mnist, cifar10, svhn, or a name for your folder of images
source = None  # folder of the official files, or of images; None: download the official files
limit = None  # number of random training images, balanced over the classes; None: all
seed = 0  # of the half split and of the limit

PARTS = ("train", "validation", "test")


def check(name, train, test, class_names):
    """Raise UserError for images and labels that no network could learn from."""
    classes, shape = len(class_names), train[0].shape[1:]
    if not 2 <= classes <= 256:
        raise UserError(f"{name} has {classes} classes: 2 to 256 are possible.")
    for part, (images, y) in (("training", train), ("test", test)):
        what = f"{name}, {part} files:"
        if not len(images) or y.shape != images.shape[:1]:
            raise UserError(f"{what} {len(images)} images and {len(y)} labels: get them again.")
        if images.shape[1:] != shape:
            found = images.shape[1:]
            raise UserError(f"{what} images of {found}, training images {shape}: get others.")
        if not 0 <= y.min() <= y.max() < classes:
            raise UserError(f"{what} labels {y.min()} to {y.max()} of {classes} classes.")


def check_parts(name, labels, class_names):
    """Raise UserError if a part lacks a class; labels: those of each of PARTS."""
    for part, y in zip(PARTS, labels, strict=True):
        if missing := set(range(len(class_names))) - set(y.tolist()):
            raise UserError(
                f"{name}: no image of class {class_names[min(missing)]} in the {part} part, and "
                f"each part needs some of every class: add images, or take a larger --limit."
            )


def balanced(y, limit, rng):
    """`limit` random indices into labels y, as balanced over the classes as they allow."""
    import pandas as pd  # which only a limit needs

    order = rng.permutation(len(y))
    rank_in_class = pd.Series(order).groupby(y[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rank_in_class, kind="stable")[:limit]])


def half_split(y, classes, limit, seed):
    """Indices (train, validation) into labels y; of an odd number, validation gets one more."""
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(y))
    if limit is not None:
        if not 2 * classes <= limit <= len(y):
            raise UserError(f"--limit {limit}: choose from {2 * classes} to {len(y)} images.")
        chosen = balanced(y, limit, rng)
    return np.split(rng.permutation(chosen), [len(chosen) // 2])


def is_prepared(dataset, settings):
    """Whether the data set is complete with these settings; UserError if it has others."""
    folder = paths.data_folder(dataset)
    info = artifacts.data_info(dataset)
    if info:
        artifacts.check_settings(folder, info, settings, "prepared")
    return bool(info) and all(path.exists() for path in array_paths(folder))


def array_paths(folder):
    """The six arrays of a data set, in the order in which they are written."""
    return [folder / f"{letter}_{part}.npy" for letter in "xy" for part in PARTS]


def write(folder, arrays, info):
    """Write images, labels, and info.json, which says that they are complete.

    Raises UserError if the folder holds other arrays, without an info.json that says how they were
    made.
    """
    paths = array_paths(folder)
    if all(path.exists() for path in paths):
        for path, array in zip(paths, arrays, strict=True):
            if not np.array_equal(artifacts.load_array(path, "python data/prepare.py"), array):
                raise UserError(f"{folder} holds other images, without info.json: move it away.")
    for path in paths[3:]:
        path.unlink(missing_ok=True)  # no script reads images without labels
    for path, array in zip(paths, arrays, strict=True):
        with artifacts.atomic_write(path) as temporary:
            np.save(temporary, array, allow_pickle=False)
    artifacts.write_text(folder / "info.json", json.dumps(info, indent=1) + "\n")


def read(dataset, source):
    """Read a folder of images, or the official files, which are downloaded without a source.

    Returns:
        (x, y) of train, (x, y) of test, and the names of the classes.
    """
    is_official = source and any((source / file).exists() for file in OFFICIAL.get(dataset, ()))
    if source and not is_official and all((source / part).is_dir() for part in ("train", "test")):
        from data.folders import read_folder  # imports Pillow, which nothing else needs

        return read_folder(source)
    if dataset not in READERS:
        raise UserError(f"{source} has no train/ and test/ with a folder of images for each class.")
    if source is None and dataset in OFFICIAL:
        source = download(dataset)
    return READERS[dataset](source)


def prepare(dataset, source=None, limit=None, seed=0):
    """Read, check, limit, split and write one data set.

    Args:
        dataset: its name.
        source: a folder, as Path or str; None: download the official files.
        limit: number of training images; None: all.
        seed: seed of the limit and of the split.

    Raises:
        UserError: wrong arguments, broken files, or a data set with other settings.
    """
    if dataset not in READERS and source is None:
        known = ", ".join(READERS)
        raise UserError(f"unknown data set {dataset!r}: choose from {known}, or name its --source.")
    if source is not None:
        source = Path(source).expanduser().resolve()
        if not source.is_dir():
            raise UserError(f"--source {source} is not a folder.")
        if dataset == "digits":
            raise UserError(f"digits take no --source: name what {source} holds with --dataset.")
    folder = paths.data_folder(dataset)
    settings = {"source": str(source or "official"), "limit": limit, "seed": seed}
    with stage(folder / "prepare.log", f"prepare {dataset}", settings) as log:
        log["idle"] = is_prepared(dataset, settings)
        if log["idle"]:
            return
        train_set, test_set, names = read(dataset, source)
        check(dataset, train_set, test_set, names)
        x, y = train_set
        x_test, y_test = test_set
        train, validation = half_split(y, len(names), limit, seed)
        labels = [labels.astype("uint8") for labels in (y[train], y[validation], y_test)]
        check_parts(dataset, labels, names)
        sizes = dict(zip(PARTS, map(len, labels), strict=True))
        info = {"dataset": dataset, **settings, "classes": len(names), "class_names": names}
        info |= {"shape": x.shape[1:], "images": sizes}
        write(folder, [x[train], x[validation], x_test, *labels], info)
        print(f"{folder}: {sizes}, images {x.shape[1:]}, {len(names)} classes", flush=True)


def main(argv=None):
    prepare(**vars(options(__doc__, argv, globals())))


if __name__ == "__main__":
    run_script(main)
