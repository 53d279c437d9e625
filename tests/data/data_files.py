"""Files in the official formats and folders of images, made for the tests."""

import gzip
import json
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data import prepare
from train.utils import load_data

PARTS = ("train", "validation", "test")


def images(n, shape, seed=0):
    """n random images, uint8 (n, *shape), and their labels 0 to 9 in turn."""
    x = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype="uint8")
    return x, np.arange(n) % 10


def idx(array):
    """A gzipped IDX file of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype("uint8").tobytes())


def write_fashion(folder, n=40):
    for name, seed, size in ("train", 0, n), ("t10k", 1, n // 2):
        x, y = images(size, (28, 28), seed)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(x))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(y))


def write_svhn(folder, n=40):
    for name, seed in ("train", 0), ("test", 1):
        x, y = images(n, (32, 32, 3), seed)
        labels = np.where(y == 0, 10, y)[:, None]
        savemat(folder / f"{name}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": labels})


def cifar_batch(n, seed):
    x, y = images(n, (32, 32, 3), seed)
    planes = x.transpose(0, 3, 1, 2).reshape(n, -1)
    return pickle.dumps({b"data": planes, b"labels": y.tolist()}, protocol=2)


def write_cifar(folder, n=20):
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    for seed, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        (inside / name).write_bytes(cifar_batch(n, seed))


def write_tar(folder):
    write_cifar(folder)
    inside = folder / "cifar-10-batches-py"
    names = {b"label_names": [b"name%d" % i for i in range(10)]}
    (inside / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(inside, "cifar-10-batches-py")
    for path in inside.iterdir():
        path.unlink()


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


def info_of(home, name):
    return json.loads((home / "data" / name / "info.json").read_text())


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def png(pixels, colour, depth, extra=b""):
    """A PNG file as the standard has it, made without Pillow. pixels: (h, w) or (h, w, channels).

    colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha. extra: chunks.
    """
    height, width = pixels.shape[:2]
    kind = ">u2" if depth == 16 else "uint8"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def chunk(name, content):
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


X, Y = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
