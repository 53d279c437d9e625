"""Splits, and data sets that were prepared before or cut short."""

import json
import platform

import numpy as np
import pytest
from data_files import PARTS, prepared, write_svhn

from data import prepare
from train.shared.flags import UserError
from train.utils import load_data

pytest_plugins = ["data_files"]


def test_limit_is_the_same_for_the_same_seed_and_balanced(home):
    small = prepared("digits", limit=100)
    y = np.concatenate([small["train"][1], small["validation"][1]])
    assert (np.bincount(y) == 10).all()
    labels = np.random.default_rng(1).integers(0, 5, 300)
    halves = [prepare.half_split(labels, 5, 60, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(halves[0][0], halves[1][0])
    assert sorted(np.concatenate(halves[0])) != sorted(np.concatenate(halves[2]))


@pytest.mark.parametrize("limit", [6, 7, 20, 21, 61, 110, 111])
def test_balanced_against_taking_turns(limit):
    """Classes of 100, 10 and 1 images: each gives one in turn, as long as it has any."""
    left, expected = [100, 10, 1], [0, 0, 0]
    while sum(expected) < limit:
        for label in range(3):
            if left[label] and sum(expected) < limit:
                left[label] -= 1
                expected[label] += 1
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 10, 1]))
    chosen = prepare.balanced(y, limit, np.random.default_rng(0))
    assert len(set(chosen)) == limit
    # Which class gives the last, incomplete turn is left to chance.
    assert np.abs(np.bincount(y[chosen], minlength=3) - expected).max() <= 1


@pytest.mark.parametrize("n", [2, 3, 40, 41])
def test_half_split_uses_every_image_once(n):
    train, validation = prepare.half_split(np.arange(n) % 2, 2, None, 0)
    assert len(train) == n // 2
    assert sorted([*train, *validation]) == list(range(n))


@pytest.mark.parametrize("limit", [19, 1438])
def test_limit_outside_the_data_set_is_refused(home, limit):
    with pytest.raises(UserError, match=rf"--limit {limit}: choose from 20 to 1437"):
        prepared("digits", limit=limit)
    assert not list((home / "data/digits").glob("*.npy"))


def contents(folder):
    return {path.name: path.read_bytes() for path in (*folder.glob("*.npy"), folder / "info.json")}


@pytest.mark.parametrize("other", [{"limit": 60}, {"limit": None}, {"seed": 1}])
def test_other_settings_are_refused_by_name_and_the_same_do_nothing(home, other):
    folder = home / "data/digits"
    prepared("digits", limit=100)
    before = contents(folder)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))]
    with pytest.raises(UserError, match=rf"prepared with {next(iter(other))} .*move it away"):
        prepared("digits", **{"limit": 100, **other})
    prepared("digits", limit=100)
    assert contents(folder) == before
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))] == times
    lines = (folder / "prepare.log").read_text().splitlines()
    assert json.loads(lines[-1])["ended"] == "idle"


def test_another_source_is_refused_by_name(home, tmp_path, source):
    write_svhn(source)
    prepared("svhn", source)
    before = contents(home / "data/svhn")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_svhn(elsewhere, 60)
    with pytest.raises(UserError, match=r"prepared with source .*source, not .*elsewhere"):
        prepared("svhn", elsewhere)
    prepared("svhn", str(source))
    assert contents(home / "data/svhn") == before


def test_without_info_json_only_the_same_arrays_are_taken(home):
    folder = home / "data/digits"
    prepared("digits", limit=100)
    before = contents(folder)
    (folder / "info.json").unlink()
    with pytest.raises(UserError, match=r"other images, without info\.json"):
        prepared("digits", limit=100, seed=1)
    assert not (folder / "info.json").exists()
    prepared("digits", limit=100)
    assert contents(folder) == before


@pytest.mark.parametrize("saves", range(6))
def test_cut_short_nothing_half_is_taken_for_whole(home, monkeypatch, saves):
    """Killed twice, with other settings each time: what can be loaded is of the second ones."""
    folder, real = home / "data/digits", np.save
    expected = {}
    for seed in 0, 1:
        prepared("digits", limit=40, seed=seed)
        expected[seed] = contents(folder)
        for path in folder.iterdir():
            path.unlink()

    def killed_after(count):
        left = iter(range(count))

        def save(*args, **kwargs):
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*args, **kwargs)

        return save

    for seed, count in ((0, 5), (1, saves)):
        monkeypatch.setattr(np, "save", killed_after(count))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("digits", limit=40, seed=seed)
    for part in PARTS:
        if not (folder / f"y_{part}.npy").exists():
            with pytest.raises(UserError, match=rf"y_{part}\.npy is missing"):
                load_data("digits", part)
            continue
        for name in (f"x_{part}.npy", f"y_{part}.npy", "info.json"):
            assert (folder / name).read_bytes() == expected[1][name]
    assert not (folder / "y_test.npy").exists()  # no script goes on without it

    killed = f".x_train.npy.{platform.node()}.999999999.tmp.npy"
    (folder / killed).write_bytes(b"of a killed process")
    monkeypatch.setattr(np, "save", real)
    prepare.prepare("digits", limit=40, seed=1)
    assert contents(folder) == expected[1]
    assert not list(folder.glob(".*"))
