"""Hostile and odd files: refused in one sentence, and nothing in them is executed."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_files import WRITERS, X, Y, chunk, cifar_batch, idx, images, png, prepared
from PIL import Image
from scipy.io import savemat

from data import prepare
from train.shared.flags import UserError

pytest_plugins = ["data_files"]


# What the evil pickles touch, if they are executed: of this process only, as others may run too.
TOUCHED = Path(tempfile.gettempdir()) / f"dare_was_here_{os.getpid()}"


class Evil:
    def __reduce__(self):
        return (Path.touch, (TOUCHED,))


@pytest.fixture
def untouched():
    TOUCHED.unlink(missing_ok=True)
    yield TOUCHED
    TOUCHED.unlink(missing_ok=True)


def grey_png(width, height):
    return png(np.zeros((height, width)), 0, 8)


def claims(width, height):
    """A PNG of 8 x 8 pixels that claims to be larger."""
    size = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    claimed = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return grey_png(8, 8).replace(chunk(b"IHDR", size), chunk(b"IHDR", claimed))


def icon():
    file = io.BytesIO()
    Image.new("RGB", (11, 9)).save(file, "ico")
    return file.getvalue()


X_FILE = idx(images(40, (28, 28))[0])
SHORT = gzip.compress(gzip.decompress(X_FILE)[:-500])
LONG = gzip.compress(gzip.decompress(X_FILE) + b"more")
ABSURD = gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12)
WRAPPED = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 4))  # 2**64
BATCHES = "cifar-10-batches-py"
BATCH = f"{BATCHES}/data_batch_1"
WORDS = pickle.dumps({b"data": np.zeros((20, 3072), "uint8"), b"labels": ["cat"] * 20}, 2)
OTHER_SIZE = idx(images(20, (14, 14))[0])
WRONG_SVHN = io.BytesIO()
savemat(WRONG_SVHN, {"X": np.zeros((32, 32, 3, 40), "uint8"), "y": np.arange(40)})
BROKEN = {
    "missing file": ("fashion_mnist", X, None, X),
    "empty file": ("fashion_mnist", X, b"", "not a whole file"),
    "truncated gzip": ("fashion_mnist", X, X_FILE[:-500], "not a whole file"),
    "truncated content": ("fashion_mnist", X, SHORT, "it claims"),
    "more than it claims": ("fashion_mnist", X, LONG, "it claims"),
    "wrong dimensions": ("fashion_mnist", X, idx(np.zeros(40)), "first bytes"),
    "absurd size": ("fashion_mnist", X, ABSURD, "it claims the shape"),
    "size beyond 64 bits": ("fashion_mnist", X, WRAPPED, "it claims the shape"),
    "fewer labels": ("fashion_mnist", Y, idx(np.arange(30) % 10), "40 images and 30 labels"),
    "one class missing": ("fashion_mnist", Y, idx(np.maximum(np.arange(40) % 10, 1)), "class 0"),
    "unknown label": ("fashion_mnist", Y, idx(np.arange(40) % 11), "10 is not one of 10 labels"),
    "other size": ("fashion_mnist", "t10k-images-idx3-ubyte.gz", OTHER_SIZE, r"\(14, 14, 1\)"),
    "no mat file": ("svhn", "train_32x32.mat", b"MATLAB 5.0" * 50, "not a whole file"),
    "svhn missing": ("svhn", "test_32x32.mat", None, "test_32x32.mat is missing"),
    "svhn labels": ("svhn", "test_32x32.mat", WRONG_SVHN.getvalue(), "40 labels 0 to 39"),
    "corrupt pickle": ("cifar10", BATCH, cifar_batch(20, 0)[:-3000], "not a whole file"),
    "evil pickle": ("cifar10", BATCH, pickle.dumps({b"data": Evil()}), "it asks for"),
    "evil names": ("cifar10", f"{BATCHES}/batches.meta", pickle.dumps(Evil()), "it asks for"),
    "pickle of something else": ("cifar10", BATCH, pickle.dumps([1, 2]), "not a whole file"),
    "words for labels": ("cifar10", BATCH, WORDS, "not a whole file"),
    "cifar missing": ("cifar10", f"{BATCHES}/test_batch", None, "cifar-10-python.tar.gz"),
    "mixed sizes": ("leaves", "train/bee/1.png", grey_png(5, 9), "bring all images to one size"),
    "test of another size": ("leaves", "test/ant/0.png", grey_png(5, 9), "test.ant.0.png is .5, 9"),
    "not an image": ("leaves", "test/ant/0.png", b"hello", "not a whole file"),
    "another format": ("leaves", "test/ant/0.png", icon(), "not a whole file"),
    "image bomb": ("leaves", "train/ant/0.png", claims(60000, 60000), "not a whole file"),
    "small bomb": ("leaves", "train/ant/0.png", claims(1025, 1024), "claims 1025 x 1024"),
    "class without images": ("leaves", "train/wasp/readme.txt", b"", "train/wasp has no"),
    "class in one part": ("leaves", "test/wasp/0.png", grey_png(11, 9), "train/wasp has no"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(home, source, untouched, case):
    name, file, content, message = BROKEN[case]
    WRITERS[name](source)
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).unlink(missing_ok=True)
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepared(name, source)
    assert "\n" not in str(error.value)
    assert not list((home / "data" / name).glob("*.npy"))
    assert not untouched.exists()


def test_tar_members_stay_where_they_are(home, source):
    with tarfile.open(source / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in ("../../evil/data_batch_1", "/test_batch"):
            member = tarfile.TarInfo(name)
            content = cifar_batch(20, 0)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    prepared("cifar10", source)
    assert not (source.parent.parent / "evil").exists()
    assert [path.name for path in source.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--source {source}", "digits take no --source.*with --dataset"),
        ("--dataset digits --source {source}", "digits take no --source"),
        ("--dataset leaves", "unknown data set 'leaves'.*--source"),
        ("--dataset leaves --source {source}", "has no train/ and test/"),
        ("--dataset svhn --source {source}/nowhere", "is not a folder"),
    ],
)
def test_wrong_flags_are_refused(home, source, flags, message):
    with pytest.raises(UserError, match=message):
        prepare.main(flags.format(source=source).split())
    assert not list(home.glob("data/*/*.npy"))
