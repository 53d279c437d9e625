"""Between Keras and Foolbox: the one place that knows the backend, and how attacks call a model.

`foolbox_model` wraps any Keras softmax classifier; `Calls` gives attacks its logits and gradients as NumPy arrays.
"""

import time

import eagerpy as ep
import foolbox
import numpy as np

from train.files import UserError

import keras  # isort: skip
from keras import ops  # isort: skip


class _WithoutSoftmax(keras.layers.Layer):
    """The last dense layer without its softmax, on the same weights."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        z = ops.matmul(x, self.dense.kernel)
        return z + self.dense.bias if self.dense.use_bias else z


def logits_model(model):
    """The Keras model of the logits of a softmax classifier: its own layers and weights, nothing copied or trained."""
    last = model.layers[-1]
    if type(last).__name__ == "Softmax" or (type(last).__name__ == "Activation" and last.activation is keras.activations.softmax):
        return keras.Model(model.inputs[0], last.input)
    if type(last).__name__ == "Dense" and last.activation is keras.activations.softmax:
        return keras.Model(model.inputs[0], _WithoutSoftmax(last)(last.input))
    raise UserError(f"attacks need a classifier that ends in a softmax; this one ends in {last.name}, a {type(last).__name__}.")


def foolbox_model(model):
    """The Foolbox 3 model of a Keras softmax classifier on pixels in [0, 1]: logits, compiled, in inference mode.

    The weights are those of the moment it is made (JAX) or of every call (TensorFlow, PyTorch): make a new one after tuning.
    """
    logits = logits_model(model)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return foolbox.TensorFlowModel(tf.function(lambda x: logits(x, training=False)), bounds=(0, 1))
    if backend == "jax":
        import jax

        # Copies: Keras donates its own arrays to predict and fit, and they are gone afterwards.
        weights = tuple([v.value.copy() for v in part] for part in (logits.trainable_variables, logits.non_trainable_variables))
        call = jax.jit(lambda w, x: logits.stateless_call(*w, x, training=False)[0])
        return foolbox.JAXModel(lambda x: call(weights, x), bounds=(0, 1))
    import torch

    class Logits(torch.nn.Module):
        def forward(self, x):
            return logits(x, training=False)

    return foolbox.PyTorchModel(Logits().eval(), bounds=(0, 1), device=keras.src.backend.torch.core.get_device())


def compiled_gradient(fmodel, loss):
    """(images, labels) -> (logits, gradient of loss(logits, labels) by the images), on eagerpy tensors, compiled."""

    def both(x, y):
        def value(inputs):
            z = fmodel(inputs)
            return loss(z, ep.astensor(y)), z

        _, z, gradient = ep.value_aux_and_grad(value, ep.astensor(x))
        return z.raw, gradient.raw

    # Compiled as one, the backward pass stops at the images; a tape around a compiled model would go on to its weights.
    if isinstance(fmodel, foolbox.TensorFlowModel):
        import tensorflow as tf

        both = tf.function(both, autograph=False)
    elif isinstance(fmodel, foolbox.JAXModel):
        import jax

        both = jax.jit(both)
    return lambda x, y: ep.astensors(*both(x.raw, y.raw))


def cross_entropy(z, y):
    """What an untargeted attack raises: log sum exp of the other classes' logits minus that of class y, summed.

    Its gradient is that of the cross-entropy divided by 1 - p_y: the same direction, which is all that these attacks use, but it
    does not vanish in float32 where the softmax is sure (on Fashion-MNIST, for one image in six).
    """
    onehot = ep.onehot_like(z, y)
    others = z - onehot * 1e9
    top = others.max(axis=-1, keepdims=True)
    return ((others - top).exp().sum(axis=-1).log() + top.squeeze(axis=-1) - (z * onehot).sum(axis=-1)).sum()


def chosen_logit(z, y):
    """The logit of class y, summed."""
    return (z * ep.onehot_like(z, y)).sum()


def margin_loss(z, y):
    """Logit of class y minus the largest other one, summed: negative sums are misclassified (Carlini and Wagner 2017)."""
    onehot = ep.onehot_like(z, y)
    return (z * onehot).sum() - (z - onehot * 1e9).max(axis=-1).sum()


def margin(z, y):
    """For NumPy logits z (n, classes): logit of class y minus the largest other one, (n,)."""
    own = np.take_along_axis(z, y[:, None], axis=1)
    others = z.copy()
    np.put_along_axis(others, y[:, None], -np.inf, axis=1)
    return own[:, 0] - others.max(axis=1)


class Calls:
    """Logits and gradients of a Foolbox model for NumPy images, in batches padded to a few sizes so that each is traced once.

    fmodel: any Foolbox model. like: an eagerpy tensor of its backend (default: the model's own dummy).
    `seconds` adds up the time spent inside the model: what an attack takes beyond that is its own.
    """

    SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

    def __init__(self, fmodel, like=None, batch=128):
        self.fmodel, self.batch, self.seconds = fmodel, batch, 0.0
        self.like = fmodel.dummy if like is None else like
        self.gradients = {}

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
        """Logits (n, classes), and the gradient of loss(logits, y) with respect to the images x, (n, h, w, c)."""
        if loss not in self.gradients:
            self.gradients[loss] = compiled_gradient(self.fmodel, loss)
        begun = time.perf_counter()
        parts = []
        for start in range(0, len(x), self.batch):
            part = slice(start, start + self.batch)
            z, gradient = self.gradients[loss](self._padded(x[part]), self._padded(y[part]))
            parts.append((z.numpy()[: len(x[part])], gradient.numpy()[: len(x[part])]))
        self.seconds += time.perf_counter() - begun
        return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def pool(n, batch, step, bar=None):
    """step(rows) on up to `batch` unfinished rows at a time, until all n are; step returns which are finished, bool.

    What is finished leaves and the next moves up, so that every call of the model is as full as it can be.
    """
    waiting = np.arange(n)
    while len(waiting):
        rows = waiting[:batch]
        finished = step(rows)
        if bar is not None:
            bar(int(finished.sum()))
        waiting = np.concatenate([rows[~finished], waiting[batch:]])


def each(sizes):
    """(n,) -> (n, 1, 1, 1), a number for each image."""
    return sizes.reshape(-1, 1, 1, 1)


def line_search(calls, x, y, z, gradient, direction, coarse=1000, fine=20, bar=None):
    """The smallest step along `direction` that changes the decision; costs forward passes only.

    The grid is Foolbox 2.3.0's: `coarse` sizes up to 1 and, for a hit among the first `fine`, so many finer ones below it.
    Foolbox tries them in turn. Here the margin tells where it will cross 0: the first guess follows its slope, the next ones
    its values at both ends of the interval, and one halves the interval where the last did not. That finds the same size
    wherever larger steps along the same line stay adversarial.

    z, gradient: what calls.gradient(x, y, cross_entropy) returns. direction: (n, h, w, c).
    Returns adversarial images, success, and the class that they are taken for (-1 without success).
    """
    n = len(x)
    unit, low, high = np.full(n, 1 / coarse, "float32"), np.zeros(n, "int64"), np.zeros(n, "int64")  # high 0: no hit yet
    at_low, at_high = margin(z, y), np.full(n, -np.inf, "float32")
    first = at_low / np.maximum((gradient * direction).sum(axis=(1, 2, 3)), 1e-12) * coarse
    refined, label, result, halve = np.zeros(n, bool), np.full(n, -1), x.copy(), np.zeros(n, bool)

    def step(rows):
        lower, upper = low[rows], high[rows]
        width = upper - lower
        guess = np.where(lower == 0, np.clip(first[rows], 1, coarse / 2), np.minimum(2 * lower, coarse))
        crossing = lower + width * (at_low[rows] / (at_low[rows] - at_high[rows]))
        between = np.where(halve[rows], (lower + upper) // 2, np.clip(np.ceil(crossing), lower + 1, np.maximum(upper - 1, lower + 1)))
        trial = np.where(upper == 0, np.ceil(guess), between).astype("int64")
        candidate = np.clip(x[rows] + each(unit[rows] * trial.astype("float32")) * direction[rows], 0, 1)
        z = calls.logits(candidate)
        predicted, left = z.argmax(axis=1), margin(z, y[rows])
        hit = predicted != y[rows]
        high[rows[hit]], low[rows[~hit]] = trial[hit], trial[~hit]
        at_high[rows[hit]], at_low[rows[~hit]] = left[hit], left[~hit]
        halve[rows] = (upper > 0) & ~halve[rows] & (2 * (high[rows] - low[rows]) > width)
        label[rows[hit]], result[rows[hit]] = predicted[hit], candidate[hit]
        closed = (high[rows] > 0) & (high[rows] - low[rows] <= 1)
        again = rows[closed & ~refined[rows] & (high[rows] <= fine)]
        unit[again], low[again] = unit[again] * high[again] / fine, fine * (high[again] - 1) // high[again]
        high[again] = fine
        refined[rows[closed]] = True
        return (closed & ~np.isin(rows, again)) | ((high[rows] == 0) & (low[rows] == coarse))

    pool(n, calls.batch, step, bar)
    return result, label >= 0, label
