"""The control models: what they lack, and what they share with DARE."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.stats
from conftest import TOY, copy_as_home, weights_of, write_data
from tuned_models import RATE, moved, tuned_model

from dare import controls, get_ats, nnslicer
from train.shared.artifacts import fingerprint
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.graph import up_to
from train.shared.study import Study
from train.train import train as train_network
from train.utils import predict


@pytest.fixture(scope="module")
def controlled(trained, tmp_path_factory):
    """The folder of a study with all controls, tuned for two epochs."""
    with copy_as_home(trained, tmp_path_factory) as home:
        controls.main([*TOY, *RATE, "--epoch", "2"])
    return home / "models/toy_tiny_seed0"


def test_controls(controlled):
    original = weights_of(load_classifier(controlled))
    run = {"choose_layer": "conv2", "lr_rate": 1e-3, "run": 0}
    drift = weights_of(
        tuned_model(controlled, 2, method="control-batchnorm", choose_layer="conv2", run=0)
    )
    changed = {name for name in original if (drift[name] != original[name]).any()}
    assert changed == {"conv1_bn/moving_mean", "conv1_bn/moving_variance"}

    finetune = weights_of(tuned_model(controlled, 2, method="control-finetune", **run))
    assert moved(original, finetune) == {"conv1", "conv1_bn", "conv2"}

    swa = weights_of(tuned_model(controlled, 1, method="control-swa"))
    history = [weights_of(load_classifier(controlled, e))["conv1/kernel"] for e in (4, 5, 6, 7)]
    np.testing.assert_allclose(swa["conv1/kernel"], np.mean(history, axis=0), rtol=1e-5, atol=1e-6)
    x = np.load(controlled.parents[1] / "data/toy/x_train.npy")
    inputs = predict(up_to(tuned_model(controlled, 1, method="control-swa"), "conv1"), x)
    np.testing.assert_allclose(swa["conv1_bn/moving_mean"], inputs.mean(axis=(0, 1, 2)), atol=1e-4)


def test_targets_of_controls(controlled):
    """The original's own activations, or every image those of a random one of the checkpoints."""
    x = np.load(controlled.parents[1] / "data/toy/x_validation.npy")
    with h5py.File(controlled / "ats_conv2.h5") as file:
        epochs = range(file.attrs["first"], file.attrs["last"] + 1)
        mined = file["index"][()]
    with h5py.File(controlled / "ats_conv2_self.h5") as file:
        expected = predict(up_to(load_classifier(controlled), "conv2"), x[mined])
        np.testing.assert_array_equal(file["index"][()], mined)
        np.testing.assert_allclose(file["activation"][()], expected, rtol=1e-5, atol=1e-6)
    with h5py.File(controlled / "ats_conv2_random_run0.h5") as file:
        index, activation = file["index"][()], file["activation"][()]
    assert sorted(index) == sorted(mined)
    distance = [
        np.abs(predict(up_to(load_classifier(controlled, epoch), "conv2"), x[index]) - activation)
        for epoch in epochs
    ]
    largest = np.stack(distance).max(axis=(2, 3, 4))
    assert (largest.min(axis=0) < 1e-5).all()
    counts = np.bincount(largest.argmin(axis=0), minlength=len(epochs))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_controls_that_cannot_differ_are_the_original(home):
    """Without batch normalisation, dropout or noise up to the chosen layer."""
    write_data(home)
    train_network("toy", "plain", 0, 16)
    flags = ["--dataset", "toy", "--model", "plain"]
    nnslicer.main(flags)
    get_ats.main([*flags, "--first", "1"])
    controls.main([*flags, "--control", "self,batchnorm", "--epoch", "2", *RATE])
    folder = home / "models/toy_plain_seed0"
    original = weights_of(load_classifier(folder))
    paths = list(folder.glob("tuned/*/model.*.weights.h5"))
    assert len(paths) == 2
    for path in paths:
        model = load_weights(load_classifier(folder), path)
        assert moved(original, weights_of(model)) == set()
    before = {path: path.stat().st_mtime_ns for path in paths}
    controls.main([*flags, "--control", "self,batchnorm", "--epoch", "2", *RATE])
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    # Behind the dropout the two differ again.
    get_ats.main([*flags, "--first", "1", "--choose_layer", "predictions"])
    layer = ["--choose_layer", "predictions"]
    controls.main([*flags, *layer, "--control", "self", "--epoch", "1", *RATE])
    settings = {"choose_layer": "predictions", "per": 0.95, "lr_rate": 1e-3, "run": 0}
    tuned = weights_of(tuned_model(folder, 1, method="control-self", **settings))
    assert "predictions" in moved(original, tuned)


def test_mined_images(study):
    """They are the same for every layer; without one they are those of the default layer."""
    _, folder, flags = study
    opened = Study.open(SimpleNamespace(dataset="toy", model="tiny", seed=0))
    images, labels, _ = opened.mined_images()
    with h5py.File(folder / "ats_conv2.h5") as file:
        index = file["index"][()]
    x, y = opened.data("validation")
    np.testing.assert_array_equal(images[np.arange(len(index))], x[index])
    np.testing.assert_array_equal(labels, y[index])
    (folder / "ats_conv2.h5").unlink()
    get_ats.main([*flags, "--first", "5"])
    get_ats.main([*flags, "--first", "5", "--choose_layer", "dense1"])
    assert min(opened.mined_checkpoints()) == min(opened.mined_checkpoints("dense1")) == 5
    images, _, provenance = opened.mined_images("dense1")
    assert provenance == {"mined_sha256": fingerprint(images.index)}
    assert provenance == opened.mined_images()[2]
