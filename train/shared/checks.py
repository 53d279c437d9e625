"""Checks of the model, images and labels that users pass to slice_model, mine, tune and attack.

What these cannot work on is refused by one sentence that says what is wrong.
"""

import numpy as np

from train.shared.backend import keras, ops
from train.shared.flags import UserError
from train.shared.graph import output_layer, require_graph
from train.utils import is_softmax, pixels, predict

SAMPLE = 256  # images that the model sees here
# Another range of pixels than the given one is taken to be the model's if it gets so many more of
# the images right with it. A few floats may be images that it gets wrong: they are not doubted.
MIN_GAIN, MIN_IMAGES = 0.2, 32


def checked_inputs(model, x, y):
    """A classifier, and images and labels for it.

    Args:
        model: Keras classifier of pixels in [0, 1] or [0, 255], with a softmax or logits.
        x: images (n, h, w, c), uint8, or float in the model's range.
        y: integers (n,) or (n, 1). x and y are arrays, tensors or lists.

    Returns:
        model: the same layers, with a tensor as the output, not a dict or list of one.
        x: uint8, or float pixels as the model takes them. y: int64 (n,).
        highest: of the pixels that the model takes, 1 or 255: more images are right with these.

    Raises:
        UserError: one sentence that says what is wrong with them.
    """
    model = check_model(model)
    x, y = check_arrays(x, y, model.input_shape[1:], model.output_shape[-1])
    rows = np.unique(np.linspace(0, len(x) - 1, SAMPLE).astype(int))
    given = None if x.dtype == np.uint8 else 255 if x.max() > 1 else 1
    sample, y_sample = pixels(x[rows]) / (given or 1), y[rows]
    outputs = {highest: predict(model, highest * sample) for highest in (1, 255)}
    right = {highest: mean_recall(outputs[highest], y_sample) for highest in outputs}
    highest, other = (255, 1) if given == 255 else (1, 255)
    chance = 1 / model.output_shape[-1]
    is_clear = right[other] > max(right[highest], chance) + MIN_GAIN
    if is_clear and (given is None or len(rows) >= MIN_IMAGES):
        highest = other
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
    return model, x, y, highest


def mean_recall(outputs, y):
    """The share of images that outputs (n, classes) get right, each class counting the same."""
    return np.average(outputs.argmax(axis=1) == y, weights=1 / np.bincount(y)[y])


def check_model(model):
    """The model that `checked_inputs` returns; UserError if it is no classifier of images."""
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


def check_arrays(x, y, shape=(None, None, None), classes=None):
    """Images and labels as NumPy arrays that fit the shape (h, w, c) and the number of classes.

    None fits anything. Returns x, uint8, or float in [0, 1] or [0, 255], and y, int64 (n,).
    """
    try:
        x, y = (a if isinstance(a, np.ndarray) else ops.convert_to_numpy(a) for a in (x, y))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the images or labels are no arrays ({reason}).") from None
    fits = len(shape) == 3 and x.ndim == 4 and len(x)
    if not (fits and all(want in (None, n) for n, want in zip(x.shape[1:], shape, strict=True))):
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
    if y.min() < 0 or (classes and y.max() >= classes):
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
