"""The one place that imports Keras, so that its backend is repeatable and silent.

    from train.backend import keras, ops

Whatever TensorFlow, absl or CUDA write on the terminal while they start is dropped.
"""

import contextlib
import logging
import os
import warnings

os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")  # repeatable sums
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def _without_stderr():
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with _without_stderr():
    with contextlib.suppress(ImportError):
        import tensorflow  # noqa: F401  Keras imports it later, on every backend, and it talks
    import keras
    from keras import ops

for library in ("tensorflow", "absl", "jax"):
    logging.getLogger(library).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"keras|torch|foolbox")

__all__ = ["accelerators", "keras", "ops"]


def accelerators():
    """Names of the GPUs and TPUs that the backend sees; none on a processor."""
    if keras.backend.backend() == "torch":  # Keras has no keras.distribution there
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [name for name in keras.distribution.list_devices() if "cpu" not in name.lower()]
