"""The official files of the data sets: reading and downloading them.

Every reader returns (x, y) of train, (x, y) of test and the names of the classes, with x uint8
(n, h, w, c) and y integers from 0 (n,).
"""

import gzip
import math
import pickle
import tarfile
from functools import partial
from urllib.request import urlopen

import numpy as np

from data.parse import LARGEST_DATA, parse
from train.shared import artifacts, paths
from train.shared.flags import UserError, is_about_disk
from train.shared.log import progress

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


class ArrayUnpickler(pickle.Unpickler):
    """Reads CIFAR-10's batches, which are pickles, and so programs: it allows NumPy arrays only."""

    allowed = ("_codecs.encode", "numpy.ndarray", "numpy.dtype",
               "numpy.core.multiarray._reconstruct",
               "numpy._core.multiarray._reconstruct")  # fmt: skip

    def find_class(self, module, name):
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not part of an array"
            )
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
    """Read CIFAR-10 from {name of a batch: function that opens it}; a batch may be missing."""

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

    names = OBJECTS
    if "batches.meta" in files:
        names = parse(f"{place}: batches.meta", label_names)
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
            raise ValueError(f"it claims {size} values and holds fewer or more")
        return np.frombuffer(content, "uint8").reshape(shape)

    paths = [folder / file for file in OFFICIAL["fashion_mnist"]]
    x, y, x_test, y_test = (parse(p, idx, p, n) for p, n in zip(paths, (3, 1, 3, 1), strict=True))
    return (x[..., None], y), (x_test[..., None], y_test), CLOTHES


def read_digits(_):
    """scikit-learn's 1,797 digits, enlarged from 8x8 to 28x28; the last 360 are the test set."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = zoom(bunch.images / 16, (1, 3.5, 3.5), order=1, grid_mode=True, mode="nearest")
    x, y = (x * 255).round().astype("uint8")[..., None], bunch.target
    return (x[:1437], y[:1437]), (x[1437:], y[1437:]), DIGITS


READERS = {"digits": read_digits, "fashion_mnist": read_fashion_mnist,
           "cifar10": read_cifar10, "svhn": read_svhn}  # fmt: skip


def download(name):
    """Download the official files of a data set to data/<name>/official/, and return the folder.

    Files that are already there with the right SHA-256 are kept. Raises UserError if it fails.
    """
    folder = paths.data_folder(name) / "official"
    for path in (folder / file for file in OFFICIAL[name]):
        if path.exists() and artifacts.sha256(path) == SHA256[path.name]:
            continue
        address = ADDRESSES[name] + path.name
        try:
            with artifacts.atomic_write(path) as temporary:
                _fetch(address, temporary)
                if artifacts.sha256(temporary) != SHA256[path.name]:
                    raise ValueError("the file has another SHA-256")
        except Exception as error:  # urllib and http have no exception in common
            if is_about_disk(error):
                raise
            raise UserError(
                f"cannot download {address} ({str(error)[:100]}): put {', '.join(OFFICIAL[name])} "
                f"into one folder by other means and name it with --source."
            ) from None
    return folder


def _fetch(address, path):
    with urlopen(address, timeout=60) as response, open(path, "wb") as file:
        name = address.rsplit("/", 1)[-1]
        length = int(response.headers["Content-Length"] or 0)
        with progress(total=length, desc=name, unit="B", unit_scale=True) as bar:
            while piece := response.read(2**20):
                file.write(piece)
                bar.update(len(piece))
