"""A Keras classifier for Foolbox: the one place that knows the backend.

`foolbox_model` wraps any Keras softmax classifier; `BatchedModel` gives attacks its logits and gradients
as NumPy arrays, in batches.
"""

import math
import time
from dataclasses import dataclass

import eagerpy as ep
import foolbox
import numpy as np

from train.backend import accelerators, keras, ops
from train.flags import UserError


class _WithoutSoftmax(keras.layers.Layer):
    """The last dense layer without its softmax, on the same weights."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        z = ops.matmul(x, self.dense.kernel)
        return z + self.dense.bias if self.dense.use_bias else z


def logits_model(model):
    """The Keras model of a softmax classifier's logits: its own layers, nothing copied."""
    last = model.layers[-1]
    kind, softmax = type(last).__name__, keras.activations.softmax
    if kind == "Softmax" or (kind == "Activation" and last.activation is softmax):
        return keras.Model(model.inputs[0], last.input)
    if kind == "Dense" and last.activation is softmax:
        return keras.Model(model.inputs[0], _WithoutSoftmax(last)(last.input))
    raise UserError(
        f"attacks need a classifier that ends in a softmax; this one ends in {last.name}, a {kind}."
    )


def foolbox_model(model):
    """The Foolbox 3 model of a Keras softmax classifier on pixels in [0, 1]: compiled logits.

    Its weights are those of the moment it is made (JAX) or of every call (TensorFlow, PyTorch; see
    reads_weights_anew).
    """
    logits = logits_model(model)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: logits(x, training=False))
        return foolbox.TensorFlowModel(compiled, bounds=(0, 1))
    if backend == "jax":
        import jax

        # Copies: Keras donates its own arrays to predict and fit, and they are gone afterwards.
        parts = (logits.trainable_variables, logits.non_trainable_variables)
        weights = tuple([v.value.copy() for v in part] for part in parts)
        call = jax.jit(lambda w, x: logits.stateless_call(*w, x, training=False)[0])
        return foolbox.JAXModel(lambda x: call(weights, x), bounds=(0, 1))
    import torch

    class Logits(torch.nn.Module):
        def forward(self, x):
            return logits(x, training=False)

    device = next((v.value.device for v in logits.weights), None)  # where Keras has put them
    return foolbox.PyTorchModel(Logits().eval(), bounds=(0, 1), device=device)


def reads_weights_anew():
    """Whether a foolbox_model follows the weights of its classifier, so that one serves for all."""
    return keras.backend.backend() != "jax"


def compiled_gradient(fmodel, loss):
    """(images, labels) -> (logits, gradient of loss(logits, labels) by the images), eagerpy."""

    def both(x, y):
        def value(inputs):
            z = fmodel(inputs)
            return loss(z, ep.astensor(y)), z

        _, z, gradient = ep.value_aux_and_grad(value, ep.astensor(x))
        return z.raw, gradient.raw

    # Compiled as one, the backward pass stops at the images; a tape around a compiled model would
    # go on to its weights.
    if isinstance(fmodel, foolbox.TensorFlowModel):
        import tensorflow as tf

        both = tf.function(both, autograph=False)
    elif isinstance(fmodel, foolbox.JAXModel):
        import jax

        both = jax.jit(both)
    return lambda x, y: ep.astensors(*both(x.raw, y.raw))


# ------------------------------------------------------------------------------------------ losses


def log_odds(z, y):
    """What an untargeted attack raises: log of the odds against class y, summed over images.

    log sum exp of the other classes' logits minus that of y. Its gradient is that of the
    cross-entropy divided by 1 - p_y: the same direction, but one that does not vanish in float32
    where the softmax is sure (on Fashion-MNIST, for one image in six).
    """
    onehot = ep.onehot_like(z, y)
    others = z - onehot * 1e9
    top = others.max(axis=-1, keepdims=True)
    log_sum = (others - top).exp().sum(axis=-1).log() + top.squeeze(axis=-1)
    return (log_sum - (z * onehot).sum(axis=-1)).sum()


def chosen_logit(z, y):
    """The logit of class y, summed."""
    return (z * ep.onehot_like(z, y)).sum()


def margin_loss(z, y):
    """Logit of class y minus the largest other one, summed (Carlini and Wagner 2017)."""
    onehot = ep.onehot_like(z, y)
    return (z * onehot).sum() - (z - onehot * 1e9).max(axis=-1).sum()


def margin(z, y):
    """For NumPy logits z (n, classes): that of class y minus the largest other one, (n,)."""
    own = np.take_along_axis(z, y[:, None], axis=1)
    others = z.copy()
    np.put_along_axis(others, y[:, None], -np.inf, axis=1)
    return own[:, 0] - others.max(axis=1)


# ----------------------------------------------------------------------------------------- batches


def attack_batch_size(classifier, memory=4e9):
    """Images in a batch of an attack. Samples of mode minimal do not depend on it.

    128 on a processor. On an accelerator the largest power of two, up to 1,024, of which float32
    activations and their gradients take at most `memory` bytes.
    """
    if not accelerators():
        return 128
    outputs = keras.tree.flatten([layer.output for layer in classifier.layers])
    image = 2 * 4 * sum(math.prod(size or 1 for size in output.shape[1:]) for output in outputs)
    return int(2 ** np.clip(np.floor(np.log2(memory / image)), 3, 10))


class BatchedModel:
    """Logits and gradients of a Foolbox model for NumPy images, in batches.

    Batches are padded to a few sizes, so that each is traced once.

    fmodel: any Foolbox model. like: an eagerpy tensor of its backend (default: its own dummy).
    seconds: time spent inside the model; what an attack takes beyond that is its own.
    gradients: images whose gradient was taken.
    """

    SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

    def __init__(self, fmodel, like=None, batch=128):
        self.fmodel, self.batch = fmodel, batch
        self.like = fmodel.dummy if like is None else like
        self.compiled = {}
        self.seconds, self.gradients = 0.0, 0

    @classmethod
    def of(cls, classifier):
        """BatchedModel of a Keras softmax classifier, in batches that fill the device."""
        return cls(foolbox_model(classifier), batch=attack_batch_size(classifier))

    def _padded(self, array):
        size = min((s for s in self.SIZES if s >= len(array)), default=self.batch)
        extra = np.repeat(array[-1:], size - len(array), axis=0)
        return ep.from_numpy(self.like, np.concatenate([array, extra]))

    def logits(self, x):
        """Logits (n, classes) of images x, float32 (n, h, w, c), n of any size."""
        begun = time.perf_counter()
        parts = []
        for start in range(0, len(x), self.batch):
            part = x[start : start + self.batch]
            parts.append(self.fmodel(self._padded(part)).numpy()[: len(part)])
        self.seconds += time.perf_counter() - begun
        return np.concatenate(parts)

    def gradient(self, x, y, loss):
        """Logits (n, classes), and the gradient of loss(logits, y) by images x (n, h, w, c)."""
        if loss not in self.compiled:
            self.compiled[loss] = compiled_gradient(self.fmodel, loss)
        begun = time.perf_counter()
        parts = []
        for start in range(0, len(x), self.batch):
            rows = slice(start, start + self.batch)
            z, gradient = self.compiled[loss](self._padded(x[rows]), self._padded(y[rows]))
            n = len(x[rows])
            parts.append((z.numpy()[:n], gradient.numpy()[:n]))
        self.seconds += time.perf_counter() - begun
        self.gradients += len(x)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@dataclass
class StartingPoint:
    """Where an attack starts.

    calls: the model. x: float32 (n, h, w, c), images. y: int64 (n,), their labels. logits:
    (n, classes). gradient: of the log-odds against y, (n, h, w, c). seed: of what is random.
    """

    calls: BatchedModel
    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    gradient: np.ndarray
    seed: int = 0

    @classmethod
    def at(cls, calls, x, y, seed=0):
        """The start from images x with labels y; costs one gradient of each."""
        return cls(calls, x, y, *calls.gradient(x, y, log_odds), seed)

    def of(self, rows):
        """The same for some of the images."""
        x, y, logits, gradient = (a[rows] for a in (self.x, self.y, self.logits, self.gradient))
        return StartingPoint(self.calls, x, y, logits, gradient, self.seed)

    @property
    def margin(self):
        """Logit of the right class minus the largest other one, (n,)."""
        return margin(self.logits, self.y)


def in_full_batches(n, batch, step, progress=None):
    """step(rows) on up to `batch` unfinished rows of n at a time, until all are finished.

    step returns which of its rows are finished, bool. These leave and the next move up, so that
    every call of the model is as full as it can be. progress: called with numbers of rows.
    """
    waiting = np.arange(n)
    while len(waiting):
        rows = waiting[:batch]
        finished = step(rows)
        if progress is not None:
            progress(int(finished.sum()))
        waiting = np.concatenate([rows[~finished], waiting[batch:]])


def per_image(sizes):
    """(n,) -> (n, 1, 1, 1), a number for each image."""
    return sizes.reshape(-1, 1, 1, 1)
