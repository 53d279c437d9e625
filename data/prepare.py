"""Step 1: official files -> the six .npy of a data set.

    python data/prepare.py                                           # digits, bundled with scikit-learn
    python data/prepare.py --dataset fashion_mnist                   # downloads the official files
    python data/prepare.py --dataset cifar10 --source ~/Downloads    # reads them where they lie
    python data/prepare.py --dataset leaves --source ~/leaves        # your folder: train/<class>/*.png, test/<class>/*

Writes data/<dataset>/{x,y}_{train,validation,test}.npy, images uint8 (n, h, w, c), labels uint8 from 0, and info.json.
The training images are shuffled once with --seed and cut in half: x_train is for training, x_validation for mining and
tuning. Nothing that is read is executed, unpacked to disk or trusted about its size.
"""

import gzip
import json
import pickle
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from train.files import DATASETS, UserError, data_folder, options, run, stage, whole, write_text

dataset = "digits"  # digits, fashion_mnist, cifar10, svhn, or a name for your own folder of images
source = None  # folder with the official files; None downloads them
limit = None  # this many random training images, balanced over the classes
seed = 0  # of the half split and of the limit

CIFAR10 = "https://www.cs.toronto.edu/~kriz/"
SVHN = "http://ufldl.stanford.edu/housenumbers/"
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# Official files: address and SHA-256.
OFFICIAL = {
    "cifar10": {
        "cifar-10-python.tar.gz": (CIFAR10, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    },
    "svhn": {
        "train_32x32.mat": (SVHN, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        "test_32x32.mat": (SVHN, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": (FASHION, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        "train-labels-idx1-ubyte.gz": (FASHION, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3-ubyte.gz": (FASHION, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1-ubyte.gz": (FASHION, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    },
}
LARGEST_IMAGE = 1024 * 1024  # pixels; a file that claims more is refused before it is decoded
LARGEST_DATA = 8 * 2**30  # bytes that a compressed file may unpack to


class _Arrays(pickle.Unpickler):
    """CIFAR-10's batches are pickles, and a pickle is a program: allow the parts of NumPy arrays and nothing else."""

    allowed = (
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    )

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of CIFAR-10 holds")
        return super().find_class(module, name)


def read_cifar10(folder):
    """(x, y) of train and test, from cifar-10-python.tar.gz or from cifar-10-batches-py/ (or the batches themselves)."""
    names = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    archive = folder / "cifar-10-python.tar.gz"
    batches = next((d for d in (folder / "cifar-10-batches-py", folder) if (d / "test_batch").exists()), None)
    if batches is None and not archive.exists():
        _missing("cifar10", folder, "cifar-10-python.tar.gz, or a folder cifar-10-batches-py")

    def read(open_batch, name):
        with open_batch(name) as file:
            batch = _Arrays(file, encoding="bytes").load()
        x, y = np.asarray(batch[b"data"], "uint8"), np.asarray(batch[b"labels"])
        return x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y

    def parts(open_batch, exists):
        for all_names in names:
            # Sizes are what the files hold: a data set with fewer batches is a smaller data set.
            read_ones = [_parse(f"{folder}: {n}", read, open_batch, n) for n in all_names if exists(n)]
            if not read_ones:
                raise UserError(f"{folder} has no {all_names[0]} of CIFAR-10: download it again.")
            yield tuple(np.concatenate(a) for a in zip(*read_ones, strict=True))

    if batches is not None:
        return list(parts(lambda n: open(batches / n, "rb"), lambda n: (batches / n).exists()))
    tar = _parse(archive, tarfile.open, archive)
    with tar:
        members = _parse(archive, lambda: {m.name.rsplit("/", 1)[-1]: m for m in tar if m.isfile()})
        return list(parts(lambda n: tar.extractfile(members[n]), members.__contains__))


def read_svhn(folder):
    """(x, y) of train and test from train_32x32.mat and test_32x32.mat; label 10 is the digit 0."""
    from scipy.io import loadmat

    def read(path):
        content = loadmat(path, variable_names=["X", "y"])
        x, y = content["X"], content["y"].ravel().astype("int64")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != len(y) or not set(np.unique(y)) <= set(range(1, 11)):
            raise ValueError(f"X is {x.dtype} {x.shape}, y has {len(y)} labels")
        return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y % 10

    return [_parse(p, read, _official("svhn", folder, p)) for p in (f"{n}_32x32.mat" for n in ("train", "test"))]


def read_fashion_mnist(folder):
    """(x, y) of train and test from the four IDX files."""

    def read(path, dimensions):
        with gzip.open(path) as file:
            header = file.read(4)
            if header != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"its first bytes are {header.hex()}, not those of IDX with {dimensions} dimensions")
            shape = np.frombuffer(file.read(4 * dimensions), ">u4").astype("int64")
            size = int(np.prod(shape))
            if len(shape) != dimensions or size > LARGEST_DATA:
                raise ValueError(f"it claims the shape {shape.tolist()}")
            content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(f"it claims {size} values and holds {'more' if len(content) > size else len(content)}")
        return np.frombuffer(content, "uint8").reshape(shape)

    def part(name):
        paths = [_official("fashion_mnist", folder, f"{name}-{f}-ubyte.gz") for f in ("images-idx3", "labels-idx1")]
        x, y = _parse(paths[0], read, paths[0], 3), _parse(paths[1], read, paths[1], 1)
        return x[..., None], y

    return [part("train"), part("t10k")]


def read_digits(_):
    """scikit-learn's 1,797 real digits, 8x8 enlarged to 28x28; the last 360, by other writers, are the test set."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = zoom(bunch.images / 16, (1, 3.5, 3.5), order=1, grid_mode=True, mode="nearest")[..., None]
    x = (x * 255).round().astype("uint8")
    return [(x[:1437], bunch.target[:1437]), (x[1437:], bunch.target[1437:])]


def read_folder(folder):
    """(x, y) of train and test from train/<class>/*.png|jpg|jpeg and test/<class>/*; classes in the order of their names."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = LARGEST_IMAGE
    classes = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
    parts, first = [], None
    for part in "train", "test":
        found = sorted(p.name for p in (folder / part).iterdir() if p.is_dir())
        if found != classes:
            odd = sorted(set(found) ^ set(classes))[0]
            raise UserError(f"{folder}: the class {odd} is in only one of train/ and test/: both need the same classes.")
        paths, y = [], []
        for label, name in enumerate(classes):
            images = sorted(p for p in (folder / part / name).iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
            if not images:
                raise UserError(f"{folder / part / name} holds no .png or .jpg: every class needs images.")
            paths, y = paths + images, y + [label] * len(images)
        x = None
        for i, path in enumerate(tqdm(paths, desc=part, unit="image", disable=None)):
            image = _parse(path, _decode, Image, path)
            first = first or (path, image.shape)
            if image.shape != first[1]:
                raise UserError(f"{path} is {image.shape} (height, width, channels), but {first[0]} is {first[1]}: bring all images to one size.")
            x = np.empty((len(paths), *image.shape), "uint8") if x is None else x
            x[i] = image
        parts.append((x, np.array(y)))
    return parts


def _decode(image_module, path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        with image_module.open(path) as image:
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
            array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _parse(path, read, *arguments):
    """read(*arguments) of a stranger's file: whatever breaks in there becomes a sentence that names the file."""
    try:
        return read(*arguments)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} claims more than fits in memory: it is corrupt; get it again.") from None
    except Exception as error:  # parsers of broken files raise anything at all
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a whole file of its format ({reason}): get it again.") from None


def _official(name, folder, file):
    path = folder / file
    if not path.exists():
        _missing(name, folder, file)
    return path


def _missing(name, folder, file):
    raise UserError(f"{folder} has no {file}: put it there (from {next(iter(OFFICIAL[name].values()))[0]}) or name another --source.")


READERS = {"cifar10": read_cifar10, "svhn": read_svhn, "fashion_mnist": read_fashion_mnist, "digits": read_digits}


def download(name):
    """Fetch the official files into data/<name>/official/, checked against their SHA-256; returns that folder."""
    import keras

    folder = data_folder(name) / "official"
    folder.mkdir(parents=True, exist_ok=True)  # get_file takes another place when this one is missing
    for file, (address, digest) in OFFICIAL[name].items():
        try:
            keras.utils.get_file(file, address + file, file_hash=digest, hash_algorithm="sha256", cache_dir=folder, cache_subdir="")
        except Exception as error:  # urllib, ssl and keras have no exception in common
            (folder / file).unlink(missing_ok=True)  # half a download must not be taken for a file
            files = ", ".join(OFFICIAL[name])
            raise UserError(
                f"cannot download {address}{file} ({' '.join(str(error).split())[:100]}): get {files} by other means, put them "
                f"into one folder and name it with --source."
            ) from None
    return folder


def balanced(y, limit, rng):
    """`limit` random indices into labels y, as equal over the classes as their sizes allow; sorted."""
    order = rng.permutation(len(y))
    rank = np.empty(len(y), "int64")  # the how-manieth image of its class each one is, in the random order
    for label in np.unique(y):
        rank[order[y[order] == label]] = np.arange((y == label).sum())
    return np.sort(order[np.argsort(rank[order], kind="stable")[:limit]])


def check(name, part, x, y, classes):
    """Refuse what no network could learn from: no images, odd shapes, labels outside 0..255 or missing."""
    if x.ndim != 4 or len(x) != len(y) or not len(x):
        raise UserError(f"{name}: the {part} files hold {len(x)} images and {len(y)} labels of different number, or none: get them again.")
    if classes > 256 or y.min() < 0:
        raise UserError(f"{name}: labels run from {y.min()} to {classes - 1}, not from 0 to at most 255: check the label file.")
    if missing := sorted(set(range(classes)) - set(np.unique(y).tolist())):
        raise UserError(f"{name}: no {part} image of class {missing[0]} (labels run to {classes - 1}): every class needs images.")


def prepare(dataset, source, limit, seed):
    """Read, check, limit, split and write one data set."""
    if dataset not in DATASETS and source is None:
        raise UserError(f"unknown data set {dataset!r}: choose from {', '.join(DATASETS)}, or name your folder of images with --source.")
    if source is not None and not source.is_dir():
        raise UserError(f"--source {source} is not a folder.")
    folder = data_folder(dataset)
    with stage(folder / "prepare.log", f"prepare {dataset}", source=source, limit=limit, seed=seed):
        if source is not None and (source / "train").is_dir() and (source / "test").is_dir():
            parts = read_folder(source)
        elif dataset in READERS:
            parts = READERS[dataset](source or (download(dataset) if dataset in OFFICIAL else None))
        else:
            raise UserError(f"{source} has no train/ and test/ with a folder of images for each class.")
        (x, y), (x_test, y_test) = parts
        classes = int(max(y.max(initial=0), y_test.max(initial=0))) + 1
        check(dataset, "training", x, y, classes)
        check(dataset, "test", x_test, y_test, classes)
        if x.shape[1:] != x_test.shape[1:]:
            raise UserError(f"{dataset}: training images are {x.shape[1:]} and test images {x_test.shape[1:]}: they must be alike.")
        rng = np.random.default_rng(seed)
        if limit is not None:
            if not 2 * classes <= limit <= len(x):
                raise UserError(f"--limit {limit} is outside {2 * classes} (two of every class) to {len(x)} (all training images).")
            chosen = balanced(y, limit, rng)
            x, y = x[chosen], y[chosen]
        order = rng.permutation(len(x))
        half = len(x) // 2
        arrays = {"train": (x, y, order[:half]), "validation": (x, y, order[half:]), "test": (x_test, y_test, slice(None))}
        sizes = {part: len(labels[rows]) for part, (_, labels, rows) in arrays.items()}
        # Old labels go first and new ones come last: killed in between, there are none, rather than those of other images.
        for path in (folder / "info.json", *folder.glob("y_*.npy")):
            path.unlink(missing_ok=True)
        for which, letter in enumerate("xy"):
            for part, content in arrays.items():
                array = content[which][content[2]]
                with whole(folder / f"{letter}_{part}.npy", ".npy") as temporary:
                    np.save(temporary, array.astype("uint8", copy=False), allow_pickle=False)
        info = {"dataset": dataset, "source": str(source or "official"), "seed": seed, "limit": limit, "classes": classes}
        write_text(folder / "info.json", json.dumps(info | {"shape": x.shape[1:], "images": sizes}, indent=1) + "\n")
        print(f"{folder}: {sizes}, images {x.shape[1:]}, {classes} classes", flush=True)


def main(argv=None):
    prepare(**vars(options(__doc__, argv, dataset=dataset, source=source, limit=limit, seed=seed)))


if __name__ == "__main__":
    run(main)
