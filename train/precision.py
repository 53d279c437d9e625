"""Training in bfloat16, where the hardware multiplies it; what is saved is float32.

Mixed precision (Micikevicius et al., ICLR 2018): weights, the sums of batch normalisation, the
normalisation of the pixels and the softmax stay float32, all between is bfloat16.
"""

import contextlib
from pathlib import Path

from train.artifacts import attributes, epochs_in, weights_path
from train.backend import accelerators, keras

PROCESSORS = ("amx_bf16", "avx512_bf16")  # what Linux calls such instructions


def precision_of(asked, checkpoints):
    """The precision to train in: the one asked for, the one begun with, or the hardware's own.

    asked: "float32", "bfloat16" or None. checkpoints: the folder of a training that may have begun.
    """
    if asked:
        return asked
    if epochs := epochs_in(checkpoints):
        return attributes(weights_path(checkpoints, epochs[-1])).get("precision", "float32")
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16():
    """Whether the device says that it multiplies bfloat16. It is asked, never timed, so that the
    same command trains the same network again."""
    backend = keras.backend.backend()
    if not accelerators():  # XLA's own code for processors, of JAX, does not use such instructions
        information = Path("/proc/cpuinfo")
        flags = information.read_text() if information.exists() else ""
        return backend != "jax" and any(name in flags for name in PROCESSORS)
    if backend == "torch":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        with contextlib.suppress(AttributeError, ValueError):  # not NVIDIA's
            return device.platform == "tpu" or float(device.compute_capability) >= 8
        return False
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return any(about.get("compute_capability", (0, 0)) >= (8, 0) for about in details)


def in_precision(network, precision):
    """A twin of the network, with its weights, that computes in `precision`.

    The twin's layers have the names, the regularisers and the random streams of the network's own.
    """

    def twin_of(layer):
        settings = layer.get_config()
        if layer.name not in float32:
            settings["dtype"] = f"mixed_{precision}"
        return faster(layer).from_config(settings)

    if precision == "float32":
        return network
    float32 = {layer.name for layer in network.layers if is_input(layer)}
    float32.add(network.layers[-1].name)
    twin = keras.models.clone_model(network, clone_function=twin_of)
    copy_weights(network, twin)
    return twin


def faster(layer):
    """The class of a layer's twin: its own, or one with a faster gradient on this device."""
    if keras.backend.backend() == "tensorflow" and not accelerators():
        from train.convolution import SmallConv2D, has_few_pixels

        if has_few_pixels(layer):
            return SmallConv2D
    return type(layer)


def is_input(layer):
    return isinstance(layer, keras.layers.InputLayer | keras.layers.Normalization)


def copy_weights(trained, network):
    """Between twins, in either direction."""
    if trained is not network:
        network.set_weights(trained.get_weights())
