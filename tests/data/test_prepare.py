"""Official files, and files that pretend to be: made here in the official formats, or real.

The real ones are looked for in the folder that the environment variable DARE_DATA names, or in
../shared/data beside the repository: fashion_mnist/ and svhn/, the official files or a cut of them.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import platform
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy.io import loadmat, savemat

from data import prepare
from train import log
from train.flags import UserError
from train.utils import class_names, load_data

REAL = Path(os.environ.get("DARE_DATA", ROOT.parent / "shared" / "data"))
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


# --------------------------------------------------------------------------------- official files


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


# --------------------------------------------------------------------------- limit and half split


def test_limit_is_the_same_for_the_same_seed_and_balanced(home):
    small = prepared("digits", limit=100)
    y = np.concatenate([small["train"][1], small["validation"][1]])
    assert (np.bincount(y) == 10).all()
    labels = np.random.default_rng(1).integers(0, 5, 300)
    halves = [prepare.half_split(labels, 5, 60, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(halves[0][0], halves[1][0])
    assert sorted(np.concatenate(halves[0])) != sorted(np.concatenate(halves[2]))


@pytest.mark.parametrize("limit", [6, 7, 20, 21, 61, 110, 111])
def test_balanced_against_taking_turns(limit):
    """Classes of 100, 10 and 1 images: each gives one in turn, as long as it has any."""
    left, expected = [100, 10, 1], [0, 0, 0]
    while sum(expected) < limit:
        for label in range(3):
            if left[label] and sum(expected) < limit:
                left[label] -= 1
                expected[label] += 1
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 10, 1]))
    chosen = prepare.balanced(y, limit, np.random.default_rng(0))
    assert len(set(chosen)) == limit
    # Which class gives the last, incomplete turn is left to chance.
    assert np.abs(np.bincount(y[chosen], minlength=3) - expected).max() <= 1


@pytest.mark.parametrize("n", [2, 3, 40, 41])
def test_half_split_uses_every_image_once(n):
    train, validation = prepare.half_split(np.arange(n) % 2, 2, None, 0)
    assert len(train) == n // 2
    assert sorted([*train, *validation]) == list(range(n))


@pytest.mark.parametrize("limit", [19, 1438])
def test_limit_outside_the_data_set_is_refused(home, limit):
    with pytest.raises(UserError, match=rf"--limit {limit}: choose from 20 to 1437"):
        prepared("digits", limit=limit)
    assert not list((home / "data/digits").glob("*.npy"))


# ------------------------------------------------------------------- prepared before, or cut short


def contents(folder):
    return {path.name: path.read_bytes() for path in (*folder.glob("*.npy"), folder / "info.json")}


@pytest.mark.parametrize("other", [{"limit": 60}, {"limit": None}, {"seed": 1}])
def test_other_settings_are_refused_by_name_and_the_same_do_nothing(home, other):
    folder = home / "data/digits"
    prepared("digits", limit=100)
    before = contents(folder)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))]
    with pytest.raises(UserError, match=rf"prepared with {next(iter(other))} .*move it away"):
        prepared("digits", **{"limit": 100, **other})
    prepared("digits", limit=100)
    assert contents(folder) == before
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))] == times
    lines = (folder / "prepare.log").read_text().splitlines()
    assert json.loads(lines[-1])["ended"] == "idle"


def test_another_source_is_refused_by_name(home, tmp_path, source):
    write_svhn(source)
    prepared("svhn", source)
    before = contents(home / "data/svhn")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_svhn(elsewhere, 60)
    with pytest.raises(UserError, match=r"prepared with source .*source, not .*elsewhere"):
        prepared("svhn", elsewhere)
    prepared("svhn", str(source))
    assert contents(home / "data/svhn") == before


def test_without_info_json_only_the_same_arrays_are_taken(home):
    folder = home / "data/digits"
    prepared("digits", limit=100)
    before = contents(folder)
    (folder / "info.json").unlink()
    with pytest.raises(UserError, match=r"other images, without info\.json"):
        prepared("digits", limit=100, seed=1)
    assert not (folder / "info.json").exists()
    prepared("digits", limit=100)
    assert contents(folder) == before


@pytest.mark.parametrize("saves", range(6))
def test_cut_short_nothing_half_is_taken_for_whole(home, monkeypatch, saves):
    """Killed twice, with other settings each time: what can be loaded is of the second ones."""
    folder, real = home / "data/digits", np.save
    expected = {}
    for seed in 0, 1:
        prepared("digits", limit=40, seed=seed)
        expected[seed] = contents(folder)
        for path in folder.iterdir():
            path.unlink()

    def killed_after(count):
        left = iter(range(count))

        def save(*args, **kwargs):
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*args, **kwargs)

        return save

    for seed, count in ((0, 5), (1, saves)):
        monkeypatch.setattr(np, "save", killed_after(count))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("digits", limit=40, seed=seed)
    for part in PARTS:
        if not (folder / f"y_{part}.npy").exists():
            with pytest.raises(UserError, match=rf"y_{part}\.npy is missing"):
                load_data("digits", part)
            continue
        for name in (f"x_{part}.npy", f"y_{part}.npy", "info.json"):
            assert (folder / name).read_bytes() == expected[1][name]
    assert not (folder / "y_test.npy").exists()  # no script goes on without it

    killed = f".x_train.npy.{platform.node()}.999999999.tmp.npy"
    (folder / killed).write_bytes(b"of a killed process")
    monkeypatch.setattr(np, "save", real)
    prepare.prepare("digits", limit=40, seed=1)
    assert contents(folder) == expected[1]
    assert not list(folder.glob(".*"))


# ------------------------------------------------------------------------------ folders of images


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


def write_pngs(folder, files):
    """A data set of one class, `only`, whose training and test images are `files`."""
    for part in "train", "test":
        (folder / part / "only").mkdir(parents=True)
        for i, file in enumerate(files):
            (folder / part / "only" / f"{i}.png").write_bytes(file)


def read_pngs(source):
    """The test images, in the order of their names."""
    return np.asarray(prepared("mine", source)["test"][0])


def test_folder_of_images(home, source):
    write_folder(source)
    parts = prepared("leaves", source)
    assert class_names("leaves", 2) == ["ant", "bee"]
    assert parts["train"][0].shape == (3, 9, 11, 3)
    expected = [images(1, (9, 11, 3), i)[0][0] for i in (0, 1, 2, 0, 1, 2)]
    np.testing.assert_array_equal(parts["test"][0], expected)
    assert parts["test"][1].tolist() == [0, 0, 0, 1, 1, 1]


def test_16_bit_images_keep_their_high_byte(home, tmp_path, source, capsys):
    grey, grey2 = np.random.default_rng(0).integers(0, 2**16, (2, 5, 7))
    write_pngs(source, [png(grey, 0, 16), png(grey2, 0, 16)])
    np.testing.assert_array_equal(read_pngs(source)[..., 0], np.stack([grey, grey2]) // 256)
    colour = np.random.default_rng(1).integers(0, 2**16, (5, 7, 3))
    write_pngs(tmp_path / "colour", [png(grey, 0, 16), png(colour, 2, 16)])
    prepare.prepare("colour", tmp_path / "colour")
    x, _ = load_data("colour", "test")
    np.testing.assert_array_equal(x[0], np.repeat(grey[..., None] // 256, 3, axis=2))
    np.testing.assert_array_equal(x[1], colour // 256)
    assert "2 grey images of 4 converted to RGB" in capsys.readouterr().out


def test_grey_images_stay_grey_where_all_are(home, source, capsys):
    bits = np.array([[0b10100000], [0b01000000]])  # 2 rows of 8 pixels
    grey = np.arange(16).reshape(2, 8) * 16
    one_bit = png(bits, 0, 1).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 2, 1, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, 1, 0, 0, 0, 0)),
    )
    write_pngs(source, [one_bit, png(grey, 0, 8)])
    x = read_pngs(source)
    assert x.shape == (2, 2, 8, 1)
    np.testing.assert_array_equal(x[0, :, :3, 0], [[255, 0, 255], [0, 255, 0]])
    np.testing.assert_array_equal(x[1, ..., 0], grey)
    assert "converted" not in capsys.readouterr().out


def test_transparent_parts_lie_over_white(home, source):
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4))
    grey_alpha = np.random.default_rng(1).integers(0, 256, (6, 5, 2))
    palette = np.array([[255, 0, 0], [0, 0, 255], [9, 90, 200]])
    indices = np.random.default_rng(2).integers(0, 3, (6, 5))
    plte = chunk(b"PLTE", palette.astype("uint8").tobytes())
    trns = chunk(b"tRNS", bytes([255, 0]))  # the second colour is transparent
    files = [png(rgba, 6, 8), png(grey_alpha, 4, 8), png(indices, 3, 8, plte)]
    write_pngs(source, [*files, png(indices, 3, 8, plte + trns)])
    x = read_pngs(source).astype(float)

    def over_white(colour, alpha):
        share = alpha[..., None] / 255
        return colour * share + 255 * (1 - share)

    grey = np.repeat(grey_alpha[..., :1], 3, axis=2)
    assert np.abs(x[0] - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1
    assert np.abs(x[1] - over_white(grey, grey_alpha[..., 1])).max() <= 1
    np.testing.assert_array_equal(x[2], palette[indices])
    palette[1] = 255
    np.testing.assert_array_equal(x[3], palette[indices])


def test_hidden_and_other_files_are_ignored_with_a_word(home, source, capsys):
    write_folder(source)
    prepared("plain", source)
    assert "ignored" not in capsys.readouterr().out
    for part in "train", "test":
        (source / part / ".ipynb_checkpoints").mkdir()
        (source / part / ".ipynb_checkpoints" / "0.png").write_bytes(b"no image")
        (source / part / ".DS_Store").write_bytes(b"")
    (source / "train/ant/._0.png").write_bytes(b"of a Macintosh")
    (source / "test/bee/readme.txt").write_bytes(b"")
    parts = prepared("leaves", source)
    assert "6 hidden or other files ignored" in capsys.readouterr().out
    assert class_names("leaves", 2) == ["ant", "bee"]
    assert parts["test"][0].shape == (6, 9, 11, 3)


def test_says_how_far_it_is_without_a_terminal(home, source, capsys, monkeypatch):
    assert log.LINES["mininterval"] == 30  # pytest's stderr is no terminal
    for name in "mininterval", "delay":
        monkeypatch.setitem(log.LINES, name, 0)
    write_folder(source)
    prepared("leaves", source)
    out = capsys.readouterr().out
    for line in ("headers: 7 of 12", "train: 3 of 6", "test: 6 of 6"):
        assert line in out


# --------------------------------------------------------------------------- hostile and odd files


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


def bmp():
    file = io.BytesIO()
    Image.new("RGB", (11, 9)).save(file, "bmp")
    return file.getvalue()


X, Y = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
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
    "unknown label": ("fashion_mnist", Y, idx(np.arange(40) % 11), "10 is none of 10 labels"),
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
    "another format": ("leaves", "test/ant/0.png", bmp(), "not a whole file"),
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


# -------------------------------------------------------------------------------------- downloads


def test_offline_says_which_files_to_put_where(home, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(prepare, "urlopen", no_network)
    for name, files in prepare.OFFICIAL.items():
        with pytest.raises(UserError, match=f"no network.*{', '.join(files)}.*--source"):
            prepared(name)
        assert not list((home / "data" / name / "official").iterdir())


def test_download_checks_the_digest(home, source, monkeypatch):
    """From local files in the official format, by their file:// address."""
    write_fashion(source)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()
    }
    monkeypatch.setitem(prepare.ADDRESSES, "fashion_mnist", source.as_uri() + "/")
    monkeypatch.setattr(prepare, "SHA256", digests)
    assert len(prepared("fashion_mnist")["test"][1]) == 20
    official = home / "data/fashion_mnist/official"
    assert {p.name: p.read_bytes() for p in official.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    (official / Y).write_bytes(b"cut short")  # is fetched again
    (source / X).unlink()  # is not
    prepare.download("fashion_mnist")
    assert (official / Y).read_bytes() == (source / Y).read_bytes()
    monkeypatch.setitem(digests, Y, "0" * 64)
    (official / Y).unlink()
    with pytest.raises(UserError, match=r"cannot download .*another SHA-256"):
        prepare.download("fashion_mnist")
    assert [path.name for path in official.iterdir() if path.name in (Y, f".{Y}")] == []


def test_official_digests():
    assert len(prepare.SHA256) == 7
    assert all(len(bytes.fromhex(digest)) == 32 for digest in prepare.SHA256.values())
    files = [file for files in prepare.OFFICIAL.values() for file in files]
    assert sorted(files) == sorted(prepare.SHA256)
    assert prepare.OFFICIAL.keys() == prepare.ADDRESSES.keys()
    assert [len(files) for files in prepare.OFFICIAL.values()] == [1, 2, 4]
