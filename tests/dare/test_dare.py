"""Mining the history, and tuning: what may move moves, and nothing else does."""

import csv
import importlib

import h5py
import numpy as np
import pytest
from conftest import patterns, weights_of

from dare import controls, dare, get_ats, nnslicer
from dare.dare import regression_loss, synchronise, transform
from dare.get_ats import Mined, best_checkpoint, mine
from train.artifacts import attributes, epochs_in, tuned_folder, weights_path
from train.backend import keras, ops
from train.checkpoints import load_classifier, load_weights, save_weights
from train.flags import UserError
from train.models import build_model
from train.study import default_layer
from train.utils import predict, set_seed, up_to

layers = keras.layers


RATE = ("--lr_rate", "0.001")  # quicker than the default of the toy network


def tuned(folder, epoch, **settings):
    """The classifier that a tuned folder holds."""
    return load_weights(
        load_classifier(folder), weights_path(tuned_folder(folder, **settings), epoch)
    )


def moved(before, after):
    """Names of layers of which any weight differs."""
    return {name.split("/")[0] for name in before if (before[name] != after[name]).any()}


# ----------------------------------------------------------------------------------------- mining


def test_best_checkpoint_follows_the_rule():
    #             better  equal   wrong-final: surer but wrong / right   never   tie: the first
    history = [[0.9, 0.6, 0.45, 0.2, 0.9, 0.7], [0.7, 0.5, 0.40, 0.5, 0.8, 0.7]]
    right = [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]
    final, final_right = [0.6, 0.6, 0.3, 0.1, 0.95, 0.6], [1, 1, 0, 0, 1, 1]
    best = best_checkpoint(np.array([*history, final]), np.array([*right, final_right], bool))
    assert best.tolist() == [0, -1, 1, -1, -1, 0]


def test_mines_the_known_best_epochs_and_their_activations(tmp_path):
    """Checkpoints whose only layer is known: each is surest about the images of one class."""
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            layers.Flatten(),
            layers.Dense(3, name="hidden"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    x = np.zeros((6, 2, 2, 1), "float32")
    y = np.array([0, 1, 2, 0, 1, 2])
    x[np.arange(6), y // 2, y % 2] = 1
    paths = {}
    for epoch, gains in {3: (5, 1, 1), 4: (1, 4, 1), 5: (1, 1, 1), 6: (2, 2, 2)}.items():
        kernel = np.zeros((4, 3), "float32")
        kernel[:3] = np.diag(gains)
        model.set_weights([kernel, np.zeros(3), np.eye(3), np.zeros(3)])
        paths[epoch] = tmp_path / f"model.{epoch:03d}.weights.h5"
        save_weights(model, str(paths[epoch]), {"epoch": epoch})
    mined = mine(paths, x, y, model, "hidden")
    # The final model is surest of class 2.
    expected = {0: [5, 0, 0], 3: [5, 0, 0], 1: [0, 4, 0], 4: [0, 4, 0]}
    found = zip(mined.index.tolist(), mined.epoch.tolist(), mined.activation, strict=True)
    found = {i: (epoch, activation.tolist()) for i, epoch, activation in found}
    assert found == {i: (3 if i in (0, 3) else 4, a) for i, a in expected.items()}
    assert (mined.probability > mined.final_probability).all()
    np.testing.assert_array_equal(model.get_weights()[0], kernel)


def test_artifact_equals_the_activations_of_the_best_epochs(study):
    home, folder, _ = study
    x = np.load(home / "data/toy/x_validation.npy")
    with h5py.File(folder / "ats_conv2.h5") as file:
        epochs, index = file["epoch"][()], file["index"][()]
        assert set(epochs) <= {4, 5, 6, 7} and len(set(index)) == len(index)
        for epoch in set(epochs):
            rows = np.flatnonzero(epochs == epoch)
            part = up_to(load_classifier(str(folder), int(epoch)), "conv2")
            expected = predict(part, x[index[rows]])
            np.testing.assert_allclose(file["activation"][rows], expected, rtol=1e-5, atol=1e-6)


def test_mining_again_uses_the_history(study, monkeypatch):
    _, folder, flags = study
    (folder / "ats_predictions.h5").unlink()
    models = []

    def counted(model, x, **more):
        models.append(model)
        return predict(model, x, **more)

    monkeypatch.setattr(get_ats, "predict", counted)
    get_ats.main([*flags, "--choose_layer", "predictions"])
    with h5py.File(folder / "ats_predictions.h5") as file:
        assert len(models) == len(set(file["epoch"][()]))  # the second pass alone


def test_default_layers():
    names = {("alexnet", 28): "conv5", ("vgg16", 32): "block5_conv3_relu"}
    names |= {("vgg19", 32): "block5_conv4_relu", ("vgg16", 28): "block4_conv3_relu"}
    names |= {("vgg19", 28): "block5_conv3_relu", ("lenet", 28): "conv3"}
    for (name, size), layer in names.items():
        assert default_layer(build_model(name, (size, size, 3), 10)) == layer


# ----------------------------------------------------- transformation, regression, synchronisation


def test_transform_and_synchronise(classifier):
    """The regression model is the classifier's first part, and what it learns goes back."""
    x, _ = patterns(8)
    regression = transform(classifier, "conv2")
    expected = predict(up_to(classifier, "conv2"), x)
    np.testing.assert_array_equal(predict(regression, x), expected)
    before = weights_of(classifier)
    regression.get_layer("conv1").set_weights([w + 1 for w in before_of(regression, "conv1")])
    np.testing.assert_array_equal(predict(up_to(classifier, "conv2"), x), expected)  # a copy
    synchronise(regression, classifier)
    after = weights_of(classifier)
    assert moved(before, after) == {"conv1"}
    np.testing.assert_array_equal(predict(up_to(classifier, "conv2"), x), predict(regression, x))


def before_of(model, layer):
    return model.get_layer(layer).get_weights()


def test_regression_loss_by_hand():
    """Mean over a key neuron's positions and over key neurons of the squared difference."""
    rng = np.random.default_rng(0)
    activation, target = rng.random((2, 5, 3, 3, 4)).astype("float32")
    key = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]])
    found = regression_loss(
        *(ops.convert_to_tensor(a) for a in (activation, target)),
        ops.convert_to_tensor(key[:, None, None, :].astype("float32")),
    )
    square = (activation - target) ** 2
    expected = [square[i][..., key[i] == 1].mean() for i in range(5)]
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_only_the_slice_moves(study):
    _, folder, flags = study
    before = weights_of(load_classifier(folder))
    nnslicer.main([*flags, "--per", "0.5"])
    dare.main([*flags, *RATE, "--epoch", "2", "--per", "0.5"])
    settings = {"method": "dare", "choose_layer": "conv2", "per": 0.5, "lr_rate": 1e-3, "run": 0}
    after = weights_of(tuned(folder, 2, **settings))
    with h5py.File(folder / "slice_0.5.h5") as file:
        mask = np.broadcast_to(file["conv2/mask"][()], before["conv2/kernel"].shape)
    assert mask.mean() == 0.5
    changed = before["conv2/kernel"] != after["conv2/kernel"]
    assert not changed[~mask].any()
    moving = changed.any(axis=(0, 1, 2))  # no gradient reaches neurons that are not key
    assert moving.any() and changed[mask & moving].mean() > 0.8
    assert {"dense1", "predictions"}.isdisjoint(moved(before, after))
    assert (before["conv1_bn/gamma"] != after["conv1_bn/gamma"]).any()  # BN, biases follow freely
    path = tuned_folder(folder, **settings)
    rows = list(csv.DictReader((path / "log.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2"] and float(rows[0]["lr"]) == pytest.approx(1e-3)
    about = attributes(weights_path(path, 2))
    assert about["per"] == 0.5 and about["choose_layer"] == "conv2" and about["method"] == "dare"


def test_the_saved_classifier_is_the_tuned_regression_model(study, tmp_path):
    """tune() on the activations of another model: the part up to the layer comes closer to them."""
    _, folder, _ = study
    x, y = patterns(64, seed=5)
    final, other = load_classifier(folder), up_to(load_classifier(folder, 1), "conv2")
    mined = Mined(np.arange(64), None, None, None, predict(other, x))
    distance = np.square(predict(up_to(final, "conv2"), x) - mined.activation).mean()
    out = tmp_path / "out"
    result = dare.tune(final, "conv2", mined, x, y, str(out), 1e-2, 20, seed=(1,))
    part = up_to(result, "conv2")
    assert np.square(predict(part, x) - mined.activation).mean() < 0.5 * distance
    saved = load_weights(load_classifier(folder), out / "model.020.weights.h5")
    np.testing.assert_array_equal(predict(up_to(saved, "conv2"), x), predict(part, x))


def test_the_loss_ignores_neurons_that_are_not_key(study, tmp_path):
    _, folder, _ = study
    x, y = patterns(64, seed=5)
    key = np.zeros((4, 8), bool)
    key[:, :5] = True
    key[2] = np.roll(key[2], 3)
    targets = predict(up_to(load_classifier(folder, 1), "conv2"), x)
    noise = np.where(key[y][:, None, None, :], 0, 100).astype("float32")
    results = []
    for name, target in {"plain": targets, "noise": targets + noise}.items():
        mined = Mined(np.arange(64), None, None, None, target)
        model = load_classifier(folder)
        dare.tune(model, "conv2", mined, x, y, tmp_path / name, 1e-3, 2, key=key)
        results.append(weights_of(model))
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_a_mask_that_keeps_everything_keeps_everything(classifier, tmp_path):
    set_seed(1)
    x, y = patterns(64)
    kernels = {name: classifier.get_layer(name).kernel for name in ("conv1", "conv2")}
    masks = {name: np.zeros(kernel.shape[-2:], bool) for name, kernel in kernels.items()}
    before = weights_of(classifier)
    target = np.random.default_rng(0).random((64, 6, 6, 8)).astype("float32")
    mined = Mined(np.arange(64), None, None, None, target)
    dare.tune(classifier, "conv2", mined, x, y, tmp_path, 1e-2, 1, masks=masks)
    after = weights_of(classifier)
    for name in ("conv1/kernel", "conv2/kernel"):
        np.testing.assert_array_equal(before[name], after[name])
    assert (before["conv2/bias"] != after["conv2/bias"]).any()


# ---------------------------------------------------------------------------- variants, controls


def test_variants(study):
    _, folder, flags = study
    before = weights_of(load_classifier(folder))
    all_layers = {"conv1", "conv1_bn", "conv2", "dense1", "predictions"}
    expected = {
        "dare-s": ({"conv1", "conv1_bn", "conv2"}, {"choose_layer": "conv2"}),
        "dare-sl": ({"conv2", "dense1", "predictions"}, {}),  # 5: input to pool1
        "dare-last": (all_layers, {"choose_layer": "predictions", "per": 0.95}),
    }
    for name, (layers_, settings) in expected.items():
        script = importlib.import_module(f"dare.{name}")
        script.main([*flags, "--epoch", "1", "--lr_rate", "0.0005"])
        model = tuned(folder, 1, method=name, lr_rate=0.0005, run=0, **settings)
        assert moved(before, weights_of(model)) == layers_, name


def test_as_released(study):
    """--batches 1: each saved model is one batch and a new Adam after the last."""
    _, folder, flags = study
    dare.main([*flags, "--batches", "1", "--epoch", "2", "--lr_rate", "0.01"])
    settings = {"method": "dare-released", "choose_layer": "conv2", "per": 0.95, "batches": 1}
    settings |= {"lr_rate": 0.01, "run": 0}
    path = tuned_folder(folder, **settings)
    assert epochs_in(path) == [1, 2]
    before = weights_of(load_classifier(folder))
    after = [weights_of(tuned(folder, e, **settings)) for e in (1, 2)]
    for earlier, later in zip([before, *after], after, strict=False):
        # The first step of a new Adam is lr_rate in every weight that has a gradient.
        step = np.abs(later["conv2/kernel"] - earlier["conv2/kernel"])
        assert step.max() == pytest.approx(0.01, rel=0.02)


def test_raising_epoch_goes_on(study):
    _, folder, flags = study
    settings = {"method": "dare-s", "choose_layer": "conv2", "lr_rate": 1e-3, "run": 0}
    script = importlib.import_module("dare.dare-s")
    script.main([*flags, *RATE, "--epoch", "4"])
    at_once = weights_of(tuned(folder, 4, **settings))
    path = tuned_folder(folder, **settings)
    path.rename(path.with_name("kept"))
    script.main([*flags, *RATE, "--epoch", "2"])
    first = weights_path(path, 1).stat().st_mtime_ns
    script.main([*flags, *RATE, "--epoch", "4"])
    assert epochs_in(path) == [1, 2, 3, 4] and weights_path(path, 1).stat().st_mtime_ns == first
    after = weights_of(tuned(folder, 4, **settings))
    for name, value in at_once.items():
        np.testing.assert_array_equal(after[name], value)


def test_a_folder_made_from_other_targets_is_refused(study):
    _, folder, flags = study
    script = importlib.import_module("dare.dare-s")
    script.main([*flags, *RATE, "--epoch", "1"])
    path = tuned_folder(folder, method="dare-s", choose_layer="conv2", lr_rate=1e-3, run=0)
    before = weights_path(path, 1).read_bytes()
    (folder / "ats_conv2.h5").unlink()
    get_ats.main([*flags, "--first", "5"])
    with pytest.raises(UserError, match=r"was made with ats_sha256 .* it is kept; move it away"):
        script.main([*flags, *RATE, "--epoch", "1"])
    assert weights_path(path, 1).read_bytes() == before


def test_controls(study):
    _, folder, flags = study
    original = weights_of(load_classifier(folder))
    dare.main([*flags, *RATE, "--epoch", "2"])
    controls.main([*flags, *RATE, "--epoch", "2"])
    run = {"choose_layer": "conv2", "lr_rate": 1e-3, "run": 0}
    after = weights_of(tuned(folder, 2, method="dare", per=0.95, **run))
    noise = weights_of(tuned(folder, 2, method="control-noise", per=0.95, **run))
    for name, before in original.items():
        if "moving" in name:
            np.testing.assert_array_equal(noise[name], before)
            continue
        np.testing.assert_array_equal(before != noise[name], before != after[name])
        size = [np.linalg.norm(w[name] - before) for w in (after, noise)]
        assert size[0] == pytest.approx(size[1], rel=1e-3, abs=1e-6)

    drift = weights_of(tuned(folder, 2, method="control-batchnorm", choose_layer="conv2", run=0))
    changed = {name for name in original if (drift[name] != original[name]).any()}
    assert changed == {"conv1_bn/moving_mean", "conv1_bn/moving_variance"}

    finetune = weights_of(tuned(folder, 2, method="control-finetune", **run))
    assert moved(original, finetune) == {"conv1", "conv1_bn", "conv2"}

    swa = weights_of(tuned(folder, 1, method="control-swa"))
    history = [weights_of(load_classifier(folder, e))["conv1/kernel"] for e in (4, 5, 6, 7)]
    np.testing.assert_allclose(swa["conv1/kernel"], np.mean(history, axis=0), rtol=1e-5, atol=1e-6)


def test_targets_without_history_or_choice(study):
    """control-self aims at the original's activations, control-single at one checkpoint's."""
    home, folder, flags = study
    controls.main([*flags, *RATE, "--control", "self,single", "--epoch", "1"])
    x = np.load(home / "data/toy/x_validation.npy")
    with h5py.File(folder / "ats_conv2.h5") as file:
        index, most = file["index"][()], int(np.bincount(file["epoch"][()]).argmax())
    for name, epoch in ("self", None), ("single", most):
        expected = predict(up_to(load_classifier(folder, epoch), "conv2"), x[index])
        with h5py.File(folder / f"ats_conv2_{name}.h5") as file:
            np.testing.assert_array_equal(file["index"][()], index)
            np.testing.assert_allclose(file["activation"][()], expected, rtol=1e-5, atol=1e-6)
        settings = {"choose_layer": "conv2", "per": 0.95, "lr_rate": 1e-3, "run": 0}
        path = tuned_folder(folder, f"control-{name}", **settings)
        assert attributes(weights_path(path, 1))["method"] == f"control-{name}"


def test_layers_without_neurons_of_their_own_are_refused(study):
    *_, flags = study
    get_ats.main([*flags, "--choose_layer", "flatten"])
    with pytest.raises(UserError, match="no neurons of its own"):
        dare.main([*flags, "--choose_layer", "flatten"])


def test_tune_refuses_the_folder_of_another_tuning(classifier, tmp_path):
    """Called without provenance, as the README does: other arguments are another tuning."""
    x, y = patterns(32)
    mined = Mined(np.arange(32), None, None, None, np.zeros((32, 6, 6, 8), "float32"))
    dare.tune(classifier, "conv2", mined, x, y, tmp_path, 1e-3, 1)
    with pytest.raises(UserError, match=r"was made with .* it is kept"):
        dare.tune(classifier, "conv2", mined, x, y, tmp_path, 1e-2, 1)


def test_an_adapted_normalization_stays_adapted():
    x = patterns(40)[0].astype("float32")
    normalise = layers.Normalization(axis=None)
    normalise.adapt(x)
    model = keras.Sequential([keras.Input((12, 12, 1)), normalise, layers.Flatten()])
    model.add(layers.Dense(3, name="hidden"))
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(transform(model, "hidden").predict(x, verbose=0), expected, 1e-5)
