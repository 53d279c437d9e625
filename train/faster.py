"""Faster versions of Keras's layers, where this device has them."""

from train.shared.backend import accelerators, keras


def faster_class(layer, precision="float32"):
    """The class to train a copy of a layer with: its own, or a faster one with the same weights.

    precision: "float32" or "bfloat16", which the copy computes in.
    """
    if keras.backend.backend() == "tensorflow" and not accelerators():
        from train.batch_norm import FusedBatchNormalization, can_be_fused
        from train.convolution import SmallConv2D, has_few_pixels

        if can_be_fused(layer):
            return FusedBatchNormalization
        if precision == "bfloat16" and has_few_pixels(layer):
            return SmallConv2D
    return type(layer)
