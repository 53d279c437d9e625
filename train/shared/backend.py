"""The one place that imports Keras.

    from train.shared.backend import keras, ops

In the scripts of this repository sums are repeatable, numbers float32 and images channels last, and
what TensorFlow, absl and CUDA print while they start is dropped. A program that imports our
functions keeps its own settings.
"""

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

PROGRAM = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
IS_SCRIPT = PROGRAM.parents[1:2] == Path(__file__).resolve().parents[2:3]

if IS_SCRIPT:
    os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")  # sums in a fixed order
    # TensorFlow leaves oneDNN off on processors without AVX512, where it is 1.5 to 5 times as fast.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def _without_stderr():
    # The libraries write to the file descriptor, so that sys.stderr is not enough.
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


try:
    with _without_stderr():
        # Keras imports TensorFlow on every backend, but later, when its messages would be seen.
        with contextlib.suppress(ImportError):
            import tensorflow  # noqa: F401
        import keras
        from keras import ops
except (ImportError, ValueError) as error:
    message = (
        f"Keras cannot be imported ({error}): set KERAS_BACKEND to tensorflow, jax or torch, and "
        f"pip install that package."
    )
    if not IS_SCRIPT:
        raise ImportError(message) from None
    print(f"{PROGRAM.name}: {message}", file=sys.stderr)
    sys.exit(2)

if IS_SCRIPT:
    keras.config.set_image_data_format("channels_last")  # of all images and networks here
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    for library in ("tensorflow", "absl", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"keras|torch|foolbox")

__all__ = ["accelerators", "keras", "ops"]


def accelerators():
    """Names of the GPUs and TPUs that the backend sees; an empty list if there are none."""
    if keras.backend.backend() == "torch":  # Keras has no keras.distribution there
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [name for name in keras.distribution.list_devices() if "cpu" not in name.lower()]
