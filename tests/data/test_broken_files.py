"""Broken and odd files: refused in one sentence, and nothing in them is executed."""

import io
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_files import BATCHES, WRITERS, X, Y, cifar_batch, idx, images, prepared, write_tar
from PIL import Image

from data import folders, prepare
from train.shared.flags import UserError

pytest_plugins = ["data_files"]

# What the evil pickle touches, if it is executed: of this process only, as others may run too.
TOUCHED = Path(tempfile.gettempdir()) / f"dare_was_here_{os.getpid()}"


class Evil:
    def __reduce__(self):
        return (Path.touch, (TOUCHED,))


Image.new("L", (5, 9)).save(BUFFER := io.BytesIO(), "png")
SMALL = BUFFER.getvalue()
LABELS = np.arange(200) % 10
BATCH = f"{BATCHES}/data_batch_1"
OTHER_SIZE = idx(images(100, (14, 14))[0])
BROKEN = {
    "missing file": ("fashion_mnist", X, None, f"{X} is missing"),
    "truncated": ("fashion_mnist", X, idx(np.zeros((200, 28, 28)))[:-9], f"{X} cannot be read"),
    "wrong dimensions": ("fashion_mnist", X, idx(LABELS), "first bytes"),
    "fewer labels": ("fashion_mnist", Y, idx(LABELS[:30]), "200 images and 30 labels"),
    "one class missing": ("fashion_mnist", Y, idx(np.maximum(LABELS, 1)), "T-shirt"),
    "unknown label": ("fashion_mnist", Y, idx(LABELS + 1), "labels 1 to 10 of 10 classes"),
    "other size": ("fashion_mnist", "t10k-images-idx3-ubyte.gz", OTHER_SIZE, r"\(14, 14, 1\)"),
    "no mat file": ("svhn", "train_32x32.mat", b"MATLAB 5.0" * 50, "train_32x32.mat cannot be"),
    "corrupt pickle": ("cifar10", BATCH, cifar_batch(20, 0)[:-3000], "data_batch_1 cannot be read"),
    "evil pickle": ("cifar10", BATCH, pickle.dumps({b"data": Evil()}), "it asks for"),
    "mixed sizes": ("leaves", "test/bee/1.png", SMALL, r"1.png is \(5, 9\).* to one size"),
    "not an image": ("leaves", "test/ant/0.png", b"hello", "0.png cannot be read"),
    "class without images": ("leaves", "train/wasp/readme.txt", b"", "train/wasp has no"),
    "class in one part": ("leaves", "test/wasp/0.png", SMALL, "train/wasp has no"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(home, source, case):
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
    assert not TOUCHED.exists()


def test_an_archive_without_a_batch_or_none_at_all(home, source):
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is missing"):
        prepared("cifar10", source)
    write_tar(source, without="data_batch_3")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz .*it has no data_batch_3"):
        prepared("cifar10", source)


def test_images_without_classes_or_over_the_limit(home, source, monkeypatch):
    (source / "train").mkdir(), (source / "test").mkdir()
    with pytest.raises(UserError, match="train has no folders: put the images of each class into"):
        prepared("leaves", source)
    (source / "train").rmdir(), (source / "test").rmdir()
    WRITERS["leaves"](source)
    monkeypatch.setattr(folders, "LARGEST_DATA", 12 * 9 * 11 * 3 - 1)
    with pytest.raises(UserError, match=r"12 images like .*, of 11 x 9 pixels,.* make them small"):
        prepared("leaves", source)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--source {source}", "digits take no --source.*with --dataset"),
        ("--dataset leaves", "unknown data set 'leaves'.*--source"),
        ("--dataset leaves --source {source}", "has no train/ and test/"),
        ("--dataset svhn --source {source}/nowhere", "is not a folder"),
    ],
)
def test_wrong_flags_are_refused(home, source, flags, message):
    with pytest.raises(UserError, match=message):
        prepare.main(flags.format(source=source).split())
    assert not list(home.glob("data/*/*.npy"))
