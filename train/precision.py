"""Training in bfloat16, where the hardware supports it, and with the device's faster layers.

Checkpoints are float32 and of Keras's own layers.

Mixed precision (Micikevicius et al., ICLR 2018): weights, the sums of batch normalisation, the
normalisation of the pixels and the softmax stay float32; everything between is bfloat16.
"""

import contextlib
from pathlib import Path

from train.faster import faster_class
from train.shared.artifacts import recorded_precision
from train.shared.backend import accelerators, keras
from train.shared.graph import is_normalisation, layers_by_path, output_layer

CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # Linux's names of processors that multiply bfloat16


def precision_of(requested, checkpoints):
    """The precision to train in.

    Args:
        requested: "float32", "bfloat16" or None. None: the precision of the checkpoints, if there
            are any, or else bfloat16 if the hardware supports it.
        checkpoints: folder of a training that may have begun.
    """
    if precision := requested or recorded_precision(checkpoints):
        return precision
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16():
    """Whether the device reports that it multiplies bfloat16.

    Support is looked up, not measured: timings vary, and the same command might then train another
    network.
    """
    backend = keras.backend.backend()
    if not accelerators():
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text() if cpuinfo.exists() else ""
        # XLA, the compiler of JAX, does not use these instructions.
        return backend != "jax" and any(flag in flags for flag in CPU_FLAGS)
    if backend == "torch":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        with contextlib.suppress(AttributeError, ValueError):  # a device that is not NVIDIA's
            return device.platform == "tpu" or float(device.compute_capability) >= 8
        return False
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return any(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)


def in_precision(network, precision):
    """A copy of the network, with its weights, that trains in `precision`.

    Its layers keep their names, regularisers and random streams; some have faster classes. Where
    nothing would change, the network itself is returned.
    """
    layers = layers_by_path(network).values()
    if precision == "float32" and all(faster_class(x, precision) is type(x) for x in layers):
        return network
    float32_layers = [*filter(is_normalisation, layers), output_layer(network)]

    def copy_layer(layer):
        if not isinstance(layer, keras.layers.Layer):  # an operation, such as a sum of tensors
            return layer
        config = layer.get_config()
        if precision != "float32" and layer not in float32_layers:
            config["dtype"] = f"mixed_{precision}"
        return faster_class(layer, precision).from_config(config)

    copy = keras.models.clone_model(network, clone_function=copy_layer, recursive=True)
    copy_weights(network, copy)
    return copy


def copy_weights(from_model, to_model):
    """Copy all weights between a network and its copy, in either direction."""
    if from_model is not to_model:
        to_model.set_weights(from_model.get_weights())
