"""The networks of the study. Add one: a module with `build(inputs, classes) -> softmax output`, and its name in NETWORKS.

Every network takes pixels in [0, 1] and normalises them itself in its first layer, so that no other code of the
project has to know how. The statistics are constants of that layer, not weights: they are saved with the architecture.
"""

import keras
import numpy as np

from train.models import alexnet, vgg

NETWORKS = {"alexnet": alexnet.build, "vgg16": vgg.build16, "vgg19": vgg.build19}

# Which statistics of x_train the first layer takes: alexnet subtracts the mean image, vgg standardises the channels.
PER_PIXEL_MEAN = ("alexnet",)


def build_model(name, input_shape, classes, mean=0.0, variance=1.0):
    """An untrained classifier: pixels in [0, 1] -> softmax (design section 3).

    Args:
        name: a key of NETWORKS.
        input_shape: (height, width, channels) of an image.
        classes: number of classes.
        mean, variance: statistics of x_train in [0, 1], broadcast to the image; `statistics` computes them.

    Raises:
        ValueError: an unknown name, or an image too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(NETWORKS)}")
    inputs = keras.Input(input_shape, name="pixels")
    mean = np.broadcast_to(np.asarray(mean, "float32"), input_shape)
    variance = np.broadcast_to(np.asarray(variance, "float32"), input_shape)
    normalised = keras.layers.Normalization(axis=(1, 2, 3), mean=mean, variance=variance, name="normalise")(inputs)
    return keras.Model(inputs, NETWORKS[name](normalised, classes), name=name)


def statistics(name, x):
    """(mean, variance) that network `name` normalises with, of images x, uint8 (n, h, w, c); float32, pixels in [0, 1].

    alexnet: the mean of every pixel, (h, w, c), and variance 1. vgg: mean and variance of every channel, (c,).
    """
    if name in PER_PIXEL_MEAN:
        return (x.mean(axis=0, dtype="float64") / 255).astype("float32"), np.float32(1)
    # From a histogram of the 256 values: one pass, and no float copy of the data set.
    counts = np.stack([np.bincount(x[..., c].ravel(), minlength=256) for c in range(x.shape[-1])])
    share, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    return mean.astype("float32"), (share @ values**2 - mean**2).astype("float32")
