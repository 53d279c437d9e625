"""Official files, made here in the official formats, or real; and their download.

The real ones are looked for in the folder that the environment variable DARE_DATA names, or in
../shared/data beside the repository: fashion_mnist/ and svhn/, the official files or a cut of them.
"""

import gzip
import hashlib
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from conftest import ROOT
from data_files import (
    X,
    Y,
    images,
    info_of,
    prepared,
    write_cifar,
    write_fashion,
    write_svhn,
    write_tar,
)
from scipy.io import loadmat

from data import official, prepare
from train.shared.flags import UserError
from train.utils import class_names

pytest_plugins = ["data_files"]

REAL = Path(os.environ.get("DARE_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize(
    ("name", "write", "batches", "tenth"),
    [
        ("fashion_mnist", write_fashion, [(40, (28, 28), 0)], "Ankle boot"),
        ("svhn", write_svhn, [(40, (32, 32, 3), 0)], "9"),
        ("cifar10", write_cifar, [(20, (32, 32, 3), 0), (20, (32, 32, 3), 1)], "truck"),
        ("cifar10", write_tar, [(20, (32, 32, 3), 0), (20, (32, 32, 3), 1)], "name9"),
    ],
)
def test_official_formats_give_the_same_images_shuffled(home, source, name, write, batches, tenth):
    write(source)
    before = sorted(source.rglob("*"))
    parts = prepared(name, source)
    raw = [images(*batch) for batch in batches]
    expected = {i.tobytes(): label for x, y in raw for i, label in zip(x, y, strict=True)}
    x = np.concatenate([parts["train"][0], parts["validation"][0]])
    y = np.concatenate([parts["train"][1], parts["validation"][1]])
    assert {i.tobytes(): label for i, label in zip(x, y, strict=True)} == expected
    assert x.shape == (40, *batches[0][1][:2], x.shape[-1]) and len(parts["train"][1]) == 20
    assert class_names(name, 10)[9] == tenth and len(class_names(name, 10)) == 10
    assert sorted(source.rglob("*")) == before  # nothing is unpacked beside the archive


def test_digits(home):
    parts = prepared("digits")
    assert [len(y) for _, y in parts.values()] == [718, 719, 360]
    assert parts["test"][0].shape == (360, 28, 28, 1)
    info = info_of(home, "digits")
    assert info["class_names"] == list("0123456789")
    assert info["classes"] == 10 and info["seed"] == 0 and info["shape"] == [28, 28, 1]
    assert info["images"] == {"train": 718, "validation": 719, "test": 360}


@pytest.mark.parametrize("name", ["fashion_mnist", "svhn"])
def test_real_files(home, name):
    """As many images as the files hold, with the labels and the pixels that they hold."""
    folder = REAL / name
    if missing := [file for file in prepare.OFFICIAL[name] if not (folder / file).exists()]:
        pytest.skip(f"{folder / missing[0]} is not on this machine: set DARE_DATA")
    if name == "svhn":
        train, test = (loadmat(folder / f"{part}_32x32.mat") for part in ("train", "test"))
        labels = [content["y"].ravel() % 10 for content in (train, test)]
        mean = train["X"].mean()
    else:
        files = (folder / f"{part}-labels-idx1-ubyte.gz" for part in ("train", "t10k"))
        labels = [np.frombuffer(gzip.decompress(f.read_bytes())[8:], "uint8") for f in files]
        mean = 0.2860 * 255 if len(labels[0]) == 60000 else None  # as published
    parts = prepared(name, folder)
    x = np.concatenate([parts["train"][0], parts["validation"][0]])
    y = np.concatenate([parts["train"][1], parts["validation"][1]])
    assert len(parts["train"][1]) == len(labels[0]) // 2
    np.testing.assert_array_equal(np.bincount(y), np.bincount(labels[0]))
    np.testing.assert_array_equal(parts["test"][1], labels[1])
    assert mean is None or abs(x.mean() - mean) < 0.0001 * 255


def test_offline_says_which_files_to_put_where(home, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(official, "urlopen", no_network)
    for name, files in official.OFFICIAL.items():
        with pytest.raises(UserError, match=f"no network.*{', '.join(files)}.*--source"):
            prepared(name)
        assert not list((home / "data" / name / "official").iterdir())


def test_download_checks_the_digest(home, source, monkeypatch):
    """From local files in the official format, by their file:// address."""
    write_fashion(source)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()
    }
    monkeypatch.setitem(official.ADDRESSES, "fashion_mnist", source.as_uri() + "/")
    monkeypatch.setattr(official, "SHA256", digests)
    assert len(prepared("fashion_mnist")["test"][1]) == 20
    folder = home / "data/fashion_mnist/official"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    (folder / Y).write_bytes(b"cut short")  # is fetched again
    (source / X).unlink()  # is not
    official.download("fashion_mnist")
    assert (folder / Y).read_bytes() == (source / Y).read_bytes()
    monkeypatch.setitem(digests, Y, "0" * 64)
    (folder / Y).unlink()
    with pytest.raises(UserError, match=r"cannot download .*another SHA-256"):
        official.download("fashion_mnist")
    assert [path.name for path in folder.iterdir() if path.name in (Y, f".{Y}")] == []


def test_official_digests():
    assert len(official.SHA256) == 7
    assert all(len(bytes.fromhex(digest)) == 32 for digest in official.SHA256.values())
    files = [file for files in official.OFFICIAL.values() for file in files]
    assert sorted(files) == sorted(official.SHA256)
    assert official.OFFICIAL.keys() == official.ADDRESSES.keys()
    assert [len(files) for files in official.OFFICIAL.values()] == [1, 2, 4]
