"""The graph of a Keras model: its layers in order, also those of models inside the model.

A layer of an inner model is named by its path, such as "backbone/conv3". File names have "." in
place of "/", and both are understood.
"""

import contextlib
from dataclasses import dataclass

from train.artifacts import path_text
from train.backend import keras
from train.flags import UserError


@dataclass(frozen=True)
class Step:
    """One call of a layer.

    path: name of the layer, such as "conv1" or "backbone/conv3".
    layer: the Keras layer, or an operation such as the sum of two tensors.
    inputs: the symbolic tensors that it takes. output: the one that it returns.
    """

    path: str
    layer: keras.Operation
    inputs: tuple
    output: keras.KerasTensor

    @property
    def kind(self):
        return type(self.layer).__name__


def steps_of(model):
    """The steps from a model's input to its output, each after those whose outputs it takes.

    The layers are called again, with the same weights, on the model's input. The last step is the
    model's output.

    Raises UserError for a model with several inputs or outputs.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs: it must "
            f"have one of each."
        )
    steps = []
    output = _call_again(model, model.inputs[0], "", {}, steps)
    # Branches that do not lead to the output may come after it.
    last = next(number for number, step in enumerate(steps, 1) if step.output is output)
    return steps[:last]


def _call_again(model, tensor, prefix, arguments, steps):
    """Call the layers of a model on a tensor, append their steps, and return the output.

    arguments: {"training": False} where the model is called so, as in transfer learning.
    """

    def call(layer, *args, **kwargs):
        kwargs |= arguments
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]
        path = prefix + layer.name
        if is_model(layer):
            passed_on = {k: kwargs[k] for k in ("training",) if kwargs.get(k) is not None}
            return _call_again(layer, inputs[0], f"{path}/", passed_on, steps)
        output = layer(*args, **kwargs)
        steps.append(Step(path, layer, tuple(inputs), output))
        return output

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            tensor = call(layer, tensor)
        return tensor
    # What Keras does when a model is called on a tensor, but with `call` for each layer.
    (output,) = keras.tree.flatten(
        model._run_through_graph([tensor], operation_fn=lambda layer: layer, call_fn=call)
    )
    return output


def is_model(layer):
    """Whether a layer is a model with layers of its own."""
    return isinstance(layer, keras.Model)


def layers_by_path(model, prefix=""):
    """{path: layer} of a model and of the models inside it, without their input layers."""
    found = {}
    for layer in model.layers:
        if is_model(layer):
            found |= layers_by_path(layer, f"{prefix}{layer.name}/")
        elif not isinstance(layer, keras.layers.InputLayer):
            found[prefix + layer.name] = layer
    return found


def output_layer(model):
    """The layer that makes a model's output, also if it is in a model inside the model."""
    while is_model(model):
        model = model.outputs[0]._keras_history.operation
    return model


def find_step(model, name):
    """The step of the layer with this path; UserError if the model has no such layer."""
    steps = steps_of(model)
    for step in reversed(steps):
        if name in (step.path, path_text(step.path)):
            return step
    raise UserError(
        f"--choose_layer {name} is not a layer of this network: choose from "
        f"{', '.join(step.path for step in steps)}."
    )


def up_to(model, name):
    """The model up to a layer, whose activations become the output. The weights are shared.

    name: the layer's path. Raises UserError if the model has no such layer.
    """
    return part_of(model, find_step(model, name).output)


def part_of(model, outputs):
    """The part of a model that leads to some tensors of its steps."""
    with _unique_names(model):
        return keras.Model(model.inputs[0], outputs)


@contextlib.contextmanager
def _unique_names(model):
    """Name the layers by their paths for a moment, because Keras builds no model with two layers of
    one name, such as the "dense" of a backbone and that of its head."""
    layers = {step.layer: path_text(step.path) for step in steps_of(model)}
    names = [layer.name for layer in layers]
    try:
        for layer, path in layers.items():
            layer.name = path
        yield
    finally:
        for layer, name in zip(layers, names, strict=True):
            layer.name = name
