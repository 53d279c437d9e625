"""Folders of images."""

import io
import struct

import numpy as np
import pytest
from data_files import chunk, images, png, prepared, write_folder
from PIL import Image

from data import prepare
from train import log, params
from train.models import build_model
from train.shared.flags import UserError
from train.utils import class_names, load_data

pytest_plugins = ["data_files"]


@pytest.fixture(autouse=True)
def smallest_image(monkeypatch):
    """Most of these tests are about images that are smaller than any network takes."""
    size = params.smallest_image
    monkeypatch.setattr(params, "smallest_image", 1)
    return size


def write_pngs(folder, files):
    """A data set of one class, `only`, whose training and test images are `files`."""
    write_images(folder, {f"{i}.png": file for i, file in enumerate(files)})


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


@pytest.mark.parametrize(("kind", "largest"), [("int32", 255), ("int32", 2**16), ("float32", 1)])
def test_grey_images_of_other_numbers_are_refused(home, source, kind, largest):
    """They would all become black, or wrap around."""
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7), largest, kind)).save(file, "tiff")
    write_images(source, {f"{i}.tiff": file.getvalue() for i in range(2)})
    with pytest.raises(UserError, match="its pixels are"):
        prepare.prepare("mine", source)


def test_a_source_without_folders_of_classes(home, source):
    for part in "train", "test":
        (source / part).mkdir(parents=True)
        (source / part / "0.png").write_bytes(png(np.zeros((5, 7), int), 0, 8))
    with pytest.raises(UserError, match="train has no folders: put the images of each class"):
        prepare.prepare("mine", source)


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


def write_images(source, files):
    """A data set of one class, `only`, of the images {name: Pillow image} or {name: bytes}."""
    for part in "train", "test":
        folder = source / part / "only"
        folder.mkdir(parents=True)
        for name, image in files.items():
            if isinstance(image, bytes):
                (folder / name).write_bytes(image)
            else:
                image.save(folder / name)


def test_every_format_and_content_counts_not_the_name(home, source, capsys):
    """A GIF that is called .png is a whole file, and is read."""
    x, _ = images(1, (9, 11, 3))
    picture = Image.fromarray(x[0])
    names = ["0.png", "1.bmp", "2.gif", "3.tif", "4.webp", "5.ppm", "6.PNG"]
    files = dict.fromkeys(names, picture)
    write_images(source, files)
    picture.save(source / "test/only/7.gif")
    (source / "test/only/7.gif").rename(source / "test/only/7.png")
    found = read_pngs(source)
    assert len(found) == 8 and "not used" not in capsys.readouterr().out
    lossless = [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(found[lossless], np.repeat(x, 5, axis=0))
    np.testing.assert_array_equal(found[7], found[2])


def test_images_of_other_kinds_are_counted_in_a_warning(home, source, capsys):
    picture = Image.fromarray(images(1, (9, 11, 3))[0][0])
    write_images(
        source, {"0.png": picture, "9.png": picture, "1.heic": b"", "2.svg": b"", "notes.txt": b""}
    )
    read_pngs(source)
    out = capsys.readouterr().out
    assert "Warning: 4 images (.heic, .svg) are not used" in out
    assert "2 hidden or other files ignored" in out


@pytest.mark.parametrize("kind", ["png", "tiff"])  # Pillow turns the size of the second itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(home, source, orientation, kind):
    """A camera that was held sideways: the image is turned as its viewer would."""
    stored = images(1, (9, 11, 3))[0][0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored).save(file, kind, exif=exif)
    write_images(source, {f"{i}.{kind}": file.getvalue() for i in range(2)})
    flipped = stored[:, ::-1]
    expected = {
        1: stored, 2: flipped, 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1), 7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(stored, 1),
    }  # fmt: skip
    np.testing.assert_array_equal(read_pngs(source)[0], expected[orientation])


def test_too_many_classes_and_too_small_images(home, source, smallest_image, monkeypatch):
    monkeypatch.setattr(params, "smallest_image", smallest_image)
    picture = Image.fromarray(images(1, (8, 8, 3))[0][0])
    for number in range(257):
        for part in "train", "test":
            (source / part / f"{number:03d}").mkdir(parents=True)
            for name in "0.png", "1.png":
                picture.save(source / part / f"{number:03d}" / name)
    with pytest.raises(UserError, match="has 257 classes: at most 256 are possible"):
        prepared("many", source)
    small = source.with_name("small")
    write_images(small, dict.fromkeys(("0.png", "1.png"), picture.resize((7, 9))))
    with pytest.raises(UserError, match=r"images of 9 x 7 pixels.* less than 8 x 8: enlarge them"):
        prepared("small", small)


def test_the_smallest_image_fits_a_network(smallest_image):
    size = smallest_image
    build_model("lenet", (size, size, 1), 2)
    for name in params.chosen_layer.keys() - {"tiny", "plain"}:
        with pytest.raises(ValueError, match=r"output size|at least 8x8"):
            build_model(name, (size - 1, size - 1, 1), 2)
