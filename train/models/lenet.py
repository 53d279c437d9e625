"""A small network for the demonstration on digits; it is not one of the paper's."""

from train.shared.backend import keras

layers = keras.layers


def build(x, classes):
    """The layers from the normalised image x (batch, h, w, c) to the softmax (batch, classes)."""
    for number, (filters, size) in enumerate([(16, 5), (32, 3), (64, 3)], 1):
        conv = layers.Conv2D(filters, size, padding="same", activation="relu", name=f"conv{number}")
        x = layers.MaxPooling2D(2, 2, name=f"pool{number}")(conv(x))
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(128, activation="relu", name="dense1")(x)
    x = layers.Dropout(0.5, name="dropout1")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)
