"""Shared by all tests: a home for data/ and models/, and networks that train in a second."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# There is a test process for every core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# As in the scripts.
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import train.models
import train.params
import train.shared.paths
from train.shared.backend import keras, ops
from train.utils import set_seed

layers = keras.layers


def tiny(x, classes):
    """A layer of every kind that matters: conv, BN, ReLU, pool, flatten, dense, dropout."""
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(24, activation="relu", name="dense1")(x)
    x = layers.Dropout(0.25, name="dropout1")(x)
    return layers.Dense(classes, activation="softmax", name="predictions")(x)


def plain(x, classes):
    """A network in which no layer behaves differently in training before the dropout."""
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(4, name="pool1")(x)
    x = layers.Dropout(0.25, name="dropout1")(layers.Flatten(name="flatten")(x))
    return layers.Dense(classes, activation="softmax", name="predictions")(x)


train.models.NETWORKS["tiny"] = tiny
train.models.NETWORKS["plain"] = plain
train.params.chosen_layer["plain"] = "conv1"
train.params.chosen_layer["tiny"], train.params.frozen["tiny"] = "conv2", 5

TOY = ["--dataset", "toy", "--model", "tiny"]


def patterns(n, classes=4, size=12, seed=0):
    """n images that a tiny network learns quickly: uint8 (n, size, size, 1), and labels (n,)."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    prototypes = np.random.default_rng(9).random((classes, size // 4, size // 4, 1))
    prototypes = prototypes.repeat(4, axis=1).repeat(4, axis=2)
    x = 0.6 * prototypes[y] + 0.4 * rng.random((n, size, size, 1))
    return (255 * x).astype("uint8"), y


def pytest_collection_modifyitems(items):
    """The longest files come first, so that no core has to wait for them at the end."""
    longest = ("test_interruption", "test_whole_graph", "test_settings")
    items.sort(key=lambda item: item.module.__name__.split(".")[-1] not in longest)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in the place of the repository's data/ and models/."""
    monkeypatch.setattr(train.shared.paths, "HOME", tmp_path)
    return tmp_path


def write_data(home, name="toy", n=240, **kwargs):
    folder = home / "data" / name
    folder.mkdir(parents=True)
    for i, (part, size) in enumerate({"train": n, "validation": n, "test": n // 2}.items()):
        x, y = patterns(size, seed=i, **kwargs)
        np.save(folder / f"x_{part}.npy", x)
        np.save(folder / f"y_{part}.npy", y.astype("uint8"))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A home with a data set "toy" and a trained, sliced, mined and attacked "toy_tiny_seed0".

    Use `study` to change it.
    """
    from adv import generate_adv
    from dare import get_ats, nnslicer
    from train.train import train as train_network

    home = tmp_path_factory.mktemp("trained")
    patch = pytest.MonkeyPatch()
    patch.setattr(train.shared.paths, "HOME", home)
    write_data(home)
    train_network("toy", "tiny", 0, 8)
    nnslicer.main(TOY)
    get_ats.main(TOY)
    get_ats.main([*TOY, "--choose_layer", "predictions"])
    generate_adv.main([*TOY, "--attack", "fgsm,pgd", "--samples", "60"])
    patch.undo()
    return home


@contextlib.contextmanager
def copy_as_home(trained, tmp_path_factory):
    """A copy of `trained`, the home of all steps inside the `with`: for fixtures of a module."""
    home = tmp_path_factory.mktemp("copy") / "home"
    shutil.copytree(trained, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.shared.paths, "HOME", home)
        yield home


@pytest.fixture
def study(trained, tmp_path, monkeypatch):
    """A copy of `trained` to work in; returns (home, the study's folder, flags)."""
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    monkeypatch.setattr(train.shared.paths, "HOME", home)
    return home, home / "models" / "toy_tiny_seed0", list(TOY)


@pytest.fixture
def classifier():
    """An untrained tiny classifier."""
    set_seed(0)
    return train.models.build_model("tiny", (12, 12, 1), 4, 0.5, 0.1)


def python(*command, cwd=None, **environment):
    """A finished Python process that found the repository and its tests; None unsets a variable."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | environment
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, *command]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


def weights_of(model):
    return {v.path: ops.convert_to_numpy(v) for v in model.weights}
