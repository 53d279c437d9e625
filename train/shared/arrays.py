"""One check of the images and labels that somebody passes to a function of this project."""

import numpy as np

from train.shared.flags import UserError


def check_arrays(x, y, model=None):
    """Raise UserError, one sentence, for images and labels that a model cannot take.

    Args:
        x: images, uint8, or float in [0, 1], (n, h, w, c). y: labels, integers (n,).
        model: Keras classifier, for the size of the images and the number of classes, or None.
    """
    for name, array in ("images", x), ("labels", y):
        if not hasattr(array, "dtype"):
            raise UserError(
                f"the {name} are a {type(array).__name__}, not an array: use np.asarray."
            )
    check_images(x, model.input_shape[1:] if model is not None else (None,) * 3)
    check_labels(y, len(x), model.output_shape[-1] if model is not None else None)


def check_images(x, shape):
    """Raise UserError unless x are images of a shape (h, w, c), None where any size will do."""
    if not len(x):
        raise UserError("there are no images.")
    if not fits(x.shape[1:], shape):
        is_turned = x.ndim == 4 and fits((*x.shape[2:], x.shape[1]), shape)
        advice = "use x.transpose(0, 2, 3, 1)" if is_turned else "resize or convert them"
        raise UserError(
            f"the images have shape {x.shape[1:]}, and the model takes {shape}: {advice}."
        )
    if x.dtype.kind == "f":
        # NaN fails both comparisons.
        if not (x.min() >= 0 and x.max() <= 1):
            raise UserError(
                "the images are not pixels in [0, 1], or some are NaN: divide 8-bit images by 255."
            )
    elif x.dtype != np.uint8:
        raise UserError(f"the images are {x.dtype}: use uint8, or float32 in [0, 1].")


def check_labels(y, n, classes):
    """Raise UserError unless y are the labels of n images; classes: their number, or None."""
    if y.ndim == 2 and len(y) == n:
        raise UserError(
            f"the labels have shape {y.shape}: if they are one-hot, use y.argmax(axis=1)."
        )
    if y.shape != (n,):
        raise UserError(f"the labels have shape {y.shape}, but there are {n} images: use ({n},).")
    if y.dtype.kind not in "ui":
        raise UserError(f"the labels are {y.dtype}: use integers.")
    if classes is not None and not 0 <= y.min() <= y.max() < classes:
        advice = "subtract 1" if (y.min(), y.max()) == (1, classes) else "use others"
        raise UserError(
            f"the labels are {y.min()} to {y.max()}, and the model has the classes 0 to "
            f"{classes - 1}: {advice}."
        )


def fits(shape, wanted):
    """Whether a shape is as wanted, where None stands for any size."""
    return len(shape) == len(wanted) and all(
        want in (None, size) for size, want in zip(shape, wanted, strict=True)
    )
