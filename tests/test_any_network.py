"""Networks that are not chains, through all steps: from training to the robustness table."""

import numpy as np
import pandas as pd
import pytest
from conftest import weights_of, write_data

import train.models
import train.params
from adv import generate_adv
from dare import controls, dare, get_ats, nnslicer
from dare import test as scoring
from train.models import resnet
from train.shared.backend import keras
from train.shared.graph import layers_by_path
from train.train import train as train_network
from train.utils import load_classifier

layers = keras.layers


def with_backbone(x, classes):
    """A residual backbone inside a model, with a separable and a depthwise convolution."""
    inputs = keras.Input(x.shape[1:])
    first = layers.SeparableConv2D(8, 3, strides=2, name="conv1")(inputs)
    second = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="conv2")(first)
    added = layers.Add(name="add")([first, layers.BatchNormalization(name="bn")(second)])
    features = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv3")(added)
    x = keras.Model(inputs, features, name="backbone")(x)
    return layers.Dense(classes, "softmax", name="predictions")(layers.Flatten(name="flatten")(x))


def some_blocks(x, filters, strides, name, block=resnet._block):
    """A shorter resnet20: the first block of each stage, and that of the chosen layer."""
    is_kept = name.endswith("1") or name == "stage3_block3"
    return block(x, filters, strides, name) if is_kept else x


@pytest.fixture(params=["resnet20", "with_backbone"])
def network(request, monkeypatch):
    monkeypatch.setattr(resnet, "_block", some_blocks)
    monkeypatch.setitem(train.models.NETWORKS, "with_backbone", with_backbone)
    monkeypatch.setitem(train.params.chosen_layer, "with_backbone", "backbone/add")
    monkeypatch.setitem(train.params.milestones, "resnet", ((0, 0.02),))
    monkeypatch.setattr("train.train.build_model", build_quick_model)
    return request.param


def build_quick_model(*args):
    """The network, with batch statistics that follow the images within a few steps."""
    model = train.models.build_model(*args)
    for layer in layers_by_path(model).values():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.5
    return model


def test_from_training_to_the_robustness_table(home, network):
    write_data(home, n=120, size=16)
    path = home / "data/toy/y_validation.npy"
    y = np.load(path)
    y[::3] = (y[::3] + 1) % 4  # so that early epochs are better for some images
    np.save(path, y)
    train_network("toy", network, 0, 10)
    flags = ["--dataset", "toy", "--model", network]
    nnslicer.main(flags)
    get_ats.main([*flags, "--first", "1"])
    attack = ["--attack", "fgsm", "--samples", "20", "--mode", "fixed", "--epsilon", "0.2"]
    generate_adv.main([*flags, *attack])
    tuning = [*flags, "--epoch", "1"]
    dare.main(tuning)
    controls.main([*tuning, "--control", "finetune"])
    scoring.main(flags)
    folder = home / "models" / f"toy_{network}_seed0"
    table = pd.read_csv(folder / "robustness.csv")
    assert {"original", "dare", "control-finetune"} <= set(table.method)
    layer = train.params.chosen_layer[network]
    assert set(table.choose_layer.dropna()) == {layer}

    # Only layers before the chosen one were tuned, and only inside the slice.
    (tuned,) = folder.glob("tuned/dare_*")
    assert layer.replace("/", "__") in tuned.name
    classifier = load_classifier(folder)
    before = weights_of(classifier)
    classifier.load_weights(tuned / "model.001.weights.h5")
    after = weights_of(classifier)
    changed = {path.split("/")[-2] for path in after if (after[path] != before[path]).any()}
    last = {"resnet20": "stage3_block3_conv2", "with_backbone": "bn"}[network]
    assert last in changed and not {"conv3", "predictions"} & changed
