"""Mining the history, and tuning: what may move moves, and nothing else does."""

import csv

import h5py
import numpy as np
import pytest
from conftest import patterns, weights_of

from dare import dare, get_ats, nnslicer
from dare.get_ats import Mined, best_checkpoint, default_layer, mine, part_up_to
from train.files import UserError, attributes, epochs_in
from train.utils import load_classifier, predict, save_weights, set_seed

import keras  # isort: skip
from keras import layers  # isort: skip


def test_best_checkpoint_follows_the_rule():
    #             better  equal   wrong-final: surer but wrong / right   never   tie: the first
    history = [[0.9, 0.6, 0.45, 0.2, 0.9, 0.7], [0.7, 0.5, 0.40, 0.5, 0.8, 0.7]]
    right = [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]
    final, final_right = [0.6, 0.6, 0.3, 0.1, 0.95, 0.6], [1, 1, 0, 0, 1, 1]
    best = best_checkpoint(np.array([*history, final]), np.array([*right, final_right], bool))
    assert best.tolist() == [0, -1, 1, -1, -1, 0]


def test_mines_the_known_best_epochs_and_their_activations(tmp_path):
    """Checkpoints whose only layer is known: each is surest about the images of one class."""
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(3, name="hidden"), layers.Dense(3, activation="softmax")])
    x = np.zeros((6, 2, 2, 1), "float32")
    y = np.array([0, 1, 2, 0, 1, 2])
    x[np.arange(6), y // 2, y % 2] = 1
    paths = {}
    for epoch, gains in {3: (5, 1, 1), 4: (1, 4, 1), 5: (1, 1, 1), 6: (2, 2, 2)}.items():
        kernel = np.zeros((4, 3), "float32")
        kernel[:3] = np.diag(gains)
        model.set_weights([kernel, np.zeros(3), np.eye(3), np.zeros(3)])
        paths[epoch] = tmp_path / f"model.{epoch:03d}.weights.h5"
        save_weights(model, paths[epoch], epoch=epoch)
    mined = mine(paths, x, y, model, "hidden")
    assert dict(zip(mined.index.tolist(), mined.epoch.tolist(), strict=True)) == {0: 3, 3: 3, 1: 4, 4: 4}  # class 2: the final model is surest
    expected = {0: [5, 0, 0], 3: [5, 0, 0], 1: [0, 4, 0], 4: [0, 4, 0]}
    assert {i: a.tolist() for i, a in zip(mined.index.tolist(), mined.activation, strict=True)} == expected
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
            part = part_up_to(load_classifier(folder, int(epoch)), "conv2")
            np.testing.assert_allclose(file["activation"][rows], predict(part, x[index[rows]]), rtol=1e-5, atol=1e-6)


def test_mining_again_uses_the_history(study, monkeypatch):
    *_, flags = study
    calls = []
    monkeypatch.setattr(get_ats, "predict", lambda model, x, **kw: calls.append(len(model.outputs[0].shape)) or predict(model, x, **kw))
    get_ats.main([*flags, "--choose_layer", "predictions"])
    assert len(calls) == len(set(h5py.File(study[1] / "ats_predictions.h5")["epoch"][()]))  # the second pass alone


def test_default_layers():
    from train.models import build_model

    names = {("alexnet", 28): "conv5", ("vgg16", 32): "block5_conv3_relu", ("vgg19", 32): "block5_conv4_relu"}
    names |= {("vgg16", 28): "block4_conv3_relu", ("vgg19", 28): "block5_conv3_relu"}  # as in dare/Snakefile
    for (name, size), layer in names.items():
        assert default_layer(build_model(name, (size, size, 3), 10)) == layer


def test_only_the_slice_moves(study):
    _, folder, flags = study
    before = weights_of(load_classifier(folder))
    nnslicer.main([*flags, "--per", "0.5"])
    dare.main([*flags, "--epoch", "2", "--per", "0.5"])
    path = folder / "dare_per0.5" / "model.002.weights.h5"
    model = load_classifier(folder)
    model.load_weights(path)
    after = weights_of(model)
    with h5py.File(folder / "slice_0.5.h5") as file:
        mask = np.broadcast_to(file["conv2/mask"][()], before["conv2/kernel"].shape)
    assert mask.mean() == 0.5
    np.testing.assert_array_equal(before["conv2/kernel"][~mask], after["conv2/kernel"][~mask])
    assert (before["conv2/kernel"][mask] != after["conv2/kernel"][mask]).mean() > 0.4  # no gradient reaches neurons that are not key
    for name in before:
        if name.startswith(("dense1", "predictions")):
            np.testing.assert_array_equal(before[name], after[name])
    assert (before["conv1_bn/gamma"] != after["conv1_bn/gamma"]).any()  # BN and biases follow freely
    rows = list(csv.DictReader((path.parent / "log.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2"] and float(rows[0]["lr"]) == pytest.approx(1e-3)
    assert attributes(path)["per"] == 0.5 and attributes(path)["choose_layer"] == "conv2"


def test_the_saved_classifier_is_the_tuned_regression_model(study, tmp_path):
    """tune() on targets that are the activations of another model: their part up to the layer comes closer."""
    _, folder, _ = study
    x, y = patterns(64, seed=5)
    final, other = load_classifier(folder), part_up_to(load_classifier(folder, 1), "conv2")
    mined = Mined(np.arange(64), None, None, None, predict(other, x))
    distance = np.square(predict(part_up_to(final, "conv2"), x) - mined.activation).mean()
    tuned = dare.tune(final, "conv2", mined, x, y, tmp_path / "out", 1e-2, 20, seed=(1,))
    part = part_up_to(tuned, "conv2")
    assert np.square(predict(part, x) - mined.activation).mean() < 0.5 * distance
    saved = load_classifier(folder)
    saved.load_weights(tmp_path / "out/model.020.weights.h5")
    np.testing.assert_array_equal(predict(part_up_to(saved, "conv2"), x), predict(part, x))


def test_the_loss_ignores_neurons_that_are_not_key(study, tmp_path):
    _, folder, _ = study
    x, y = patterns(64, seed=5)
    key = np.zeros((4, 8), bool)
    key[:, :5] = True
    key[2] = np.roll(key[2], 3)
    targets = predict(part_up_to(load_classifier(folder, 1), "conv2"), x)
    noise = np.where(key[y][:, None, None, :], 0, 100).astype("float32")
    results = []
    for i, target in enumerate((targets, targets + noise)):
        mined = Mined(np.arange(64), None, None, None, target)
        model = dare.tune(load_classifier(folder), "conv2", mined, x, y, tmp_path / str(i), 1e-3, 2, key=key)
        results.append((weights_of(model), (tmp_path / str(i) / "log.csv").read_text().split("\n")[1].split(",")[1]))
    for name in results[0][0]:
        np.testing.assert_array_equal(results[0][0][name], results[1][0][name])
    output = predict(part_up_to(load_classifier(folder), "conv2"), x)
    difference = np.square(output - targets)
    by_hand = np.mean([difference[i][..., key[y[i]]].mean() for i in range(64)])
    masked = np.broadcast_to(key[y][:, None, None, :], output.shape)
    found = dare.regression_loss(8, 5)(keras.ops.convert_to_tensor(targets * masked), keras.ops.convert_to_tensor(output * masked))
    assert float(keras.ops.mean(found)) == pytest.approx(by_hand, rel=1e-4)


def test_a_mask_that_keeps_everything_keeps_everything(classifier, tmp_path):
    set_seed(1)
    x, y = patterns(64)
    masks = {name: np.zeros(classifier.get_layer(name).kernel.shape[-2:], bool) for name in ("conv1", "conv2")}
    before = weights_of(classifier)
    target = np.random.default_rng(0).random((64, 6, 6, 8)).astype("float32")
    dare.tune(classifier, "conv2", Mined(np.arange(64), None, None, None, target), x, y, tmp_path, 1e-2, 1, masks=masks)
    after = weights_of(classifier)
    for name in ("conv1/kernel", "conv2/kernel"):
        np.testing.assert_array_equal(before[name], after[name])
    assert (before["conv2/bias"] != after["conv2/bias"]).any()


def test_variants(study):
    import importlib

    _, folder, flags = study
    get_ats.main([*flags, "--choose_layer", "predictions"])
    before = weights_of(load_classifier(folder))
    for name in ("dare-s", "dare-sl", "dare-last"):
        importlib.import_module(f"dare.{name}").main([*flags, "--epoch", "1", "--lr_rate", "0.0005"])
        sub = folder / f"{name}_lr0.0005"
        assert epochs_in(sub) == [1] and attributes(sub / "model.001.weights.h5")["method"] == name
        model = load_classifier(folder)
        model.load_weights(sub / "model.001.weights.h5")
        moved = {n.split("/")[0] for n, w in weights_of(model).items() if (w != before[n]).any()}
        expected = {"dare-s": {"conv1", "conv1_bn", "conv2"}, "dare-sl": {"dense1", "predictions"}}
        assert moved == expected.get(name, {"conv1", "conv1_bn", "conv2", "dense1", "predictions"}), name


def test_controls(study):
    from dare import controls

    _, folder, flags = study
    dare.main([*flags, "--epoch", "2"])
    controls.main([*flags, "--epoch", "2"])
    original = load_classifier(folder)
    first, tuned, noisy = (load_classifier(folder) for _ in range(3))
    tuned.load_weights(folder / "dare/model.002.weights.h5")
    noisy.load_weights(folder / "control-noise/model.002.weights.h5")
    before, after, noise = (weights_of(m) for m in (original, tuned, noisy))
    for name in before:
        np.testing.assert_array_equal(before[name] != noise[name], before[name] != after[name])
        size = [np.linalg.norm(w[name] - before[name]) for w in (after, noise)]
        assert size[0] == pytest.approx(size[1], rel=1e-3, abs=1e-6) or "moving" in name
    first.load_weights(folder / "control-checkpoint/model.004.weights.h5")
    for name, value in weights_of(load_classifier(folder, 4)).items():
        np.testing.assert_array_equal(weights_of(first)[name], value)
    swa = load_classifier(folder)
    swa.load_weights(folder / "control-swa/model.001.weights.h5")
    mean = np.mean([weights_of(load_classifier(folder, e))["conv1/kernel"] for e in (4, 5, 6, 7)], axis=0)
    np.testing.assert_allclose(weights_of(swa)["conv1/kernel"], mean, rtol=1e-5, atol=1e-6)
    assert epochs_in(folder / "control-finetune") == [1, 2]


def test_layers_without_neurons_of_their_own_are_refused(study):
    *_, flags = study
    get_ats.main([*flags, "--choose_layer", "flatten"])
    with pytest.raises(UserError, match="no neurons of its own"):
        dare.main([*flags, "--choose_layer", "flatten"])
    assert nnslicer.count(0.05, 20) == 1 and nnslicer.count(0.07, 100) == 7 and nnslicer.count(0.95, 9) == 9
