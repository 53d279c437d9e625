"""ResNet-20 for small images (He et al. 2016, section 4.2): 0.27 million parameters.

It is not one of the paper's networks; it is here to show that DARE takes any graph of layers. Where
a block halves the image, its shortcut is a 1x1 convolution (option B of He et al.).
"""

from train.shared.backend import keras

layers = keras.layers

WEIGHT_DECAY = 1e-4


def build20(x, classes):
    """The layers from the normalised image x (batch, h, w, c) to the softmax (batch, classes)."""
    x = _conv(x, 16, 3, 1, "conv1")
    x = layers.ReLU(name="conv1_relu")(x)
    for stage, filters in enumerate((16, 32, 64), 1):
        for number in 1, 2, 3:
            strides = 2 if stage > 1 and number == 1 else 1
            x = _block(x, filters, strides, f"stage{stage}_block{number}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)


def _block(x, filters, strides, name):
    shortcut = x if strides == 1 else _conv(x, filters, 1, strides, f"{name}_shortcut")
    x = _conv(x, filters, 3, strides, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_conv1_relu")(x)
    x = _conv(x, filters, 3, 1, f"{name}_conv2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def _conv(x, filters, size, strides, name):
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(WEIGHT_DECAY / 2),
        name=name,
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
