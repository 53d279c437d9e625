"""Tuning: transformation, regression, slice and synchronisation, and the variants of DARE."""

import csv
import importlib

import h5py
import numpy as np
import pytest
from conftest import patterns, weights_of
from tuned_models import RATE, moved, tuned_model

from dare import dare, get_ats, nnslicer
from dare.dare import Tuning, regression_batches, regression_loss, transform, tune
from dare.get_ats import MinedImages
from train import params
from train.shared.artifacts import attributes
from train.shared.backend import keras, ops
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.flags import UserError
from train.shared.graph import up_to
from train.shared.paths import epochs_in, tuned_folder, weights_path
from train.utils import predict

layers = keras.layers


def test_regression_loss_by_hand():
    """Mean over a key neuron's positions and over key neurons of the squared difference."""
    rng = np.random.default_rng(0)
    activation, target = rng.random((2, 5, 3, 3, 4)).astype("float32")
    key = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]])
    at_all_positions = np.broadcast_to(key[:, None, None, :], target.shape)
    both = np.concatenate([target, at_all_positions], axis=-1).astype("float32")
    found = regression_loss(ops.convert_to_tensor(both), ops.convert_to_tensor(activation))
    square = (activation - target) ** 2
    expected = [square[i][..., key[i] == 1].mean() for i in range(5)]
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_only_the_slice_moves(study):
    _, folder, flags = study
    before = weights_of(load_classifier(folder))
    nnslicer.main([*flags, "--per", "0.1"])
    dare.main([*flags, *RATE, "--epoch", "2", "--per", "0.1"])
    settings = {"method": "dare", "choose_layer": "conv2", "per": 0.1, "lr_rate": 1e-3, "run": 0}
    after = weights_of(tuned_model(folder, 2, **settings))
    with h5py.File(folder / "slice_0.1.h5") as file:
        mask = np.broadcast_to(file["conv2/mask"][()], before["conv2/kernel"].shape)
    assert mask.mean() == pytest.approx(1 / 6)
    changed = before["conv2/kernel"] != after["conv2/kernel"]
    assert not changed[~mask].any()
    # No gradient reaches neurons that are not key, and each of the four classes has one.
    moving = changed.any(axis=(0, 1, 2))
    assert 1 <= moving.sum() <= 4 and changed[mask & moving].mean() > 0.8
    assert {"dense1", "predictions"}.isdisjoint(moved(before, after))
    assert (before["conv1_bn/gamma"] != after["conv1_bn/gamma"]).any()  # BN, biases follow freely
    path = tuned_folder(folder, **settings)
    rows = list(csv.DictReader((path / "log.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2"] and float(rows[0]["lr"]) == pytest.approx(1e-3)
    about = attributes(weights_path(path, 2))
    assert about["per"] == 0.1 and about["choose_layer"] == "conv2" and about["method"] == "dare"


def test_every_mined_image_has_its_own_target_and_key_neurons(study):
    _, folder, _ = study
    x, y = patterns(60, seed=5)
    model = load_classifier(folder)
    index = np.random.default_rng(0).permutation(60)[:40]
    part, key = up_to(model, "conv2"), np.eye(4, 8, dtype=bool)  # neuron c is key for class c
    mined = MinedImages(index, None, None, None, predict(part, x[index]))
    tuning = Tuning("conv2", 1e-3, 1, key_neurons=key)
    images, both = regression_batches(transform(model, "conv2"), mined, x, y, tuning)[0]
    same = (np.round(255 * images)[:, None] == x).all(axis=(2, 3, 4))
    rows = same.argmax(axis=1)
    assert sorted(rows) == sorted(index)
    target, is_key = np.split(both, 2, axis=-1)
    np.testing.assert_allclose(target, predict(part, x[rows]), atol=1e-5)
    assert (is_key == key[y[rows]][:, None, None]).all()


def test_runs_differ(study, monkeypatch):
    _, folder, flags = study
    monkeypatch.setattr(params, "batch", 4)
    settings = {"method": "dare", "choose_layer": "conv2", "per": 0.95, "lr_rate": 1e-3}
    kernels = []
    for run in 0, 1:
        dare.main([*flags, *RATE, "--epoch", "1", "--run", f"{run}"])
        kernels.append(weights_of(tuned_model(folder, 1, **settings, run=run))["conv2/kernel"])
    assert (kernels[0] != kernels[1]).any()


def test_tuning_approaches_the_targets_of_key_neurons_and_ignores_the_others(study, tmp_path):
    _, folder, _ = study
    x, y = patterns(64, seed=5)
    key = np.zeros((4, 8), bool)
    key[:, :5] = True
    key[2] = np.roll(key[2], 3)
    is_key = key[y][:, None, None, :]
    targets = 1 + predict(up_to(load_classifier(folder), "conv2"), x)

    def distance(model):
        return (is_key * np.square(predict(up_to(model, "conv2"), x) - targets)).mean()

    mined = MinedImages(np.arange(64), None, None, None, np.where(is_key, targets, 100))
    settings = Tuning("conv2", 1e-2, 8, key_neurons=key)
    tuned = tune(load_classifier(folder), mined, x, y, tmp_path, settings)
    assert distance(tuned) < 0.6 * distance(load_classifier(folder))
    saved = load_weights(load_classifier(folder), tmp_path / "model.008.weights.h5")
    assert moved(weights_of(tuned), weights_of(saved)) == set()


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
        model = tuned_model(folder, 1, method=name, lr_rate=0.0005, run=0, **settings)
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
    after = [weights_of(tuned_model(folder, e, **settings)) for e in (1, 2)]
    for earlier, later in zip([before, *after], after, strict=False):
        # The first step of a new Adam is lr_rate in every weight that has a gradient.
        step = np.abs(later["conv2/kernel"] - earlier["conv2/kernel"])
        assert np.quantile(step[step > 0], [0.1, 1]) == pytest.approx(0.01, rel=0.02)


def test_raising_epoch_goes_on_unless_the_targets_are_others(study):
    _, folder, flags = study
    settings = {"method": "dare-s", "choose_layer": "conv2", "lr_rate": 1e-3, "run": 0}
    script = importlib.import_module("dare.dare-s")
    script.main([*flags, *RATE, "--epoch", "4"])
    at_once = weights_of(tuned_model(folder, 4, **settings))
    path = tuned_folder(folder, **settings)
    path.rename(path.with_name("kept"))
    script.main([*flags, *RATE, "--epoch", "2"])
    first = weights_path(path, 1).stat().st_mtime_ns
    script.main([*flags, *RATE, "--epoch", "4"])
    assert epochs_in(path) == [1, 2, 3, 4] and weights_path(path, 1).stat().st_mtime_ns == first
    after = weights_of(tuned_model(folder, 4, **settings))
    for name, value in at_once.items():
        np.testing.assert_array_equal(after[name], value)
    (folder / "ats_conv2.h5").unlink()
    get_ats.main([*flags, "--first", "5"])
    before = weights_path(path, 1).read_bytes()
    with pytest.raises(UserError, match=r"was made with ats_sha256 .* it is kept; move it away"):
        script.main([*flags, *RATE, "--epoch", "5"])
    assert weights_path(path, 1).read_bytes() == before


def test_tune_refuses_the_folder_of_another_tuning_and_other_key_neurons(classifier, tmp_path):
    """Called without provenance, as the README does."""
    x, y = patterns(32)
    mined = MinedImages(np.arange(32), None, None, None, np.zeros((32, 6, 6, 8), "float32"))
    tune(classifier, mined, x, y, tmp_path, Tuning("conv2", 1e-3, 1))
    for message, lr_rate, more in (
        ("was made with .* it is kept", 1e-2, {}),
        (r"shapes .* and \(16,\), but layer", 1e-3, {"key_neurons": np.ones((4, 16), bool)}),
    ):
        with pytest.raises(UserError, match=message):
            tune(classifier, mined, x, y, tmp_path, Tuning("conv2", lr_rate, 1, **more))


def test_an_adapted_normalization_stays_adapted():
    x = patterns(40)[0].astype("float32")
    normalise = layers.Normalization(axis=None)
    normalise.adapt(x)
    model = keras.Sequential([keras.Input((12, 12, 1)), normalise, layers.Flatten()])
    model.add(layers.Dense(3, name="hidden"))
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(transform(model, "hidden").predict(x, verbose=0), expected, 1e-5)
