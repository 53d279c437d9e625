"""Step 1: official files -> the six .npy of a data set.

    python data/prepare.py                                          # digits, of scikit-learn
    python data/prepare.py --dataset fashion_mnist                  # downloads the official files
    python data/prepare.py --dataset cifar10 --source ~/Downloads   # reads them where they lie
    python data/prepare.py --dataset leaves --source ~/leaves       # a folder of images of your own

A folder of images has train/<class>/*.png (or .jpg, .jpeg) and test/<class>/*. Writes
data/<dataset>/{x,y}_{train,validation,test}.npy, images uint8 (n, h, w, c), labels uint8 from 0,
and info.json, which has the names of the classes. The training images are shuffled once with
--seed and cut in half: x_train is for training, x_validation for mining and tuning. A data set
that was prepared with other settings is refused, never overwritten. Nothing that is read is
executed, unpacked to disk or trusted about its size.
"""

import gzip
import json
import math
import pickle
import sys
import tarfile
from functools import partial
from itertools import product
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from PIL import Image

from train import artifacts
from train.flags import UserError, options, run_script
from train.log import progress, stage

dataset = "digits"  # digits, fashion_mnist, cifar10, svhn, or a name for your folder of images
source = None  # folder with the official files, or of images; None: download the official files
limit = None  # this many random training images, balanced over the classes
seed = 0  # of the half split and of the limit

ADDRESSES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# As sha256sum prints them.
SHA256 = """
6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce  cifar-10-python.tar.gz
435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8  train_32x32.mat
cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b  test_32x32.mat
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  t10k-labels-idx1-ubyte.gz
"""
SHA256 = {file: digest for digest, file in map(str.split, SHA256.strip().splitlines())}
FILES = [*SHA256]
OFFICIAL = {"cifar10": FILES[:1], "svhn": FILES[1:3], "fashion_mnist": FILES[3:]}

DIGITS = [str(digit) for digit in range(10)]
OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck".split()
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")

PARTS = ("train", "validation", "test")
LARGEST_IMAGE = 1024 * 1024  # pixels; a file that claims more is refused before it is decoded
LARGEST_DATA = 8 * 2**30  # bytes of all images of a part
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")  # Pillow's names

# --------------------------------------------------------------------------------- official files
# Every reader returns (x, y) of train, (x, y) of test and the names of the classes, with
# x uint8 (n, h, w, c) and y integers from 0 (n,).


def parse(path, read, *arguments):
    """read(*arguments) of somebody's file: whatever fails in there becomes one sentence."""
    try:
        return read(*arguments)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put it there or name another --source.") from None
    except Exception as error:  # parsers of broken files raise anything at all
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a whole file of its kind ({reason}): get it anew."
        ) from None


class ArrayUnpickler(pickle.Unpickler):
    """CIFAR-10's batches are pickles, which are programs: allow the parts of NumPy arrays only."""

    allowed = ("_codecs.encode", "numpy.ndarray", "numpy.dtype",
               "numpy.core.multiarray._reconstruct",
               "numpy._core.multiarray._reconstruct")  # fmt: skip

    def find_class(self, module, name):
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of arrays")
        return super().find_class(module, name)


def read_cifar10(folder):
    """CIFAR-10, from cifar-10-batches-py/, from the batches themselves or from the archive."""
    for place in (folder / "cifar-10-batches-py", folder):
        if (place / "test_batch").exists():
            return _cifar10(place, {p.name: partial(open, p, "rb") for p in place.iterdir()})
    archive = folder / "cifar-10-python.tar.gz"
    with parse(archive, tarfile.open, archive) as tar:
        members = parse(archive, lambda: [m for m in tar if m.isfile()])
        opened = {m.name.rsplit("/", 1)[-1]: partial(tar.extractfile, m) for m in members}
        return _cifar10(archive, opened)


def _cifar10(place, files):
    """files: {name of a batch: a function that opens it}. Fewer batches are a smaller data set."""

    def unpickle(name):
        with files[name]() as file:
            return ArrayUnpickler(file, encoding="bytes").load()

    def batch(name):
        content = unpickle(name)
        colour_planes = np.asarray(content[b"data"], "uint8").reshape(-1, 3, 32, 32)
        return colour_planes.transpose(0, 2, 3, 1), np.asarray(content[b"labels"], "int64")

    def part(*names):
        batches = [parse(f"{place}: {n}", batch, n) for n in names if n in files]
        if not batches:
            raise UserError(f"{place} has no {names[0]} of CIFAR-10: get it again.")
        return tuple(map(np.concatenate, zip(*batches, strict=True)))

    def label_names():
        return [str(name, "ascii") for name in unpickle("batches.meta")[b"label_names"]]

    known = "batches.meta" in files
    names = parse(f"{place}: batches.meta", label_names) if known else OBJECTS
    return part(*(f"data_batch_{i}" for i in range(1, 6))), part("test_batch"), names


def read_svhn(folder):
    """SVHN from its two .mat files, whose label 10 is the digit 0."""
    from scipy.io import loadmat

    def read(path):
        with open(path, "rb") as file:
            content = loadmat(file, variable_names=["X", "y"])
        x, y = content["X"], content["y"].ravel().astype("int64")
        fits = x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == len(y)
        if not fits or y.min() < 1 or y.max() > 10:
            raise ValueError(f"X is {x.dtype} {x.shape}, y {len(y)} labels {y.min()} to {y.max()}")
        return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y % 10

    paths = [folder / file for file in OFFICIAL["svhn"]]
    return *(parse(path, read, path) for path in paths), DIGITS


def read_fashion_mnist(folder):
    """Fashion-MNIST from its four gzipped IDX files."""

    def idx(path, dimensions):  # magic number, sizes as big-endian uint32, values as bytes
        with gzip.open(path) as file:
            magic = file.read(4)
            if magic != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"its first bytes are {magic.hex()}, not IDX's")
            shape = np.frombuffer(file.read(4 * dimensions), ">u4").tolist()
            size = math.prod(shape)
            if len(shape) != dimensions or size > LARGEST_DATA:
                raise ValueError(f"it claims the shape {shape}")
            content = file.read(size + 1)
        if len(content) != size:
            raise ValueError(f"it claims {size} values and holds another number")
        return np.frombuffer(content, "uint8").reshape(shape)

    paths = [folder / file for file in OFFICIAL["fashion_mnist"]]
    x, y, x_test, y_test = (parse(p, idx, p, n) for p, n in zip(paths, (3, 1, 3, 1), strict=True))
    return (x[..., None], y), (x_test[..., None], y_test), CLOTHES


def read_digits(_):
    """scikit-learn's 1,797 real digits, 8x8 enlarged to 28x28; the last 360 are the test set."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = zoom(bunch.images / 16, (1, 3.5, 3.5), order=1, grid_mode=True, mode="nearest")
    x, y = (x * 255).round().astype("uint8")[..., None], bunch.target
    return (x[:1437], y[:1437]), (x[1437:], y[1437:]), DIGITS


READERS = {"digits": read_digits, "fashion_mnist": read_fashion_mnist,
           "cifar10": read_cifar10, "svhn": read_svhn}  # fmt: skip


def download(name):
    """data/<name>/official/, into which the official files are fetched; UserError if that fails."""
    folder = artifacts.data_folder(name) / "official"
    for path in (folder / file for file in OFFICIAL[name]):
        if path.exists() and artifacts.sha256(path) == SHA256[path.name]:
            continue
        address = ADDRESSES[name] + path.name
        try:
            with artifacts.atomic_write(path) as temporary:
                _fetch(address, temporary)
                if artifacts.sha256(temporary) != SHA256[path.name]:
                    raise ValueError("what came has another SHA-256")
        except Exception as error:  # urllib and http have no exception in common
            raise UserError(
                f"cannot download {address} ({str(error)[:100]}): put {', '.join(OFFICIAL[name])} "
                f"into one folder by other means and name it with --source."
            ) from None
    return folder


def _fetch(address, path):
    with urlopen(address, timeout=60) as response, open(path, "wb") as file:
        about = {"desc": address.rsplit("/", 1)[-1], "unit": "B", "unit_scale": True}
        length = int(response.headers["Content-Length"] or 0)
        with progress(total=length, **about) as bar:
            while piece := response.read(2**20):
                file.write(piece)
                bar.update(len(piece))


# ------------------------------------------------------------------------------ folders of images


def read_folder(folder):
    """train/<class>/*.png|jpg|jpeg and test/<class>/*; classes in the order of their names.

    Grey images become RGB where others have colours, as palettes do. Transparent parts lie over
    white; 16 bits a channel become 8. Hidden files and folders and other files are ignored.
    """
    ignored = []

    def visible(folder, wanted):
        paths = sorted(folder.iterdir())
        found = [path for path in paths if not path.name.startswith(".") and wanted(path)]
        ignored.extend(set(paths) - set(found))
        return found

    parts = {
        part: {c.name: visible(c, _is_image) for c in visible(folder / part, Path.is_dir)}
        for part in ("train", "test")
    }
    names = sorted(set().union(*parts.values()))
    for part, name in product(parts, names):
        if not parts[part].get(name):
            raise UserError(f"{folder / part / name} has no .png or .jpg: every class needs some.")
    if ignored:
        print(f"{len(ignored)} hidden or other files ignored, {min(ignored)} first", flush=True)
    shape = _common_shape([path for part in parts.values() for of in part.values() for path in of])
    return *(_decode_all(*item, shape) for item in parts.items()), names


def _is_image(path):
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.is_file()


def _common_shape(paths):
    """(height, width, channels) of all images, from their headers; UserError if sizes differ."""

    def header(path):
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise ValueError(f"it claims {image.width} x {image.height} pixels")
            return image.size, image.mode in GREY_MODES

    first, grey = None, 0
    for path in progress(paths, desc="headers", unit="image"):
        size, is_grey = parse(path, header, path)
        first, grey = first or size, grey + is_grey
        if size != first:
            what = f"is {size}, {paths[0]} {first} (width, height): bring all images to one size."
            raise UserError(f"{path} {what}")
    if 0 < grey < len(paths):
        print(f"{grey} grey images of {len(paths)} converted to RGB, as the others are", flush=True)
    return first[1], first[0], 1 if grey == len(paths) else 3


def _decode_all(part, classes, shape):
    """(x, y) of {class: paths}, all brought to `shape`."""
    paths = [path for of_class in classes.values() for path in of_class]
    if len(paths) * math.prod(shape) > LARGEST_DATA:
        raise UserError(f"{len(paths)} {part} images of {shape} are over 8 GiB: make them smaller.")
    x = np.empty((len(paths), *shape), "uint8")
    for i, path in enumerate(progress(paths, desc=part, unit="image")):
        x[i] = parse(path, _decode, path, shape)
    return x, np.repeat(np.arange(len(classes)), [len(c) for c in classes.values()])


def _decode(path, shape):
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.mode.startswith("I"):  # 16-bit grey: the high byte, as Pillow does with colours
            image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


# ----------------------------------------------------------------------------------- one data set


def check(name, train, test, class_names):
    """UserError for what no network could learn from."""
    classes, shape = set(range(len(class_names))), train[0].shape[1:]
    for part, (x, y) in (("training", train), ("test", test)):
        labels, what = set(y.tolist()), f"{name}, {part} files:"
        if not x.size or y.shape != x.shape[:1]:
            raise UserError(f"{what} {len(x)} images and {len(y)} labels: get them again.")
        if x.shape[1:] != shape:
            raise UserError(f"{what} images of {x.shape[1:]}, training images {shape}: get others.")
        if unknown := labels - classes or labels - set(range(256)):
            raise UserError(f"{what} {min(unknown)} is none of {min(len(classes), 256)} labels.")
        if missing := classes - labels:
            raise UserError(f"{what} no image of class {min(missing)}: every class needs images.")


def balanced(y, limit, rng):
    """`limit` random indices into labels y, as equal over the classes as their sizes allow."""
    order = rng.permutation(len(y))
    rank_in_class = pd.Series(order).groupby(y[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rank_in_class, kind="stable")[:limit]])


def half_split(y, classes, limit, seed):
    """Indices (train, validation) into labels y; validation is larger where their number is odd."""
    rng, chosen = np.random.default_rng(seed), np.arange(len(y))
    if limit is not None:
        if not 2 * classes <= limit <= len(y):
            raise UserError(f"--limit {limit}: choose from {2 * classes} to {len(y)} images.")
        chosen = balanced(y, limit, rng)
    return np.split(rng.permutation(chosen), [len(chosen) // 2])


def array_paths(folder):
    """The six arrays of a data set, in the order in which they are written."""
    return [folder / f"{a}_{part}.npy" for a in "xy" for part in PARTS]


def is_prepared(folder, settings):
    """Whether the data set is there, whole and of these settings; UserError if of others."""
    if not all(path.exists() for path in (folder / "info.json", *array_paths(folder))):
        return False
    found = json.loads((folder / "info.json").read_text())
    artifacts.refuse_other_settings(folder, found, settings, "prepared", "prepare it")
    return True


def write(folder, arrays, info):
    """Write the arrays, labels last: load_data refuses what was cut short, which has none.

    Raises UserError if others are there without the info.json that says how they were made.
    """
    paths = array_paths(folder)
    if all(path.exists() for path in paths):
        found = [artifacts.load_array(path, "python data/prepare.py") for path in paths]
        if not all(map(np.array_equal, found, arrays)):
            raise UserError(f"{folder} holds other images, without info.json: move it away first.")
    for path in paths[3:]:
        path.unlink(missing_ok=True)
    artifacts.remove_temporary_files(folder)
    for i, (path, array) in enumerate(zip(paths, arrays, strict=True)):
        if i == 3:
            artifacts.write_text(folder / "info.json", json.dumps(info, indent=1) + "\n")
        with artifacts.atomic_write(path, ".npy") as temporary:
            np.save(temporary, array, allow_pickle=False)


def read(dataset, source):
    """What a reader returns, from a folder or from the official files, downloaded."""
    if source is not None and (source / "train").is_dir() and (source / "test").is_dir():
        return read_folder(source)
    if dataset not in READERS:
        raise UserError(f"{source} has no train/ and test/ with a folder of images for each class.")
    return READERS[dataset](source or (download(dataset) if dataset in OFFICIAL else None))


def prepare(dataset, source=None, limit=None, seed=0):
    """Read, check, limit, split and write one data set; source: a folder, as Path or str."""
    if dataset not in READERS and source is None:
        known = ", ".join(READERS)
        raise UserError(f"unknown data set {dataset!r}: choose from {known}, or name its --source.")
    if source is not None:
        source = Path(source).expanduser().resolve()
        if not source.is_dir():
            raise UserError(f"--source {source} is not a folder.")
        if dataset == "digits":
            raise UserError(f"digits take no --source: name what {source} holds with --dataset.")
    folder = artifacts.data_folder(dataset)
    settings = {"source": str(source or "official"), "limit": limit, "seed": seed}
    with stage(folder / "prepare.log", f"prepare {dataset}", settings) as record:
        record.idle = is_prepared(folder, settings)
        if record.idle:
            return
        (x, y), (x_test, y_test), names = content = read(dataset, source)
        check(dataset, *content)
        train, validation = half_split(y, len(names), limit, seed)
        labels = [labels.astype("uint8") for labels in (y[train], y[validation], y_test)]
        sizes = dict(zip(PARTS, map(len, labels), strict=True))
        info = {"dataset": dataset, **settings, "classes": len(names), "class_names": names}
        info |= {"shape": x.shape[1:], "images": sizes}
        write(folder, [x[train], x[validation], x_test, *labels], info)
        print(f"{folder}: {sizes}, images {x.shape[1:]}, {len(names)} classes", flush=True)


def main(argv=None):
    prepare(**vars(options(__doc__, argv, globals())))


if __name__ == "__main__":
    run_script(main)
