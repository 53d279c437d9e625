"""The official files of the data sets: reading and downloading them.

Every reader takes the folder of the files and returns (x, y) of train, (x, y) of test and the names
of the classes, with x uint8 (n, h, w, c) and y integers from 0 (n,). A smaller file of the right
format will do.
"""

import gzip
import io
import pickle
import tarfile

import numpy as np

from data.parse import parse
from train.shared import paths
from train.shared.flags import UserError

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

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]  # of CIFAR-10
OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck".split()
DIGITS = [str(digit) for digit in range(10)]
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")


class ArrayUnpickler(pickle.Unpickler):
    """Reads CIFAR-10's batches, which are pickles, and so programs: it allows NumPy arrays only."""

    allowed = ("_codecs.encode", "numpy.ndarray", "numpy.dtype",
               "numpy.core.multiarray._reconstruct",
               "numpy._core.multiarray._reconstruct")  # fmt: skip

    def find_class(self, module, name):
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of arrays")
        return super().find_class(module, name)


def read_cifar10(folder):
    """CIFAR-10, from cifar-10-batches-py/, from the batches themselves or from the archive."""
    for place in folder / "cifar-10-batches-py", folder:
        if any((place / name).exists() for name in BATCHES):
            files = {name: parse(place / name, (place / name).read_bytes) for name in BATCHES}
            break
    else:
        place = folder / OFFICIAL["cifar10"][0]
        files = parse(place, _members, place)

    def batch(name):
        content = ArrayUnpickler(io.BytesIO(files[name]), encoding="bytes").load()
        colour_planes = np.asarray(content[b"data"], "uint8").reshape(-1, 3, 32, 32)
        return colour_planes.transpose(0, 2, 3, 1), np.asarray(content[b"labels"], "int64")

    *train, test = (parse(place / name, batch, name) for name in BATCHES)
    return tuple(map(np.concatenate, zip(*train, strict=True))), test, OBJECTS


def _members(archive):
    """{name: content} of the batches in an archive, of which nothing is unpacked to disk."""
    with tarfile.open(archive) as tar:
        members = {member.name.split("/")[-1]: member for member in tar}
        if missing := set(BATCHES) - set(members):
            raise ValueError(f"it has no {min(missing)}")
        return {name: tar.extractfile(members[name]).read() for name in BATCHES}


def read_svhn(folder):
    """SVHN from its two .mat files, whose label 10 is the digit 0."""

    def read(path):
        from scipy.io import loadmat

        with open(path, "rb") as file:
            content = loadmat(file, variable_names=("X", "y"))
        x, y = content["X"], content["y"].ravel().astype("int64")
        fits = x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == len(y)
        if not fits or y.min() < 1 or y.max() > 10:
            raise ValueError(f"X is {x.dtype} {x.shape}, y {len(y)} labels {y.min()} to {y.max()}")
        return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y % 10

    return *(parse(folder / file, read, folder / file) for file in OFFICIAL["svhn"]), DIGITS


def read_fashion_mnist(folder):
    """Fashion-MNIST from its four IDX files, gzipped or already unpacked."""

    def idx(path, dimensions):  # magic number, sizes as big-endian uint32, values as bytes
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"its first bytes are {content[:4].hex()}, not IDX's")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        return np.frombuffer(content, "uint8", offset=4 + 4 * dimensions).reshape(shape)

    def read(file, dimensions):
        unpacked = folder / file.removesuffix(".gz")
        path = unpacked if unpacked.exists() else folder / file
        return parse(path, idx, path, dimensions)

    x, y, x_test, y_test = map(read, OFFICIAL["fashion_mnist"], (3, 1, 3, 1))
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
    from train.shared.backend import keras  # seconds, which nothing else here needs

    folder = paths.data_folder(name) / "official"
    for file in OFFICIAL[name]:
        address = ADDRESSES[name] + file
        try:
            keras.utils.get_file(file, address, cache_subdir=str(folder), file_hash=SHA256[file])
        except Exception as error:  # Keras raises it for a failed download
            raise UserError(
                f"cannot download {file} ({str(error)[:200]}): put {', '.join(OFFICIAL[name])} "
                f"into one folder by other means and name it with --source."
            ) from None
    return folder
