"""The graph of a Keras model: its layers in order, also those of models inside the model.

A layer of an inner model is named by its path, such as "backbone/conv3". File names and copied
layers have "__" in place of "/", and both are understood.
"""

import contextlib
from dataclasses import dataclass

from train.shared.backend import keras
from train.shared.flags import UserError
from train.shared.paths import path_text


@dataclass(frozen=True)
class Call:
    """One call of a layer in a model.

    path: path of the layer, such as "conv1" or "backbone/conv3". None: part of a layer.
    layer: the Keras layer, or an operation such as the sum of two tensors.
    inputs: the symbolic tensors that it takes. output: the one that it returns.
    """

    path: str
    layer: keras.Operation
    inputs: tuple
    output: keras.KerasTensor


def is_normalisation(layer):
    return isinstance(layer, keras.layers.Normalization)


def calls_of(model):
    """The calls from a model's input to its output, each after those whose outputs it takes.

    The layers are called again, with the same weights, on the model's input. The last call returns
    the model's output.

    Raises UserError for a model that is not a built Sequential or functional model with one input
    and one output.
    """
    require_graph(model)
    calls = []
    output = _call_again(model, model.inputs[0], "", calls)
    # Branches that do not lead to the output may come after it.
    last = next(number for number, call in enumerate(calls, 1) if call.output is output)
    return calls[:last]


def require_graph(model):
    if not is_graph(model):
        raise UserError(
            f"the model {getattr(model, 'name', model)} must be a Sequential or functional Keras "
            f"model that has been built, with one input and one output."
        )


def _call_again(model, tensor, prefix, calls):
    """Call the layers of a model on a tensor, append these calls, and return the output."""

    def call_layer(layer, *args, **kwargs):
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]
        path = prefix + layer.name
        if is_graph(layer):
            return _call_again(layer, inputs[0], f"{path}/", calls)
        output = layer(*args, **kwargs)
        calls.append(Call(path, layer, tuple(inputs), output))
        return output

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            tensor = call_layer(layer, tensor)
        return tensor
    # What Keras does when a model is called on a tensor, but with `call_layer` for each layer.
    (output,) = keras.tree.flatten(
        model._run_through_graph([tensor], operation_fn=lambda layer: layer, call_fn=call_layer)
    )
    return output


def is_graph(layer):
    """Whether a layer is a model whose layers can be followed from its input to its output."""
    is_functional = isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph")
    return is_functional and layer.built and len(layer.inputs) == len(layer.outputs) == 1


def layers_by_path(model, prefix=""):
    """{path: layer} of a model and of the models inside it, without their input layers."""
    found = {}
    for layer in model.layers:
        if is_graph(layer):
            found |= layers_by_path(layer, f"{prefix}{layer.name}/")
        elif not isinstance(layer, keras.layers.InputLayer):
            found[prefix + layer.name] = layer
    return found


def output_layer(model):
    """The layer that makes a model's output, even if it is inside an inner model."""
    while is_graph(model):
        model = model.outputs[0]._keras_history.operation
    return model


def find_call(model, path):
    """The last call of the layer with this path; UserError if the model has no such layer."""
    calls = calls_of(model)
    for call in reversed(calls):
        if path in (call.path, path_text(call.path)):
            return call
    raise UserError(
        f"--choose_layer {path} is not a layer of this network: choose from "
        f"{', '.join(call.path for call in calls)}."
    )


def up_to(model, path):
    """The model up to a layer, whose activations become the output. The weights are shared.

    Raises UserError if the model has no such layer.
    """
    return part_of(model, find_call(model, path).output)


def part_of(model, outputs):
    """The part of a model that leads to some tensors of its calls."""
    with _unique_names(model):
        return keras.Model(model.inputs[0], outputs)


@contextlib.contextmanager
def _unique_names(model):
    """Temporarily name the layers by their paths.

    Keras cannot build a model with two layers of the same name, such as the "dense" of a backbone
    and that of its head.
    """
    layers = {call.layer: path_text(call.path) for call in calls_of(model)}
    names = [layer.name for layer in layers]
    try:
        for layer, path in layers.items():
            layer.name = path
        yield
    finally:
        for layer, name in zip(layers, names, strict=True):
            layer.name = name
