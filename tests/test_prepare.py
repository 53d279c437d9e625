"""Official files, and files that pretend to be: made here in the official formats, and the real ones where they lie."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy.io import savemat

from data import prepare
from train.files import UserError, load_data

SHARED = ROOT.parent / "shared" / "data"


def images(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype="uint8"), np.arange(n) % 10


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("uint8").tobytes())


def write_fashion(folder, n=40):
    for name, seed, size in ("train", 0, n), ("t10k", 1, n // 2):
        x, y = images(size, (28, 28), seed)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(x))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(y))


def write_svhn(folder, n=40):
    for name, seed in ("train", 0), ("test", 1):
        x, y = images(n, (32, 32, 3), seed)
        savemat(folder / f"{name}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]})


def cifar_batch(n, seed):
    x, y = images(n, (32, 32, 3), seed)
    return pickle.dumps({b"data": x.transpose(0, 3, 1, 2).reshape(n, -1), b"labels": y.tolist()}, protocol=2)


def write_cifar(folder, n=20):
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    for seed, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        (inside / name).write_bytes(cifar_batch(n, seed))


def write_tar(folder):
    write_cifar(folder)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    for path in (folder / "cifar-10-batches-py").iterdir():
        path.unlink()


def write_folder(folder, n=3, mode="RGB"):
    for part in "train", "test":
        for label in "ant", "bee":
            (folder / part / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(images(1, (9, 11, 3), i)[0][0]).convert(mode).save(folder / part / label / f"{i}.png")


WRITERS = {"fashion_mnist": write_fashion, "svhn": write_svhn, "cifar10": write_cifar, "leaves": write_folder}


def prepared(name, source, **kwargs):
    prepare.prepare(name, source, kwargs.get("limit"), kwargs.get("seed", 0))
    return {part: load_data(name, part) for part in ("train", "validation", "test")}


@pytest.mark.parametrize(("name", "write"), [*WRITERS.items(), ("cifar10", write_tar)])
def test_reads_every_official_format(home, tmp_path, name, write):
    source = tmp_path / "source"
    source.mkdir()
    write(source)
    parts = prepared(name, source)
    shape, n = {"fashion_mnist": ((28, 28, 1), 40), "leaves": ((9, 11, 3), 6)}.get(name, ((32, 32, 3), 40))
    x = np.concatenate([parts["train"][0], parts["validation"][0]])
    assert x.shape == (n, *shape) and len(parts["train"][0]) == n // 2
    if name == "leaves":
        return
    # The same images, with their labels, only shuffled.
    seeds = {"cifar10": [(20, 0), (20, 1)], "svhn": [(40, 0)], "fashion_mnist": [(40, 0)]}[name]
    raw = [images(size, shape if name != "fashion_mnist" else (28, 28), seed) for size, seed in seeds]
    expected = {i.tobytes(): label for batch, labels in raw for i, label in zip(batch, labels, strict=True)}
    y = np.concatenate([parts["train"][1], parts["validation"][1]])
    assert {i.tobytes(): label for i, label in zip(x, y, strict=True)} == expected
    assert not (source / "cifar-10-batches-py").exists() or not list((source / "cifar-10-batches-py").glob("*.npy"))


def test_digits_limit_and_seed(home):
    whole = prepared("digits", None)
    assert [len(y) for _, y in whole.values()] == [718, 719, 360] and whole["test"][0].shape == (360, 28, 28, 1)
    small = prepared("digits", None, limit=100)
    y = np.concatenate([small["train"][1], small["validation"][1]])
    assert (np.bincount(y) == 10).all()
    again, other = prepared("digits", None, limit=100), prepared("digits", None, limit=100, seed=1)
    np.testing.assert_array_equal(small["train"][0], again["train"][0])
    assert (np.asarray(other["train"][1]) != small["train"][1]).any()
    info = json.loads((home / "data/digits/info.json").read_text())
    assert info["seed"] == 1 and info["limit"] == 100 and info["classes"] == 10


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/dare_was_here"),))


def png(size, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "png")
    return file.getvalue()


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""
    whole = png((8, 8))
    return whole[:16] + struct.pack(">II", 60000, 60000) + whole[24:]


FASHION, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
BATCH = "cifar-10-batches-py/data_batch_1"
BROKEN = {
    "missing file": ("fashion_mnist", FASHION, None, FASHION),
    "empty file": ("fashion_mnist", FASHION, b"", "not a whole file"),
    "truncated gzip": ("fashion_mnist", FASHION, idx(images(40, (28, 28))[0])[:-500], "not a whole file"),
    "truncated content": ("fashion_mnist", FASHION, gzip.compress(gzip.decompress(idx(images(40, (28, 28))[0]))[:-500]), "it claims"),
    "wrong dimensions": ("fashion_mnist", FASHION, idx(np.zeros(40)), "first bytes"),
    "absurd size": ("fashion_mnist", FASHION, gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12), "it claims the shape"),
    "fewer labels": ("fashion_mnist", LABELS, idx(np.arange(30) % 10), "different number"),
    "one class missing": ("fashion_mnist", LABELS, idx(np.maximum(np.arange(40) % 10, 1)), "class 0"),
    "no mat file": ("svhn", "train_32x32.mat", b"MATLAB 5.0" * 50, "not a whole file"),
    "svhn missing": ("svhn", "test_32x32.mat", None, "test_32x32.mat"),
    "corrupt pickle": ("cifar10", BATCH, cifar_batch(20, 0)[:-3000], "not a whole file"),
    "evil pickle": ("cifar10", BATCH, pickle.dumps({b"data": Evil()}), "it asks for"),
    "pickle of something else": ("cifar10", BATCH, pickle.dumps([1, 2]), "not a whole file"),
    "cifar missing": ("cifar10", "cifar-10-batches-py/test_batch", None, "cifar-10-python.tar.gz"),
    "mixed sizes": ("leaves", "train/bee/1.png", png((5, 9)), "bring all images to one size"),
    "mixed colour": ("leaves", "train/bee/1.png", png((11, 9), "L"), "bring all images to one size"),
    "not an image": ("leaves", "test/ant/0.png", b"hello", "not a whole file"),
    "image bomb": ("leaves", "train/ant/0.png", bomb(), "not a whole file"),
    "class without images": ("leaves", "train/wasp/readme.txt", b"", "wasp"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(home, tmp_path, case):
    name, file, content, message = BROKEN[case]
    source = tmp_path / "source"
    source.mkdir()
    WRITERS[name](source)
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).unlink(missing_ok=True)
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepared(name, source)
    assert "\n" not in str(error.value)
    assert not list((home / "data" / name).glob("*.npy"))
    assert not Path("/tmp/dare_was_here").exists()


def test_killed_between_two_files_leaves_no_wrong_labels(home, monkeypatch):
    prepare.prepare("digits", None, 40, 0)
    real, count = np.save, []

    def killed(*args, **kwargs):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("digits", None, 40, 1)  # other images in every part
    for part in "train", "validation":
        with pytest.raises(UserError, match=r"y_.*\.npy is missing"):
            load_data("digits", part)


def test_tar_members_stay_where_they_are(home, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in ("../../evil/data_batch_1", "/test_batch"):
            member = tarfile.TarInfo(name)
            content = cifar_batch(20, 0)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    prepared("cifar10", tmp_path)
    assert not (tmp_path.parent.parent / "evil").exists() and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["cifar-10-python.tar.gz"]


def test_offline_says_which_files_to_put_where(home, monkeypatch):
    import keras

    def no_network(*args, **kwargs):
        assert kwargs["hash_algorithm"] == "sha256" and len(kwargs["file_hash"]) == 64
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    for name in prepare.OFFICIAL:
        with pytest.raises(UserError, match=f"{next(iter(prepare.OFFICIAL[name]))}.*--source"):
            prepared(name, None)


def test_download_checks_the_digest(home, tmp_path, monkeypatch):
    """Through keras.utils.get_file itself, from local files in the official format."""
    import hashlib

    write_fashion(tmp_path)
    good = {f: (tmp_path.as_uri() + "/", hashlib.sha256((tmp_path / f).read_bytes()).hexdigest()) for f in prepare.OFFICIAL["fashion_mnist"]}
    monkeypatch.setitem(prepare.OFFICIAL, "fashion_mnist", good)
    assert len(prepared("fashion_mnist", None)["test"][1]) == 20
    monkeypatch.setitem(prepare.OFFICIAL, "fashion_mnist", good | {LABELS: (good[LABELS][0], "0" * 64)})
    with pytest.raises(UserError, match="cannot download"):
        prepare.download("fashion_mnist")
    assert not (home / "data/fashion_mnist/official" / LABELS).exists()


@pytest.mark.skipif(not SHARED.exists(), reason="the real data are not on this machine (../shared/data)")
@pytest.mark.parametrize(("name", "sizes"), [("fashion_mnist", (30000, 30000, 10000)), ("svhn", (3500, 3500, 3000))])
def test_real_files(home, name, sizes):
    parts = prepared(name, SHARED / name)
    assert tuple(len(y) for _, y in parts.values()) == sizes
