"""Folders of images: train/<class>/* and test/<class>/*, in any format of FORMATS."""

import math
import mimetypes
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.parse import LARGEST_DATA, parse
from train.shared.flags import UserError
from train.shared.log import progress

LARGEST_IMAGE = 1024 * 1024  # pixels; a file that claims more is refused before it is decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for a quarter turn
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")  # Pillow's names


def read_folder(folder):
    """Read the images train/<class>/* and test/<class>/*, with the classes sorted by name.

    EXIF orientation is applied. Only the first frame of an animation is used. Palette images become
    RGB, and greyscale images too, unless all images are greyscale. Transparent areas become white,
    and 16-bit channels are reduced to 8 bits. Hidden files and folders and other files are ignored.

    Returns:
        (x, y) of train, (x, y) of test, and the names of the classes, as the official readers do.
    """
    ignored = []

    def visible(folder, is_wanted):
        paths = sorted(folder.iterdir())
        found = [path for path in paths if not path.name.startswith(".") and is_wanted(path)]
        ignored.extend(set(paths) - set(found))
        return found

    parts = {}
    for part in "train", "test":
        classes = visible(folder / part, Path.is_dir)
        parts[part] = {path.name: visible(path, _is_image) for path in classes}
    names = sorted(set().union(*parts.values()))
    if not names:
        raise UserError(f"{folder}/train has no folders: put the images of each class into one.")
    for part, name in product(parts, names):
        if not parts[part].get(name):
            raise UserError(
                f"{folder / part / name} has no image (.png, .jpg, ...): every class needs some."
            )
    report_ignored(ignored)
    paths = [path for part in parts.values() for of_class in part.values() for path in of_class]
    shape = _common_shape(paths)
    train, test = (_decode_all(part, classes, shape) for part, classes in parts.items())
    return train, test, names


def report_ignored(paths):
    """Say which files are not used, with a warning for those that look like images."""
    images = [path for path in paths if not path.name.startswith(".") and _looks_like_image(path)]
    if images:
        kinds = ", ".join(sorted({path.suffix.lower() for path in images}))
        print(
            f"Warning: {len(images)} images ({kinds}) are not used, first {min(images)}: convert "
            f"them to one of {', '.join(FORMATS)}.",
            flush=True,
        )
    if others := set(paths) - set(images):
        print(f"{len(others)} hidden or other files ignored, first {min(others)}", flush=True)


def _looks_like_image(path):
    kind, _ = mimetypes.guess_type(path.name)
    return path.is_file() and (kind or "").startswith("image/")


def _is_image(path):
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in FORMATS and path.is_file()


def _common_shape(paths):
    """(height, width, channels) of all images, from their headers; UserError if sizes differ."""

    def header(path):
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                raise ValueError(f"it claims {width} x {height} pixels")
            # Pillow has already turned the size of a TIFF.
            if image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in SIDEWAYS:
                width, height = height, width
            return (width, height), image.mode in GREY_MODES

    first = None
    grey = 0
    for path in progress(paths, desc="headers", unit="image"):
        size, is_grey = parse(path, header, path)
        first = first or size
        grey += is_grey
        if size != first:
            what = f"is {size}, {paths[0]} {first} (width, height): bring all images to one size."
            raise UserError(f"{path} {what}")
    if 0 < grey < len(paths):
        print(f"{grey} grey images of {len(paths)} converted to RGB, like the others", flush=True)
    return first[1], first[0], 1 if grey == len(paths) else 3


def _decode_all(part, classes, shape):
    """Images and labels (x, y) of {class: paths}, all converted to `shape`."""
    paths = [path for of_class in classes.values() for path in of_class]
    if len(paths) * math.prod(shape) > LARGEST_DATA:
        raise UserError(f"{len(paths)} {part} images of {shape} are over 8 GiB: make them smaller.")
    x = np.empty((len(paths), *shape), "uint8")
    for i, path in enumerate(progress(paths, desc=part, unit="image")):
        x[i] = parse(path, _decode, path, shape)
    return x, np.repeat(np.arange(len(classes)), [len(c) for c in classes.values()])


def _decode(path, shape):
    with Image.open(path, formats=FORMATS) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = _of_8_bits(np.asarray(image))
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.atleast_3d(image.convert("L" if shape[2] == 1 else "RGB"))
        if pixels.shape != shape:
            raise ValueError(f"its pixels are {pixels.shape}, and its header says {shape}")
        return pixels


def _of_8_bits(pixels):
    """Reduce an integer greyscale image to 8 bits: the high byte of 16, as Pillow for colour."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.itemsize > 2 and not (low >= 0 and 256 <= high < 2**16):
        raise ValueError(f"its pixels are {pixels.dtype} from {low} to {high}, not of 16 bits")
    return Image.fromarray((pixels >> 8).astype("uint8"))
