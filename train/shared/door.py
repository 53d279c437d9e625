"""The door of slice_model, mine, tune and attack: a model, images and labels as people have them.

What the four cannot work on is refused here, by one sentence that says what is wrong.
"""

from typing import NamedTuple

import numpy as np

from train.shared.backend import keras, ops
from train.shared.flags import UserError
from train.shared.graph import output_layer, require_graph
from train.utils import is_softmax, pixels, predict

SAMPLE = 256  # images that the model sees here
CLEARLY = 0.2  # a range of pixels is the model's if it gets so much more of the images right in it


class Checked(NamedTuple):
    """What the four functions work on.

    model: the classifier, with one tensor as its input and one as its output.
    x: images (n, h, w, c), uint8 that are divided by 255, or float pixels as the model takes them.
    y: int64 (n,).
    highest: 1 or 255, for pixels in [0, 1] or [0, 255].
    """

    model: keras.Model
    x: np.ndarray
    y: np.ndarray
    highest: int


def checked(model, x, y):
    """A classifier, and images and labels for it.

    Args:
        model: Keras classifier of pixels in [0, 1] or [0, 255], with a softmax or logits.
        x: images (n, h, w, c), uint8, or float in the model's range.
        y: integers (n,) or (n, 1). x and y are arrays, tensors or lists.

    Returns:
        Checked. The range is the one in which the model gets more images right.

    Raises:
        UserError: one sentence that says what is wrong with them.
    """
    model = check_model(model)
    x, y = check_arrays(x, y, model)
    rows = np.unique(np.linspace(0, len(x) - 1, SAMPLE).astype(int))
    sample, y_sample = pixels(x[rows]), y[rows]
    given = None if x.dtype == np.uint8 else 255 if sample.max() > 1 else 1
    outputs = {highest: predict(model, sample * (highest / (given or 1))) for highest in (1, 255)}
    # The mean over the classes of the share that is right.
    weights = 1 / np.bincount(y_sample)[y_sample]
    right = {
        highest: np.average(of_range.argmax(axis=1) == y_sample, weights=weights)
        for highest, of_range in outputs.items()
    }
    highest = given or 1
    chance = 1 / model.output_shape[-1]
    if right[256 - highest] > max(right[highest], chance) + CLEARLY:
        highest = 256 - highest
    check_outputs(model, outputs[highest])
    found = f"the model gets {100 * right[1]:.0f}% of the images right with pixels in [0, 1] and "
    found += f"{100 * right[255]:.0f}% in [0, 255]"
    if given not in (None, highest):
        advice = "multiply" if given == 1 else "divide"
        raise UserError(f"{found}: {advice} the images by 255.")
    if highest == 255:
        print(f"Pixels in [0, 255]: {found}.", flush=True)
        x = np.asarray(x, "float32")
    if right[highest] < 1.3 * chance:
        print(f"Note: {found}, hardly more than by chance: is this the right model?", flush=True)
    return Checked(model, x, y, highest)


def check_model(model):
    """A model of the same layers, with a tensor as its output, not a dict or list of one.

    Raises UserError for a model that is no classifier of images that the four can work on.
    """
    require_graph(model)
    model = keras.Model(model.inputs[0], model.outputs[0])
    size, shape = model.input_shape[1:], model.output_shape[1:]
    if None in size or "float" not in model.inputs[0].dtype:
        raise UserError(
            f"the model takes {model.inputs[0].dtype} images of shape {size}: build it with a "
            f"keras.Input of one size and of float32, and load its weights."
        )
    if len(shape) != 1 or None in shape or shape[0] < 2:
        raise UserError(
            f"the outputs of the model have shape {shape}: one softmax or logit for each of two or "
            f"more classes is needed."
        )
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise UserError("weights of the model are NaN or infinite: load an earlier checkpoint.")
    return model


def check_outputs(model, outputs):
    """Raise UserError if outputs (n, classes) are not finite, or are those of sigmoids."""
    if not np.isfinite(outputs).all():
        raise UserError(
            "outputs of the model are NaN or infinite on these images: load an earlier checkpoint."
        )
    in_01 = outputs.min() >= 0 and outputs.max() <= 1
    is_linear = getattr(output_layer(model), "activation", None) is keras.activations.linear
    if in_01 and not is_linear and not is_softmax(outputs):
        raise UserError(
            "the outputs of the model are in [0, 1] and do not sum to 1, as those of sigmoids: one "
            "softmax or logit for each class is needed."
        )


def check_arrays(x, y, model=None):
    """Images and labels as NumPy arrays; arguments as for `checked`.

    model: for the size of the images and the number of classes, or None.

    Returns:
        x, uint8, or float in [0, 1] or [0, 255], and y, int64 (n,).

    Raises:
        UserError: one sentence that says what is wrong with them.
    """
    try:
        x, y = (a if isinstance(a, np.ndarray) else ops.convert_to_numpy(a) for a in (x, y))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the images or labels are no arrays ({reason}).") from None
    shape = model.input_shape[1:] if model is not None else (None,) * 3
    fits = x.ndim == 4 and all(
        want in (None, n) for n, want in zip(x.shape[1:], shape, strict=True)
    )
    if not fits or not len(x):
        raise UserError(
            f"the images have shape {x.shape}, and the model takes (n, height, width, channels) "
            f"with {shape}."
        )
    if x.dtype != np.uint8:
        x = float_pixels(x)
    if y.shape == (len(x), 1):
        y = y.ravel()
    if y.shape != (len(x),) or y.dtype.kind not in "ui":
        raise UserError(
            f"the labels are {y.dtype} of shape {y.shape}: use the {len(x)} numbers of the images' "
            f"classes, as integers."
        )
    classes = model.output_shape[-1] if model is not None else None
    if y.min() < 0 or (classes is not None and y.max() >= classes):
        raise UserError(
            f"the labels are {y.min()} to {y.max()}, and the model has the classes 0 to "
            f"{classes - 1 if classes else '...'}."
        )
    return x, y.astype("int64")


def float_pixels(x):
    """Float images in [0, 1] or [0, 255], where resizing left rounding errors beyond them."""
    if x.dtype.kind != "f":
        raise UserError(f"the images are {x.dtype}: use uint8 for pixels of 0 to 255, or float32.")
    low, high = x.min(), x.max()
    highest = 1 if high <= 2 else 255
    if not (low >= -0.001 * highest and high <= 1.001 * highest):  # NaN fails both comparisons
        raise UserError(
            f"the images are float pixels of {low:.4g} to {high:.4g}: the model has to take [0, 1] "
            f"or [0, 255] without NaN, so put a keras.layers.Rescaling into it, or clip the pixels."
        )
    return x if 0 <= low and high <= highest else x.clip(0, highest)
