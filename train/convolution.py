"""A faster kernel gradient for convolutions of small images, in bfloat16 on the CPU.

The gradient of a kernel is a product of two matrices with a row for every pixel of the batch: the
patches that the kernel saw, and the gradients of its outputs. TensorFlow's own CPU kernel is slow
in bfloat16 where images are small. On an AMD EPYC with AVX512-BF16, 2x2 pixels and 512 filters took
41 ms (21 ms in float32); the product takes 12 ms. A training step of VGG16 gets 7% faster.
"""

import tensorflow as tf

from train.shared.backend import keras

MAX_SIZE = 6  # height and width in pixels; for larger images the patches cost more than they save


class SmallConv2D(keras.layers.Conv2D):
    """keras.layers.Conv2D with the faster gradient, for layers that `has_few_pixels` accepts."""

    def convolution_op(self, inputs, kernel):
        return convolve(inputs, tf.convert_to_tensor(kernel))


def has_few_pixels(layer):
    """Whether SmallConv2D can replace a layer: small images, no strides, dilation or groups."""
    if type(layer) is not keras.layers.Conv2D or layer.data_format != "channels_last":
        return False
    is_plain = layer.strides == layer.dilation_rate == (1, 1) and layer.groups == 1
    is_small = all(size and size <= MAX_SIZE for size in layer.output.shape[1:3])
    return is_plain and layer.padding == "same" and is_small


@tf.custom_gradient
def convolve(x, kernel):
    """Convolution with "same" padding.

    x: (n, h, w, channels). kernel: (kh, kw, channels, filters). Returns (n, h, w, filters).
    """

    def gradient(upstream):
        gradient_x = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x), filter=kernel, out_backprop=upstream,
            strides=[1, 1, 1, 1], padding="SAME",
        )  # fmt: skip
        upstream_rows = tf.reshape(upstream, [-1, upstream.shape[-1]])
        height, width = kernel.shape[:2]
        product = tf.matmul(patches(x, height, width), upstream_rows, transpose_a=True)
        return gradient_x, tf.reshape(product, kernel.shape)

    return tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), gradient


def patches(x, height, width):
    """The patch of x that a kernel of this size sees at every pixel.

    x: (n, h, w, channels). Returns (n h w, height width channels).
    """
    top = (height - 1) // 2
    left = (width - 1) // 2
    padded = tf.pad(x, [[0, 0], [top, height - 1 - top], [left, width - 1 - left], [0, 0]])
    h, w = x.shape[1:3]
    shifted = [padded[:, i : i + h, j : j + w] for i in range(height) for j in range(width)]
    return tf.reshape(tf.concat(shifted, axis=-1), [-1, height * width * x.shape[-1]])
