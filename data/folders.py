"""Folders of images: train/<class>/* and test/<class>/*, in any format of FORMATS."""

from mimetypes import guess_type

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
    Channels of 16 bits are reduced to 8, with the largest value of all images as the end of the
    range. Hidden files and folders and other files are ignored.

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
    train, test = ([path for of_class in c.values() for path in of_class] for c in parts.values())
    _report_unused(folder, {*train, *test})
    x = np.stack(_of_one_depth(_of_8_bits(_decode_all(train + test), folder)))
    y_train, y_test = (
        np.repeat(range(len(names)), [*map(len, c.values())]) for c in parts.values()
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
    """Say which files are not used, with a warning for those that look like images."""
    files = [path for part in ("train", "test") for path in (folder / part).rglob("*")]
    unused = {path for path in files if path.is_file()} - used
    visible = [p for p in unused if not any(map(_is_hidden, p.relative_to(folder).parts))]
    if images := [p for p in visible if "image/" in str(guess_type(p.name, strict=False))]:
        print(
            f"Warning: {len(images)} images are not used, first {min(images)}: they must lie in "
            f"the folder of a class itself, in one of the formats {', '.join(FORMATS)}.",
            flush=True,
        )
    if others := unused - set(images):
        print(f"{len(others)} hidden or other files ignored, first {min(others)}", flush=True)


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
    """Pixels (h, w) of a grey image, (h, w, 3) of others: uint8, or more bits as they are."""
    with Image.open(path, formats=FORMATS) as image:
        mode = "L" if image.mode in GREY_MODES else "RGB"
        has_16_bits = ";16" in str(image.tile)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.mode.startswith("I"):
            return np.asarray(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.asarray(image.convert(mode))
        return pixels.astype("uint16") << 8 if has_16_bits else pixels  # Pillow drops the low bytes


def _of_8_bits(images, folder):
    """Reduce those with more bits to 8, by the largest value of all of them."""
    deep = [image for image in images if image.dtype != np.uint8]
    bits = max((int(image.max()).bit_length() for image in deep), default=16)
    if bits != 16:
        what = f"{folder}: {len(deep)} images of 16 bits or more have values of {bits} bits"
        if any(image.ndim == 3 for image in deep):
            raise UserError(f"{what}: convert the coloured ones to 8 bits a channel.")
        print(f"{what}: their range is taken as 0 to {2**bits - 1}.", flush=True)
    if any(image.min() < 0 for image in deep):
        raise UserError(f"{folder} has images with values below 0: convert them to 8 bits.")
    shift = max(bits - 8, 0)
    return [i if i.dtype == np.uint8 else (i >> shift).astype("uint8") for i in images]


def _of_one_depth(images):
    """Give all images one channel (h, w, 1) if all are grey, else three."""
    grey = sum(image.ndim == 2 for image in images)
    if 0 < grey < len(images):
        print(f"{grey} grey images of {len(images)} converted to RGB, like the others", flush=True)
    channels = 1 if grey == len(images) else 3
    return [np.broadcast_to(np.atleast_3d(i), (*i.shape[:2], channels)) for i in images]
