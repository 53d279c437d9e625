"""Official files, made here in the official formats, and their download."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from data_files import X, Y, images, prepared, write_cifar, write_fashion, write_svhn, write_tar

from data import official
from train.shared.flags import UserError
from train.utils import class_names

pytest_plugins = ["data_files"]


def write_unpacked_fashion(folder):
    """Without gzip: one by its own name, one that a browser has unpacked and named as before."""
    write_fashion(folder)
    (folder / X).write_bytes(gzip.decompress((folder / X).read_bytes()))
    (folder / Y.removesuffix(".gz")).write_bytes(gzip.decompress((folder / Y).read_bytes()))
    (folder / Y).unlink()


CIFAR = [(40, (32, 32, 3), seed) for seed in range(5)]


@pytest.mark.parametrize(
    ("name", "write", "batches", "tenth"),
    [
        ("fashion_mnist", write_fashion, [(200, (28, 28), 0)], "Ankle boot"),
        ("fashion_mnist", write_unpacked_fashion, [(200, (28, 28), 0)], "Ankle boot"),
        ("svhn", write_svhn, [(200, (32, 32, 3), 0)], "9"),
        ("cifar10", write_cifar, CIFAR, "truck"),
        ("cifar10", write_tar, CIFAR, "truck"),
    ],
)
def test_official_formats_give_the_same_images_shuffled(home, source, name, write, batches, tenth):
    write(source)
    before = sorted(source.rglob("*"))
    parts = prepared(name, source)
    raw = [images(*batch) for batch in batches]
    expected = {i.tobytes(): label for x, y in raw for i, label in zip(x, y, strict=True)}
    x, y = (np.concatenate([parts["train"][i], parts["validation"][i]]) for i in (0, 1))
    assert {i.tobytes(): label for i, label in zip(x, y, strict=True)} == expected
    assert x.shape == (200, *batches[0][1][:2], x.shape[-1]) and len(parts["train"][1]) == 100
    assert class_names(name, 10)[9] == tenth and len(class_names(name, 10)) == 10
    assert sorted(source.rglob("*")) == before  # nothing is unpacked beside the archive


def test_real_files(home):
    """The published mean of Fashion-MNIST, and 6,000 images of each class."""
    folder = Path(os.environ.get("DARE_DATA", ROOT.parent / "shared" / "data")) / "fashion_mnist"
    if not (folder / X).exists():
        pytest.skip(f"{folder / X} is not on this machine: set DARE_DATA")
    parts = prepared("fashion_mnist", folder)
    x, y = (np.concatenate([parts["train"][i], parts["validation"][i]]) for i in (0, 1))
    assert (np.bincount(y) == 6000).all() and abs(x.mean() / 255 - 0.2860) < 0.0001


def test_download_from_local_files(home, source, monkeypatch):
    """By their file:// address: checked, kept, fetched again where cut short, or a sentence."""
    write_fashion(source)
    content = {path.name: path.read_bytes() for path in source.iterdir()}
    digests = {name: hashlib.sha256(content[name]).hexdigest() for name in content}
    monkeypatch.setitem(official.ADDRESSES, "fashion_mnist", source.as_uri() + "/")
    monkeypatch.setattr(official, "SHA256", digests)
    folder = official.download("fashion_mnist")
    assert folder == home / "data/fashion_mnist/official"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    (folder / Y).write_bytes(b"cut short")
    (source / X).unlink()  # is not fetched again
    official.download("fashion_mnist")
    assert (folder / Y).read_bytes() == content[Y]
    monkeypatch.setitem(digests, Y, "0" * 64)
    for _ in range(2):  # what is left of the first try is not taken for whole
        with pytest.raises(UserError, match=rf"cannot download .*{Y} \(.*hash"):
            official.download("fashion_mnist")
    (folder / X).unlink()
    files = ", ".join(official.OFFICIAL["fashion_mnist"])
    with pytest.raises(UserError, match=rf"cannot download .*{X} \(.*{files} .*--source"):
        official.download("fashion_mnist")
