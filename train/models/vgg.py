"""VGG16 and VGG19: configurations D and E of Simonyan and Zisserman, for small images.

On 32x32 images they have convolutions without bias, each followed by batch normalisation and ReLU,
and five pools that halve the image; 33.6 and 39.0 million parameters. Five halvings of 28x28 leave
nothing. So on smaller images VGG16 has four blocks (26.6 million parameters; the 22.6 million of
the authors' table fit no network that we know), and the pools of VGG19 look at two pixels of a row
or a column in turn (33.6 million). These have no batch normalisation.
"""

from train import params
from train.shared.backend import keras

layers = keras.layers

FILTERS = (64, 128, 256, 512, 512)


def build16(x, classes):
    """VGG16 from the normalised image x (batch, h, w, c) to the softmax (batch, classes)."""
    if not params.is_small_image(x.shape[1:]):
        return _build(x, classes, (2, 2, 3, 3, 3), [(2, 2)] * 5, batch_norm=True)
    return _build(x, classes, (2, 2, 3, 3), [(2, 2)] * 4, batch_norm=False)


def build19(x, classes):
    """VGG19, as build16."""
    if not params.is_small_image(x.shape[1:]):
        return _build(x, classes, (2, 2, 4, 4, 4), [(2, 2)] * 5, batch_norm=True)
    pools = [(1, 2), (2, 1), (1, 2), (2, 1), (2, 2)]
    return _build(x, classes, (2, 2, 3, 3, 3), pools, batch_norm=False)


def _build(x, classes, convs, pools, batch_norm):
    for block, (count, pool) in enumerate(zip(convs, pools, strict=True), 1):
        for number in range(1, count + 1):
            x = _conv(x, FILTERS[block - 1], f"block{block}_conv{number}", batch_norm)
        x = layers.MaxPooling2D(pool, 2, name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in 1, 2:
        # Keras's default initial weights, in the 28x28 networks too. With the larger ones of He et
        # al. these wide layers die in the first steps at 0.01.
        x = layers.Dense(4096, activation="relu", name=f"dense{number}")(x)
        if batch_norm or number == 2:  # the 28x28 networks have one dropout, the 32x32 ones two
            x = layers.Dropout(0.5, name=f"dropout{number}")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)


def _conv(x, filters, name, batch_norm):
    # Keras's default initial weights (Glorot), as released, if batch normalisation follows. Without
    # it they halve the variance of the signal in every layer: VGG16 is at chance after 60 steps.
    x = layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=not batch_norm,
        kernel_initializer="glorot_uniform" if batch_norm else "he_normal",
        kernel_regularizer=keras.regularizers.L2(5e-4) if batch_norm else None,
        name=name,
    )(x)
    if batch_norm:
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
