"""Models as people have them, in slice_model, mine, tune and attack: taken, or one sentence."""

import numpy as np
import pytest
from conftest import patterns

from adv.attacks import attack
from dare.dare import Tuning, tune
from dare.get_ats import MinedImages, mine
from dare.nnslicer import slice_model
from train.shared.backend import keras, ops
from train.shared.door import checked
from train.shared.flags import UserError
from train.utils import predict

layers = keras.layers
X, Y = patterns(80)
X255, X = X.astype("float32"), X / np.float32(255)


def network(*first, end="softmax", dtype=None):
    """A classifier that gets all patterns right. Its last layer is solved for, not trained.

    first: its first layers. end: an activation, or the last layers. dtype: of its layers.
    """
    keras.utils.set_random_seed(0)
    end = [layers.Activation(end, dtype=dtype)] if isinstance(end, str) or callable(end) else end
    inputs = keras.Input((12, 12, 1))
    conv = layers.Conv2D(4, 3, strides=3, activation="relu", name="conv2", dtype=dtype)
    features = keras.Sequential([inputs, *first, conv, layers.Flatten(dtype=dtype)])
    dense = layers.Dense(4, name="classes", dtype=dtype)
    model = keras.Sequential([*features.layers, dense, *end])
    model.build((None, 12, 12, 1))
    f = predict(features, X255 if first else X)
    f = np.concatenate([f, np.ones((len(f), 1))], axis=1)
    weights = np.linalg.lstsq(f, 6 * np.eye(4)[Y] - 3, rcond=None)[0]
    dense.set_weights([weights[:-1], weights[-1]])
    return model


def of_255(**kwargs):
    return network(layers.Rescaling(1 / 255), **kwargs)


def saved(model, folder, suffix=".weights.h5"):
    """{epoch: file} of a model that was more certain in epoch 1 than in epochs 2 and 3."""
    folder.mkdir(exist_ok=True)
    final = model.get_weights()
    paths = {}
    for epoch, scale in {1: 1.1, 2: 0.9, 3: 1}.items():
        model.set_weights([scale * weight for weight in final])
        paths[epoch] = folder / f"{epoch}{suffix}"
        model.save_weights(paths[epoch]) if suffix == ".weights.h5" else model.save(paths[epoch])
    return paths


def calls(model, x, y, folder):
    """The four functions, to be called."""
    none = {epoch: __file__ for epoch in (1, 2)}
    mined = MinedImages(np.arange(4), np.ones(4), np.ones(4), None, np.zeros((4, 4, 4, 4)))
    return (
        lambda: slice_model(model, x, y, 0.5),
        lambda: mine(none, x, y, model, "conv2"),
        lambda: tune(model, mined, x, y, folder, Tuning("conv2", 1e-4, 1)),
        lambda: attack("fgsm", model, x, y),
    )


def results(model, x, folder, suffix=".weights.h5"):
    """What the four functions give for a model: masks, mined epochs, success, right samples."""
    y = Y[:, None]  # as of keras.datasets
    paths = saved(model, folder, suffix)
    masks = {name: sliced.mask for name, sliced in slice_model(model, x, y, 0.5).items()}
    mined = mine(paths, x, y, model, "conv2")
    samples, success = attack("pgd", model, x, y)
    right = predict(model, samples).argmax(axis=1) == Y
    tune(model, mined, x, y, folder / "tuned", Tuning("conv2", 1e-3, 1, masks))
    return masks, mined, samples, success, right


# --------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_pixels_up_to_255(tmp_path, kind, capsys):
    """A model with its Rescaling inside gives what its twin on pixels in [0, 1] gives."""
    x = X255 if kind == "float" else X255.astype("uint8")
    masks, mined, samples, success, right = results(of_255(), x, tmp_path / "a", ".keras")
    assert "100% in [0, 255]" in capsys.readouterr().out
    masks_1, mined_1, samples_1, success_1, right_1 = results(network(), X, tmp_path / "b")
    assert success.all() and success_1.all() and not right.any() and not right_1.any()
    np.testing.assert_allclose(samples / 255, samples_1, atol=1e-3)
    assert all((masks[name] == mask).all() for name, mask in masks_1.items())
    np.testing.assert_array_equal(mined.index, mined_1.index)
    np.testing.assert_array_equal(mined.epoch, mined_1.epoch)
    np.testing.assert_allclose(mined.activation, mined_1.activation, atol=1e-4)


def test_images_of_the_other_range(tmp_path):
    for model, x, advice in (of_255(), X, "multiply"), (network(), X255, "divide"):
        for call in calls(model, x, Y, tmp_path):
            with pytest.raises(UserError, match=f"100% .*: {advice} the images by 255"):
                call()


def test_a_model_that_knows_nothing_says_so(capsys):
    """Labels of other images; and a rounding error above 1, which is no reason to refuse."""
    checked(network(), X * np.float32(1.00001), (Y + 1) % 4)
    assert "the model gets 0% of the images right" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- models


def two_inputs():
    inputs = [keras.Input((12, 12, 1)), keras.Input((12, 12, 1))]
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.Add()(inputs))))


def two_outputs():
    inputs = keras.Input((144,))
    return keras.Model(inputs, [layers.Dense(4)(inputs), layers.Dense(4)(inputs)])


class Subclassed(keras.Model):
    def call(self, x):
        return ops.mean(x, axis=(1, 2))


def of_size(*size, **kwargs):
    pooled = [layers.Conv2D(4, 3, name="conv2"), layers.GlobalAveragePooling2D(), layers.Dense(4)]
    return keras.Sequential([keras.Input((*size, 1), **kwargs), *pooled])


def with_a_weight_of(value, layer):
    model = network(end="linear")
    kernel, bias = model.get_layer(layer).get_weights()
    kernel[..., 0] = value
    model.get_layer(layer).set_weights([kernel, bias])
    return model


GRAPH = "must be a Sequential or functional Keras model that has been built, with one input"
REFUSED = {
    "two inputs": (two_inputs, GRAPH),
    "two outputs": (two_outputs, GRAPH),
    "subclassed": (Subclassed, GRAPH),
    "function": (lambda: lambda x: x, GRAPH),
    "never built": (lambda: keras.Sequential([layers.Flatten(), layers.Dense(4)]), GRAPH),
    "no fixed size": (lambda: of_size(None, None), r"keras.Input of one size"),
    "integers": (lambda: of_size(12, 12, dtype="uint8"), "uint8 images .* of float32"),
    "one sigmoid": (lambda: network(end=[layers.Dense(1, "sigmoid")]), "one softmax or logit for"),
    "four sigmoids": (lambda: network(end="sigmoid"), "those of sigmoids: one softmax or logit"),
    "NaN behind a ReLU": (lambda: with_a_weight_of(np.nan, "conv2"), "weights .* NaN or infinite"),
    "infinite logits": (lambda: with_a_weight_of(3e38, "classes"), "outputs .* NaN or infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case, tmp_path):
    make, message = REFUSED[case]
    for call in calls(make(), X, Y, tmp_path):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def in_a_dict():
    model = network()
    return keras.Model({"image": model.inputs[0]}, {"classes": model.outputs[0]})


TAKEN = {
    "dict": in_a_dict,
    "softmax function": lambda: network(end=[layers.Activation(keras.ops.softmax)]),
    "a softmax of one's own": lambda: network(end=lambda z: ops.softmax(z)),
    "softmax in a Lambda": lambda: network(end=[layers.Lambda(lambda z: ops.softmax(z))]),
    "logits": lambda: network(end="linear"),
    "mixed bfloat16": lambda: network(dtype="mixed_bfloat16"),
    "mixed float16": lambda: network(dtype="mixed_float16"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_models_that_are_taken(case, tmp_path):
    model = TAKEN[case]()
    paths = saved(model, tmp_path)
    mined = mine(paths, X, Y, model, "conv2")
    np.testing.assert_allclose(mined.final_probability, 1, atol=0.02)
    assert mined.activation.dtype == "float32" and np.isfinite(mined.activation).all()
    for name in "fgsm", "jsma", "cw":
        _, success = attack(name, model, X[:8], Y[:8], steps=50)
        assert success.mean() > 0.5
    before = model.get_weights()[0].copy()
    tune(model, mined, X, Y, tmp_path / "tuned", Tuning("conv2", 1e-2, 1))
    assert (before != model.get_weights()[0]).any()
