"""Folders of images."""

import io

import numpy as np
import pytest
from data_files import images, prepared, write_folder
from PIL import Image

from data.folders import read_folder
from train.shared.flags import UserError
from train.utils import class_names

pytest_plugins = ["data_files"]


def read_images(folder, files):
    """{name: Pillow image or bytes} as read, in the order of their names."""
    for part in "train", "test":
        inside = folder / part / "only"
        inside.mkdir(parents=True)
        for name, image in files.items():
            if isinstance(image, bytes):
                (inside / name).write_bytes(image)
            else:
                image.save(inside / name)
    return read_folder(folder)[1][0]


def read_all(folder, *files):
    return read_images(folder, {f"{i}.png": file for i, file in enumerate(files)})


def test_folder_of_images(home, source):
    write_folder(source)
    x, y = prepared("leaves", source)["test"]
    assert class_names("leaves", 2) == ["ant", "bee"]
    np.testing.assert_array_equal(x, [images(1, (9, 11, 3), i)[0][0] for i in (0, 1, 2, 0, 1, 2)])
    assert y.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    for kind in "uint16", "int32", "float32":
        with pytest.raises(UserError, match=r"0.tif.* more than 8 bits: convert it to 8"):
            read_images(tmp_path / kind, {"0.tif": Image.fromarray(np.ones((5, 7), kind))})


def test_grey_images_stay_grey_where_all_are(source, capsys):
    grey = Image.fromarray(np.arange(16).reshape(2, 8).astype("uint8") * 16)
    x = read_all(source, grey, grey.convert("1", dither=0), grey.convert("LA"))
    assert x.shape == (3, 2, 8, 1)
    np.testing.assert_array_equal(x[0, ..., 0], grey)
    np.testing.assert_array_equal(x[1], 255 * (x[0] >= 128))
    np.testing.assert_array_equal(x[2], x[0])
    assert "converted" not in capsys.readouterr().out


def test_transparent_parts_lie_over_white(source):
    rgba = images(1, (6, 5, 4), 0)[0][0]
    x = read_all(source, Image.fromarray(rgba))
    share = rgba[..., 3:] / 255
    assert np.abs(x[0] - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 1


def test_files_that_are_not_used_are_counted(source, capsys):
    write_folder(source)
    read_folder(source)
    assert capsys.readouterr().out == ""
    for folder in ".ipynb_checkpoints", "__MACOSX", "lost+found", "ant/@eaDir":
        (source / "train" / folder).mkdir()
        (source / "train" / folder / "0.png").write_bytes(b"no image")
    (source / "test/bee/more").mkdir()
    for name in ("._0.png", "readme.txt", "1.heic", "2.svg", "more/0.png", "more/1.png"):
        (source / "test/bee" / name).write_bytes(b"")
    _, (x, y), names = read_folder(source)
    assert names == ["ant", "bee"] and len(x) == len(y) == 6
    out = capsys.readouterr().out
    assert "10 other files are ignored, first " in out


def test_every_format_and_content_counts_not_the_name(source, capsys):
    """A GIF that is called .png is a whole file, and is read."""
    x, _ = images(1, (9, 11, 3))
    picture, gif = Image.fromarray(x[0]), io.BytesIO()
    picture.save(gif, "gif")
    names = ["0.png", "1.bmp", "2.gif", "3.tif", "4.webp", "5.ppm", "6.PNG"]
    found = read_images(source, dict.fromkeys(names, picture) | {"7.png": gif.getvalue()})
    assert len(found) == 8 and "ignored" not in capsys.readouterr().out
    np.testing.assert_array_equal(found[[0, 1, 3, 5, 6]], np.repeat(x, 5, axis=0))  # lossless
    np.testing.assert_array_equal(found[7], found[2])


def test_exif_orientation_is_applied(tmp_path):
    """A camera that was held sideways: the image is turned as its viewer would."""
    stored = images(1, (9, 11, 3))[0][0]
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(stored).save(file, "png", exif=exif)
    x = read_images(tmp_path, {"0.png": file.getvalue()})
    np.testing.assert_array_equal(x[0], np.rot90(stored, -1))
