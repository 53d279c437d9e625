"""AlexNet for small images: 8.1 million parameters on 28x28x1, 9.6 on 32x32x3."""

from train.backend import keras

layers = keras.layers


def build(x, classes):
    """The layers from the normalised image x (batch, h, w, c) to the softmax (batch, classes)."""

    def conv(x, number, filters, **kwargs):
        name, start = f"conv{number}", "he_normal"
        return layers.Conv2D(filters, 3, kernel_initializer=start, name=name, **kwargs)(x)

    for number, filters in (1, 96), (2, 256):
        x = conv(x, number, filters, padding="valid")
        x = layers.BatchNormalization(name=f"conv{number}_bn")(x)
        x = layers.ReLU(name=f"conv{number}_relu")(x)
        x = layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)
    for number, filters in (3, 384), (4, 384), (5, 256):
        x = conv(x, number, filters, padding="same", activation="relu")
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in 1, 2:
        name, start = f"dense{number}", "he_normal"
        x = layers.Dense(2048, activation="relu", kernel_initializer=start, name=name)(x)
        x = layers.Dropout(0.5, name=f"dropout{number}")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)
