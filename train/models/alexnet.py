"""AlexNet for small images: 8.1 million parameters on 28x28x1, 9.6 on 32x32x3."""

from train.shared.backend import keras

layers = keras.layers


def build(x, classes):
    """The layers from the normalised image x (batch, h, w, c) to the softmax (batch, classes)."""

    for number, filters in (1, 96), (2, 256):
        x = layers.Conv2D(filters, 3, name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"conv{number}_bn")(x)
        x = layers.ReLU(name=f"conv{number}_relu")(x)
        x = layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)
    for number, filters in (3, 384), (4, 384), (5, 256):
        conv = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{number}")
        x = conv(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in 1, 2:
        x = layers.Dense(2048, activation="relu", name=f"dense{number}")(x)
        x = layers.Dropout(0.5, name=f"dropout{number}")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)
