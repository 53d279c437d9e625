"""Files in the official formats and folders of images, made for the tests."""

import gzip
import pickle
import shutil
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data import prepare
from train.utils import load_data

PARTS = ("train", "validation", "test")
X, Y = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
BATCHES = "cifar-10-batches-py"


def images(n, shape, seed=0):
    """n random images, uint8 (n, *shape), and their labels 0 to 9 in turn."""
    x = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype="uint8")
    return x, np.arange(n) % 10


def idx(array):
    """A gzipped IDX file of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype("uint8").tobytes())


def write_fashion(folder, n=200):
    for name, seed, size in ("train", 0, n), ("t10k", 1, n // 2):
        x, y = images(size, (28, 28), seed)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(x))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(y))


def write_svhn(folder, n=200):
    for name, seed in ("train", 0), ("test", 1):
        x, y = images(n, (32, 32, 3), seed)
        labels = np.where(y == 0, 10, y)[:, None]
        savemat(folder / f"{name}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": labels})


def cifar_batch(n, seed):
    x, y = images(n, (32, 32, 3), seed)
    planes = x.transpose(0, 3, 1, 2).reshape(n, -1)
    return pickle.dumps({b"data": planes, b"labels": y.tolist()}, protocol=2)


def write_cifar(folder, n=40):
    (folder / BATCHES).mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / BATCHES / name).write_bytes(cifar_batch(n, seed))


def write_tar(folder, without=None):
    write_cifar(folder)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for path in (folder / BATCHES).iterdir():
            if path.name != without:
                tar.add(path, f"{BATCHES}/{path.name}")
    shutil.rmtree(folder / BATCHES)


def write_folder(folder, n=3):
    for part in "train", "test":
        for label in "ant", "bee":
            (folder / part / label).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(images(1, (9, 11, 3), i)[0][0])
                image.save(folder / part / label / f"{i}.png")


WRITERS = {
    "fashion_mnist": write_fashion,
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "leaves": write_folder,
}


def prepared(name, source=None, **settings):
    prepare.prepare(name, source, **settings)
    return {part: load_data(name, part) for part in PARTS}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder
