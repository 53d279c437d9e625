"""Models, arrays and checkpoints as people have them: taken, or refused in one sentence."""

import random

import numpy as np
import pytest
from conftest import ROOT, patterns, python

from adv.attacks import attack
from dare.dare import Tuning, tune
from dare.get_ats import MinedImages, mine
from dare.nnslicer import slice_model
from train.shared.backend import keras, ops
from train.shared.checks import check_arrays, checked_inputs
from train.shared.flags import UserError
from train.utils import predict

layers = keras.layers
X, Y = patterns(80)
X255, X = X.astype("float32"), X / np.float32(255)
TUNING = Tuning("conv2", 1e-2, 1)


def network(*first, end="softmax", dtype=None):
    """A classifier that gets all patterns right: its last dense layer is solved for, not trained.

    first: its first layers, for pixels in [0, 255]. end: the activation after it. dtype: of layers.
    """
    conv = layers.Conv2D(8, 3, strides=3, activation="relu", name="conv2", dtype=dtype)
    flat, dense = layers.Flatten(dtype=dtype), layers.Dense(4, name="classes", dtype=dtype)
    inputs = keras.Input((12, 12, 1))
    features = keras.Sequential([inputs, *first, conv, flat])
    conv.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in conv.get_weights()])
    end = end if isinstance(end, layers.Layer) else layers.Activation(end, dtype=dtype)
    model = keras.Sequential([inputs, *first, conv, flat, dense, end])
    ones = np.ones((len(Y), 1))
    inputs = np.concatenate([predict(features, X255 if first else X), ones], axis=1)
    solution = np.linalg.lstsq(inputs, 6 * np.eye(4)[Y] - 3, rcond=None)[0]
    dense.set_weights([solution[:-1], solution[-1]])
    return model


def saved(model, folder, suffix=".weights.h5"):
    """{epoch: file} of a model that was more certain in epoch 1 than in epochs 2 and 3."""
    final = model.get_weights()
    paths = {epoch: folder / f"{epoch}{suffix}" for epoch in (1, 2, 3)}
    for path, scale in zip(paths.values(), (1.1, 0.9, 1), strict=True):
        model.set_weights([scale * weight for weight in final])
        model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    return paths


def assert_refused(model, x, y, message):
    """By all four functions, in one sentence."""
    mined = MinedImages(np.arange(4), np.ones(4), np.ones(4), None, np.zeros((4, 4, 4, 8)))
    for call in (
        lambda: slice_model(model, x, y, 0.5),
        lambda: mine({1: __file__, 2: __file__}, x, y, model, "conv2"),
        lambda: tune(model, mined, x, y, "not written", TUNING),
        lambda: attack("fgsm", model, x, y),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- images and labels

TAKEN_ARRAYS = {
    "labels (n, 1)": (X, Y[:, None]),
    "lists": (X.tolist(), Y.tolist()),
    "tensors": (ops.convert_to_tensor(X), ops.convert_to_tensor(Y)),
    "uint8": (X255.astype("uint8"), Y.astype("uint8")),
    "rounded": (X * np.float32(1.00001), Y),
}
REFUSED_ARRAYS = {
    "one-hot labels": (X, np.eye(4)[Y], r"float64 of shape \(80, 4\): use the 80 numbers"),
    "labels from 1": (X, Y + 1, "labels are 1 to 4, and the model has the classes 0 to 3"),
    "negative labels": (X, Y - 1, "labels are -1 to 2"),
    "labels of other images": (X, Y[:-1], r"of shape \(79,\): use the 80 numbers"),
    "channels first": (X.transpose(0, 3, 1, 2), Y, r"\(80, 1, 12, 12\), .* \(12, 12, 1\)"),
    "without channels": (X[..., 0], Y, r"shape \(80, 12, 12\), and the model takes"),
    "NaN": (np.where(X > 0.9, np.nan, X), Y, "without NaN"),
    "neither [0, 1] nor [0, 255]": (1.5 * X, Y, r"float pixels of 0.* to 1.*, or clip"),
    "around 0": (2 * X - 1, Y, "put a keras.layers.Rescaling into it"),
    "ragged lists": ([[1, 2], [3]], Y, "are no arrays"),
    "integers": (X255.astype("int64"), Y, "images are int64"),
    "none": (X[:0], Y[:0], r"shape \(0, 12, 12, 1\)"),
}


@pytest.mark.parametrize("case", TAKEN_ARRAYS)
def test_arrays_that_are_taken(case):
    x, y = check_arrays(*TAKEN_ARRAYS[case], (12, 12, 1), 4)
    assert x.shape == X.shape and y.dtype == "int64"
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_that_are_refused(case):
    assert_refused(network(), *REFUSED_ARRAYS[case])


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_pixels_up_to_255(tmp_path, dtype, capsys):
    """A model with its Rescaling inside gives what its twin of pixels in [0, 1] gives."""
    x = X255.astype(dtype)
    models = (network(layers.Rescaling(1 / 255)), x), (network(), X)
    masks, twin_masks = (slice_model(model, x, Y, 0.5)["conv2"].mask for model, x in models)
    np.testing.assert_array_equal(masks, twin_masks)
    assert capsys.readouterr().out.count("100% in [0, 255]") == 1
    mined, twin_mined = (
        mine(saved(model, tmp_path, ".keras"), x, Y[:, None], model, "conv2") for model, x in models
    )
    np.testing.assert_array_equal(mined.index, twin_mined.index)
    np.testing.assert_allclose(mined.activation, twin_mined.activation, atol=1e-4)
    (samples, success), (twin_samples, _) = (attack("pgd", *both, Y) for both in models)
    np.testing.assert_allclose(samples / 255, twin_samples, atol=1e-3)
    assert success.all() and (predict(models[0][0], samples).argmax(axis=1) != Y).all()
    tune(models[0][0], mined, x, Y, tmp_path / "a", TUNING)
    tune(models[1][0], mined, X, Y, tmp_path / "b", TUNING)
    for weight, twin in zip(*(model.get_weights() for model, _ in models), strict=True):
        np.testing.assert_allclose(weight, twin, atol=1e-4)


def test_images_of_the_other_range():
    assert_refused(network(layers.Rescaling(1 / 255)), X, Y, "100% .*: multiply the images by 255")
    assert_refused(network(), X255, Y, "100% .*: divide the images by 255")


def test_a_model_that_knows_nothing_says_so(capsys):
    checked_inputs(network(), X, (Y + 1) % 4)
    assert "the model gets 0% of the images right" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- models


def two(inputs, outputs):
    inputs = [keras.Input((12, 12, 1)) for _ in range(inputs)]
    flat = layers.Flatten()(layers.Average()([*inputs, inputs[0]]))
    return keras.Model(inputs, [layers.Dense(4)(flat) for _ in range(outputs)])


def of(units=4, size=(12, 12), activation=None, dtype="float32"):
    pooled = [layers.Conv2D(4, 3, name="conv2"), layers.GlobalAveragePooling2D()]
    end = layers.Dense(units, activation)
    return keras.Sequential([keras.Input((*size, 1), dtype=dtype), *pooled, end])


def with_a_weight_of(value, layer):
    model = network(end="linear")
    kernel, bias = model.get_layer(layer).get_weights()
    kernel[..., 0] = value
    model.get_layer(layer).set_weights([kernel, bias])
    return model


GRAPH = "must be a Sequential or functional Keras model that has been built, with one input"
REFUSED = {
    "two inputs": (lambda: two(2, 1), GRAPH),
    "two outputs": (lambda: two(1, 2), GRAPH),
    "subclassed": (keras.Model, GRAPH),
    "never built": (lambda: keras.Sequential([layers.Flatten(), layers.Dense(4)]), GRAPH),
    "no fixed size": (lambda: of(size=(None, None)), "keras.Input of one size"),
    "integers": (lambda: of(dtype="uint8"), "uint8 images .* of float32"),
    "one sigmoid": (lambda: of(1, activation="sigmoid"), "one softmax or logit for each"),
    "four sigmoids": (lambda: network(end="sigmoid"), "those of sigmoids: one softmax or logit"),
    "NaN behind a ReLU": (lambda: with_a_weight_of(np.nan, "conv2"), "weights .* NaN or infinite"),
    "infinite": (lambda: with_a_weight_of(3e38, "classes"), "outputs .* NaN or infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case):
    make, message = REFUSED[case]
    assert_refused(make(), X, Y, message)


def in_global_float16():
    keras.config.set_dtype_policy("mixed_float16")
    return network()


TAKEN = {
    "dict": lambda: keras.Model((m := network()).inputs[0], {"classes": m.outputs[0]}),
    "softmax of one's own": lambda: network(end=lambda z: ops.softmax(z)),
    "softmax in a Lambda": lambda: network(end=layers.Lambda(lambda z: ops.softmax(z))),
    "logits": lambda: network(end="linear"),
    "mixed_bfloat16": lambda: network(dtype="mixed_bfloat16"),
    "mixed_float16": in_global_float16,
}


@pytest.mark.parametrize("case", TAKEN)
def test_models_that_are_taken(case, tmp_path, request):
    expected = predict(network(), X)[np.arange(len(Y)), Y]
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    model = TAKEN[case]()
    mined = mine(saved(model, tmp_path), X, Y, model, "conv2")
    np.testing.assert_allclose(mined.final_probability, expected[mined.index], atol=0.02)
    assert mined.activation.dtype == "float32"
    for name in "fgsm", "jsma", "cw":
        _, success = attack(name, model, X[:8], Y[:8], steps=50)
        assert success.mean() > 0.5
    before = model.get_weights()[0].copy()
    tune(model, mined, X, Y, tmp_path / "tuned", TUNING)
    assert np.isfinite(model.get_weights()[0]).all() and (before != model.get_weights()[0]).any()


def test_frozen_layers_stay_frozen(tmp_path):
    """In a model whose hidden activation cannot be read from a config."""
    relu = lambda x: ops.relu(x)  # noqa: E731
    hidden = layers.Conv2D(2, 1, kernel_initializer="ones", activation=relu, name="first")
    model = network(layers.Rescaling(1 / 255), hidden)
    mined = mine(saved(model, tmp_path), X255, Y, model, "conv2")
    hidden.trainable = False
    before = [weight.copy() for weight in model.get_weights()]
    tune(model, mined, X255, Y, tmp_path / "tuned", TUNING)
    stays = [(a == b).all() for a, b in zip(before, model.get_weights(), strict=True)]
    assert stays == [True, True, False, False, True, True]
    with pytest.raises(UserError, match="no layer up to first has weights that are trainable"):
        tune(model, mined, X255, Y, tmp_path / "none", Tuning("first", 1e-2, 1))


# ----------------------------------------------------------------------------------- checkpoints


def test_checkpoints_in_the_order_of_their_epochs(tmp_path):
    """As a glob gives them, of a network whose layers had other names."""
    model = network()
    paths = saved(model, tmp_path, ".keras")
    twin = keras.models.clone_model(
        model, clone_function=lambda x: type(x).from_config(x.get_config() | {"name": x.name[::-1]})
    )
    mined = mine({"1": str(paths[1]), "10": paths[3], "2": paths[2]}, X, Y, twin, "2vnoc")
    assert set(mined.epoch) <= {1, 2}
    for weight, same in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_checkpoints_that_are_refused(tmp_path):
    model = network()
    paths = saved(model, tmp_path)
    with_a_weight_of(np.nan, "classes").save_weights(tmp_path / "nan.weights.h5")
    for checkpoints, message in (
        (list(paths.values()), "must be {number of the epoch: weights file}"),
        ({"first": paths[1], "last": paths[3]}, "must be {number of the epoch"),
        (paths | {4: tmp_path}, "is missing: make it again"),
        ({1: paths[1]}, "at least one historical checkpoint"),
        (paths | {2: tmp_path / "nan.weights.h5"}, "nan.weights.h5 gives outputs that are NaN"),
    ):
        with pytest.raises(UserError, match=message):
            mine(checkpoints, X, Y, model, "conv2")


# ----------------------------------------------------------------------------------- a good guest


def test_attacks_leave_the_callers_random_numbers_alone():
    model = network()
    drawn = set()
    for work in (
        lambda: None,
        lambda: attack("pgd", model, X[:8], Y[:8], "fixed", 0.1),
        lambda: attack("jsma", model, X[:8], Y[:8]),
    ):
        keras.utils.set_random_seed(3)
        work()
        drawn.add((random.random(), np.random.rand(), float(keras.random.uniform(()))))  # noqa: NPY002
    assert len(drawn) == 1


GUEST = """
import logging, os, warnings, keras
keras.config.set_image_data_format("channels_first")
def state():
    config = keras.config
    settings = config.floatx(), config.image_data_format(), config.dtype_policy()
    return dict(os.environ), warnings.filters[:], logging.getLogger("tensorflow").level, settings
before = state()
import adv.attacks, dare.dare
assert state() == before and "TF_DETERMINISTIC_OPS" not in os.environ
"""


def test_importing_changes_nothing():
    result = python("-c", GUEST, TF_DETERMINISTIC_OPS=None)
    assert result.returncode == 0, result.stderr


def test_a_backend_that_cannot_be_imported():
    result = python(ROOT / "dare/dare.py", "--help", KERAS_BACKEND="pytorch")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "set KERAS_BACKEND to tensorflow, jax or torch" in result.stderr
