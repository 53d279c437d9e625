"""The paper's networks, and two of ours: `lenet` and `resnet20`.

To add one, write a module with `build(x, classes) -> softmax output` of a layer "predictions", and
put its name in NETWORKS and its chosen layer in train/params.py. Every network takes pixels in
[0, 1] and normalises them in its first layer. The statistics are constants of that layer and are
saved with the architecture.
"""

import numpy as np

from train.models import alexnet, lenet, resnet, vgg
from train.shared.backend import keras

NETWORKS = {
    "alexnet": alexnet.build,
    "lenet": lenet.build,
    "resnet20": resnet.build20,
    "vgg16": vgg.build16,
    "vgg19": vgg.build19,
}

# Networks that subtract the mean image; the others standardise the channels.
PER_PIXEL_MEAN = ("alexnet",)


def build_model(name, input_shape, classes, mean=0.0, variance=1.0):
    """An untrained classifier: pixels in [0, 1] -> softmax.

    Args:
        name: a key of NETWORKS.
        input_shape: (height, width, channels) of an image.
        classes: number of classes.
        mean, variance: statistics of x_train in [0, 1], broadcast to the image; see `statistics`.

    Raises:
        ValueError: an unknown name, or an image too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(NETWORKS)}")
    inputs = keras.Input(input_shape, name="pixels")
    mean, variance = (np.broadcast_to(np.float32(v), input_shape) for v in (mean, variance))
    normalise = keras.layers.Normalization(
        axis=(1, 2, 3), mean=mean, variance=variance, name="normalise"
    )
    return keras.Model(inputs, NETWORKS[name](normalise(inputs), classes), name=name)


def statistics(name, x):
    """The float32 mean and variance, of pixels in [0, 1], that a network normalises with.

    x: uint8 (n, h, w, c). For PER_PIXEL_MEAN the mean of every pixel (h, w, c) and variance 1; for
    the others mean and variance of every channel, (c,).
    """
    if name in PER_PIXEL_MEAN:
        return (x.mean(axis=0, dtype="float64") / 255).astype("float32"), np.float32(1)
    mean = x.mean(axis=(0, 1, 2), dtype="float64") / 255
    # The mean square, without a float copy of the data set.
    square = np.einsum("nhwc,nhwc->c", x, x, dtype="float64") / (x[..., 0].size * 255**2)
    variance = np.maximum(square - mean**2, 0)  # of a constant channel, rounding can be below 0
    return mean.astype("float32"), variance.astype("float32")
