"""The README's section on a Keras model of your own, run as it stands there."""

import re

import numpy as np
from conftest import ROOT, patterns

from train.shared.backend import keras
from train.shared.graph import layers_by_path
from train.utils import set_seed

layers = keras.layers


def own_model(tmp_path):
    """A trained network of pixels in [0, 255], and the whole models that its training kept."""
    set_seed(0)
    conv1 = layers.Conv2D(6, 3, activation="relu", name="conv1")
    conv2 = layers.Conv2D(8, 3, activation="relu", name="conv2")
    first = [keras.Input((12, 12, 1)), layers.Rescaling(1 / 255), conv1, layers.AveragePooling2D(2)]
    last = [conv2, layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")]
    model = keras.Sequential([*first, *last])
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    x, y = patterns(240)
    keeper = keras.callbacks.ModelCheckpoint(tmp_path / "m.{epoch:02d}.keras")
    model.fit(x.astype("float32"), y[:, None], epochs=10, verbose=0, callbacks=[keeper])
    return model, {int(path.stem[2:]): path for path in tmp_path.glob("m.*.keras")}


def readme_blocks():
    """The two blocks of code of the README's section."""
    section = (ROOT / "README.md").read_text().split("## Your own images, network or Keras model")
    return re.findall(r"```python\n(.*?)```", section[1], re.S)


def test_the_readme_s_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, checkpoints = own_model(tmp_path)
    x, y = patterns(240)
    x_unseen, y_unseen = patterns(240, seed=1)
    names = {
        "model": model, "checkpoints": checkpoints, "x": x.astype("float32"), "y": y[:, None],
        "x_unseen": x_unseen.astype("float32"), "y_unseen": y_unseen[:, None],
    }  # fmt: skip
    before = [w.copy() for w in model.get_weights()]
    exec(readme_blocks()[0], names)
    robust = float(re.search(r"([0-9.]+)% robust", capsys.readouterr().out)[1])
    assert 0 < robust < 100 and names["success"].mean() > 0.5
    predicted = names["tuned"].predict(names["samples"], verbose=0).argmax(axis=1)
    right = predicted == y[names["correct"]]
    assert robust == round(100 * right[names["success"]].mean(), 1)
    assert names["samples"].max() > 1
    after = names["tuned"].get_weights()
    assert any((a != b).any() for a, b in zip(before[:4], after[:4], strict=True))
    for a, b in zip(before[4:], after[4:], strict=True):  # behind the chosen layer
        np.testing.assert_array_equal(a, b)
    assert len(list(tmp_path.glob("tuned/model.*.weights.h5"))) == 5


def test_the_readme_s_backbone(tmp_path, monkeypatch, capsys):
    """All but training and attack, which take long to compile: test_any_network.py has them."""
    monkeypatch.setattr("adv.attacks.attack", lambda name, model, x, y: (x, np.ones(len(x), bool)))
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    names = {"keras": keras}
    exec(readme_blocks()[1], names)
    model = names["model"]
    assert names["layer"] in layers_by_path(model)
    names["layer"] = "base/block_2_add"  # earlier, because compiling the tuning takes long too
    images = []
    for seed in 0, 1:
        x, y = patterns(40, classes=10, size=32, seed=seed)
        images += [np.repeat(x / np.float32(255), 3, axis=-1), y]
    names["x"], names["y"], names["x_unseen"], names["y_unseen"] = images
    names["checkpoints"] = {}
    for epoch in 1, 2:  # as if trained, because compiling a training step takes long
        for weight in model.trainable_variables:
            weight.assign_add(0.05 * keras.random.normal(weight.shape))
        names["checkpoints"][epoch] = str(tmp_path / f"{epoch}.weights.h5")
        model.save_weights(names["checkpoints"][epoch])
    lines = readme_blocks()[0].replace('layer = "conv2"\n', "")
    exec(lines.replace("epochs=5", "epochs=1"), names)
    assert "% robust" in capsys.readouterr().out
    assert "base/block_12_project" in names["masks"]
    assert len(list(tmp_path.glob("tuned/model.*.weights.h5"))) == 1
