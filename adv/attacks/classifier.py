"""A Keras classifier for Foolbox, in batches: all code of adv/ that depends on the backend.

`foolbox_model` wraps any Keras classifier that ends in a softmax or in logits. `BatchedModel` gives
attacks its logits and gradients as NumPy arrays.
"""

import math
from dataclasses import dataclass

import eagerpy as ep
import foolbox
import numpy as np

from adv.attacks.losses import log_odds, margin
from train.shared.backend import accelerators, keras, ops
from train.shared.flags import UserError
from train.shared.graph import calls_of, part_of
from train.utils import is_softmax

# ------------------------------------------------------------------------------ the Foolbox model


class _WithoutSoftmax(keras.layers.Layer):
    """The last dense layer without its softmax, on the same weights, in float32."""

    def __init__(self, dense):
        super().__init__(dtype="float32")
        self.dense = dense

    def call(self, x):
        z = ops.matmul(x, self.dense.kernel)
        return z + self.dense.bias if self.dense.use_bias else z


def logits_model(model):
    """The Keras model of a classifier's logits, on the same layers.

    Outputs that are no softmax are logits. Of a softmax in a layer of another kind than these, the
    logits are its logarithm.
    """
    last = calls_of(model)[-1]
    images = np.random.default_rng(0).random((4, *model.input_shape[1:]), "float32")
    if not is_softmax(ops.convert_to_numpy(ops.cast(model(images, training=False), "float32"))):
        return part_of(model, last.output)
    kind = type(last.layer).__name__
    is_linear = getattr(last.layer, "activation", None) is keras.activations.linear
    if kind == "Dense":
        return part_of(model, _WithoutSoftmax(last.layer)(last.inputs[0]))
    if kind in ("Softmax", "Activation") and not is_linear:
        return part_of(model, last.inputs[0])
    return part_of(model, ops.log(ops.maximum(ops.cast(last.output, "float32"), 1e-30)))


def foolbox_model(model, highest=1):
    """The Foolbox 3 model on pixels in [0, 1] of a Keras classifier of [0, highest], compiled.

    On TensorFlow and PyTorch it follows the weights of the classifier. On JAX it keeps those of the
    moment at which it is made (see reads_weights_anew).
    """
    images = keras.Input(model.input_shape[1:], dtype="float32")
    logits = keras.Model(images, ops.cast(logits_model(model)(images * highest), "float32"))
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: logits(x, training=False))
        return foolbox.TensorFlowModel(compiled, bounds=(0, 1))
    if backend == "jax":
        import jax

        # Copies, because Keras donates its own arrays to predict and fit, which then delete them.
        parts = (logits.trainable_variables, logits.non_trainable_variables)
        weights = tuple([variable.value.copy() for variable in part] for part in parts)
        call = jax.jit(lambda w, x: logits.stateless_call(*w, x, training=False)[0])
        return foolbox.JAXModel(lambda x: call(weights, x), bounds=(0, 1))
    import torch

    class Logits(torch.nn.Module):
        def forward(self, x):
            return logits(x, training=False)

    device = next((variable.value.device for variable in logits.weights), None)
    return foolbox.PyTorchModel(Logits().eval(), bounds=(0, 1), device=device)


def reads_weights_anew():
    """Whether a foolbox_model follows its classifier's weights, so one can be used for all."""
    return keras.backend.backend() != "jax"


def compiled_gradient(fmodel, loss):
    """A function (images, labels) -> (logits, gradient of the loss with respect to the images).

    loss: function (logits, labels) -> a number, summed over the images.
    """

    def logits_and_gradient(x, y):
        def value(inputs):
            z = fmodel(inputs)
            return loss(z, ep.astensor(y)), z

        _, z, gradient = ep.value_aux_and_grad(value, ep.astensor(x))
        return z.raw, gradient.raw

    # Compiled as a whole, the backward pass stops at the images. A tape around a compiled model
    # would also compute the gradients of its weights.
    if isinstance(fmodel, foolbox.TensorFlowModel):
        import tensorflow as tf

        logits_and_gradient = tf.function(logits_and_gradient, autograph=False)
    elif isinstance(fmodel, foolbox.JAXModel):
        import jax

        logits_and_gradient = jax.jit(logits_and_gradient)
    return lambda x, y: ep.astensors(*logits_and_gradient(x.raw, y.raw))


# ----------------------------------------------------------------------------------------- batches


def attack_batch_size(classifier):
    """Images in a batch of an attack; samples of mode minimal do not depend on it.

    128 on the CPU. On an accelerator the largest power of two, from 8 to 1,024, for which the
    float32 activations and their gradients take at most 4 GB.
    """
    if not accelerators():
        return 128
    shapes = [call.output.shape[1:] for call in calls_of(classifier)]
    features = sum(math.prod(size or 1 for size in shape) for shape in shapes)
    bytes_per_image = 2 * 4 * features
    return int(2 ** np.clip(np.floor(np.log2(4e9 / bytes_per_image)), 3, 10))


class BatchedModel:
    """Logits and gradients of a Foolbox model for NumPy images, in batches.

    Batches are padded to a few sizes, so that each size is compiled once.

    fmodel: any Foolbox model.
    like: an eagerpy tensor of its backend; None: its own dummy.
    batch: images in a batch.
    gradients: number of images whose gradient was computed.
    """

    SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

    def __init__(self, fmodel, like=None, batch=128):
        self.fmodel = fmodel
        self.batch = batch
        self.like = fmodel.dummy if like is None else like
        self.compiled = {}
        self.gradients = 0

    @classmethod
    def of(cls, classifier, highest=1):
        """The BatchedModel of a Keras classifier, in batches for the device, or the one given.

        highest: of the pixels that the classifier takes; the BatchedModel takes those in [0, 1].
        """
        if isinstance(classifier, cls):
            return classifier
        return cls(foolbox_model(classifier, highest), batch=attack_batch_size(classifier))

    def _padded(self, array):
        size = min((s for s in self.SIZES if s >= len(array)), default=self.batch)
        padding = np.repeat(array[-1:], size - len(array), axis=0)
        return ep.from_numpy(self.like, np.concatenate([array, padding]))

    def logits(self, x):
        """Logits (n, classes) of images x, float32 (n, h, w, c)."""
        parts = []
        for start in range(0, len(x), self.batch):
            part = x[start : start + self.batch]
            parts.append(self.fmodel(self._padded(part)).numpy()[: len(part)])
        return np.concatenate(parts)

    def gradient(self, x, y, loss):
        """Logits (n, classes), and the loss's gradient with respect to the images (n, h, w, c).

        Raises UserError if they are NaN or infinite.
        """
        if loss not in self.compiled:
            self.compiled[loss] = compiled_gradient(self.fmodel, loss)
        parts = []
        for start in range(0, len(x), self.batch):
            rows = slice(start, start + self.batch)
            z, gradient = self.compiled[loss](self._padded(x[rows]), self._padded(y[rows]))
            n = len(x[rows])
            parts.append((z.numpy()[:n], gradient.numpy()[:n]))
        self.gradients += len(x)
        z, gradient = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not (np.isfinite(z).all() and np.isfinite(gradient).all()):
            raise UserError(
                "logits or gradients of the model are NaN or infinite: attack an earlier "
                "checkpoint, or in float32."
            )
        return z, gradient


def in_full_batches(n, batch, step, progress=None, share_done=None):
    """Call a step on up to `batch` unfinished images at a time, until all are finished.

    Finished images leave the batch and the next ones take their places, so that every call of the
    model is as full as it can be.

    Args:
        n: number of images. batch: images in a batch.
        step: function (rows) that returns which of these rows are finished, bool.
        progress: called after every step with the number of images done since the last, or None.
        share_done: function (rows) that estimates which share of the work on unfinished images is
            done, in [0, 1]; None: progress counts finished images.
    """
    waiting = np.arange(n)
    done = np.zeros(n)
    reported = 0
    while len(waiting):
        rows = waiting[:batch]
        finished = step(rows)
        share = np.where(finished, 1, share_done(rows) if share_done else 0)
        done[rows] = np.maximum(done[rows], share)  # an estimate may fall, progress does not
        if progress is not None:
            whole = int(done.sum() + 1e-6)
            progress(whole - reported)
            reported = whole
        waiting = np.concatenate([rows[~finished], waiting[batch:]])


@dataclass
class StartingPoint:
    """Where an attack starts.

    model: BatchedModel.
    x: images, float32 (n, h, w, c). y: their labels, int64 (n,).
    logits: (n, classes).
    gradient: of the log-odds against y with respect to the images, (n, h, w, c).
    seed: of the attack's random numbers.
    """

    model: BatchedModel
    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    gradient: np.ndarray
    seed: int = 0

    @classmethod
    def at(cls, model, x, y, seed=0):
        """The starting point of images x with labels y; it costs one gradient of each image."""
        logits, gradient = model.gradient(x, y, log_odds)
        return cls(model, x, y, logits, gradient, seed)

    def subset(self, rows):
        """The starting point of some of the images."""
        x, y, logits, gradient = (a[rows] for a in (self.x, self.y, self.logits, self.gradient))
        return StartingPoint(self.model, x, y, logits, gradient, self.seed)

    @property
    def margin(self):
        """The logit of the right class minus the largest other one, (n,)."""
        return margin(self.logits, self.y)
