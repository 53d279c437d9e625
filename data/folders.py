"""Folders of images: train/<class>/* and test/<class>/*, in any format of FORMATS."""

import numpy as np
from PIL import Image, ImageOps

from data.parse import parse
from train.shared.flags import UserError
from train.shared.log import progress

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
NO_CLASSES = ("__MACOSX", "@eaDir", "lost+found")  # folders that systems make
GREY_MODES = ("1", "L", "LA")  # Pillow's names
LARGEST_DATA = 8 * 2**30  # bytes of all images
Image.MAX_IMAGE_PIXELS = None  # LARGEST_DATA is the limit


def read_folder(folder):
    """Read the images train/<class>/* and test/<class>/*, with the classes sorted by name.

    EXIF orientation is applied. Only the first frame of an animation is used. Palette images become
    RGB, and greyscale images too, unless all images are greyscale. Transparent areas become white.
    Hidden files and folders and other files are ignored; grey images of 16 bits are refused.

    Returns:
        (x, y) of train, (x, y) of test, and the names of the classes, as the official readers do.
    """
    parts = {part: _classes(folder / part) for part in ("train", "test")}
    names = sorted(set().union(*parts.values()))
    if not names:
        raise UserError(f"{folder}/train has no folders: put the images of each class into one.")
    for part, classes in parts.items():
        if without := [name for name in names if not classes.get(name)]:
            where = folder / part / without[0]
            raise UserError(f"{where} has no image (.png, .jpg, ...): every class needs some.")
    train, test = ([path for name in names for path in c[name]] for c in parts.values())
    _report_unused(folder, {*train, *test})
    x = np.stack(_of_one_depth(_decode_all(train + test)))
    y_train, y_test = (
        np.repeat(range(len(names)), [len(c[name]) for name in names]) for c in parts.values()
    )
    return (x[: len(train)], y_train), (x[len(train) :], y_test), names


def _classes(folder):
    """{class: its images} of train/ or test/, sorted."""
    paths = [p for p in sorted(folder.iterdir()) if p.is_dir() and not _is_hidden(p.name)]
    return {path.name: [p for p in sorted(path.iterdir()) if _is_image(p)] for path in paths}


def _is_hidden(name):
    return name.startswith(".") or name in NO_CLASSES


def _is_image(path):
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in FORMATS and not _is_hidden(path.name) and path.is_file()


def _report_unused(folder, used):
    """Say how many files are not used, such as images in a folder within that of a class."""
    files = {path for part in ("train", "test") for path in (folder / part).rglob("*")}
    if unused := {path for path in files if path.is_file()} - used:
        print(f"{len(unused)} other files are ignored, first {min(unused)}", flush=True)


def _decode_all(paths):
    """The images, as _decode gives them; UserError if their sizes differ."""
    images = []
    for path in progress(paths, desc="reading", unit="image"):
        images.append(parse(path, _decode, path))
        (height, width), size = images[0].shape[:2], images[-1].shape[1::-1]
        if size != (width, height):
            first = f"{paths[0]} {width, height} (width, height)"
            raise UserError(f"{path} is {size}, {first}: bring all images to one size.")
        if len(paths) * images[0].size > LARGEST_DATA:
            what = f"{len(paths)} images like {path}, of {width} x {height} pixels,"
            raise UserError(f"{what} take over 8 GiB: make them smaller, or take fewer.")
    return images


def _decode(path):
    """Pixels, uint8: (h, w) of a grey image, (h, w, 3) of others."""
    with Image.open(path, formats=FORMATS) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("its grey values have more than 8 bits: convert it to 8")
        mode = "L" if image.mode in GREY_MODES else "RGB"
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert(mode))


def _of_one_depth(images):
    """Give all images one channel (h, w, 1) if all are grey, else three."""
    grey = sum(image.ndim == 2 for image in images)
    if 0 < grey < len(images):
        print(f"{grey} grey images of {len(images)} converted to RGB, like the others", flush=True)
    channels = 1 if grey == len(images) else 3
    return [np.broadcast_to(np.atleast_3d(i), (*i.shape[:2], channels)) for i in images]
