"""Splits, checks, and data sets that were prepared before or cut short."""

import json

import numpy as np
import pytest
from data_files import prepared, write_svhn

from data import prepare
from train.shared.flags import UserError

pytest_plugins = ["data_files"]


def test_digits(home):
    parts = prepared("digits")
    assert [len(y) for _, y in parts.values()] == [718, 719, 360]
    info = json.loads((home / "data/digits/info.json").read_text())
    assert info["class_names"] == list("0123456789") and info["shape"] == [28, 28, 1]
    assert info["classes"] == 10 and info["seed"] == 0 and info["images"]["validation"] == 719


def test_halves_are_the_same_for_the_same_seed_and_use_every_image_once():
    y = np.random.default_rng(1).integers(0, 5, 301)
    train, validation = prepare.half_split(y, 5, None, 0)
    assert len(train) == 150 and sorted([*train, *validation]) == list(range(301))
    halves = [prepare.half_split(y, 5, 100, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(halves[0], halves[1])
    assert (np.bincount(y[np.concatenate(halves[0])]) == 20).all()
    assert sorted(np.concatenate(halves[0])) != sorted(np.concatenate(halves[2]))


@pytest.mark.parametrize("limit", [6, 21, 61, 111])
def test_classes_take_turns_as_long_as_they_have_images(limit):
    sizes = np.array([100, 10, 1])
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], sizes))
    chosen = prepare.balanced(y, limit, np.random.default_rng(0))
    counts = np.bincount(y[chosen])
    assert len(set(chosen)) == limit and (counts >= np.minimum(sizes, counts.max() - 1)).all()


def test_limits_and_halves_that_training_would_refuse(home):
    for limit in 19, 1438:
        with pytest.raises(UserError, match=rf"--limit {limit}: choose from 20 to 1437"):
            prepared("digits", limit=limit)
    with pytest.raises(UserError, match=r"no image of class . in the train part.*larger --limit"):
        prepared("digits", limit=20)
    labels = [np.array(labels) for labels in ([0, 1], [1, 1], [0, 1])]
    with pytest.raises(UserError, match="no image of class ant in the validation part"):
        prepare.check_parts("leaves", labels, ["ant", "bee"])
    assert not list((home / "data/digits").glob("*.npy"))


def test_images_that_no_network_learns_from_are_refused():
    def check(classes):
        part = np.zeros((classes * 2, 8, 8, 3), "uint8"), np.repeat(np.arange(classes), 2)
        prepare.check("mine", part, part, [str(number) for number in range(classes)])

    check(2), check(256)
    for classes in 1, 257:
        with pytest.raises(UserError, match=f"has {classes} classes: 2 to 256"):
            check(classes)


def contents(folder):
    return {path.name: path.read_bytes() for path in (*folder.glob("*.npy"), folder / "info.json")}


def test_other_settings_are_refused_by_name_and_the_same_do_nothing(home, source):
    write_svhn(source)
    folder = home / "data/svhn"
    prepared("svhn", source, limit=100)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))]
    for name, value in ("limit", 60), ("limit", None), ("seed", 1), ("source", source.parent):
        with pytest.raises(UserError, match=rf"prepared with {name} .*move it away"):
            prepared("svhn", **{"source": source, "limit": 100, name: value})
    prepared("svhn", str(source), limit=100)
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))] == times
    lines = (folder / "prepare.log").read_text().splitlines()
    assert json.loads(lines[-1])["ended"] == "idle"


@pytest.mark.parametrize("lost", ["info.json", "x_test.npy"])
def test_a_lost_file_is_made_again_with_the_same_settings_only(home, lost):
    folder = home / "data/digits"
    prepared("digits", limit=100)
    before = contents(folder)
    (folder / lost).unlink()
    with pytest.raises(UserError, match=r"other images, without info\.json|with seed 0, not 1"):
        prepared("digits", limit=100, seed=1)
    assert not (folder / lost).exists()
    prepared("digits", limit=100)
    assert contents(folder) == before


def test_a_broken_info_json_is_named_with_its_step(home):
    prepared("digits", limit=100)
    info = home / "data/digits/info.json"
    whole = info.read_text()
    for text in "", "[]":
        info.write_text(text)
        with pytest.raises(UserError, match=r"info\.json cannot be read .*prepare\.py --dataset"):
            prepared("digits", limit=100)
    info.unlink()  # as the sentence says
    prepared("digits", limit=100)
    assert info.read_text() == whole
