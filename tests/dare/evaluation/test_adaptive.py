"""Adaptive evaluation of all selected models: what is attacked, kept and written."""

import itertools
import time

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import write_data

from adv.attacks.worst_case import ROBUST, UNKNOWN
from dare.evaluation import adaptive
from train.shared.artifacts import sha256
from train.shared.checkpoints import load_weights
from train.shared.flags import UserError
from train.shared.study import Study
from train.utils import halves_of_test, pixels

SETTINGS = {"images": 40, "restarts": 2}


def test_unknown_images_are_not_robust():
    y = np.arange(60) % 2
    results = {
        f"linf/worst/{size:g}": np.where(y == 0, UNKNOWN if size else ROBUST, 0).astype("uint8")
        for size in (0, 0.01, 0.1)
    }
    identity = dict.fromkeys(adaptive.IDENTITY, 0) | {"sha256": "a"}
    table = adaptive.robust_accuracy_table(pd.DataFrame([identity]), {"a": results})
    above = table[table["epsilon"] > 0]
    assert (above["robust_accuracy"] == 0).all() and (above["unknown"] == (y == 0).sum()).all()
    clean = table.loc[table["epsilon"] == 0, "robust_accuracy"]
    np.testing.assert_allclose(clean, 100 * np.mean(y == 0), atol=1e-5)


@pytest.fixture
def selected(home, classifier):
    """(a study with three saved models, robustness.csv of which two are selected, weights)."""
    write_data(home)
    folder = home / "models" / "toy_tiny_seed0"
    folder.mkdir(parents=True)
    rows, weights = [], {}
    for i in range(3):
        path = folder / f"{i}.weights.h5"
        last = classifier.layers[-1]
        last.set_weights([w + 0.1 * i for w in last.get_weights()])
        classifier.save_weights(path)
        weights[sha256(path)] = path
        row = dict.fromkeys(adaptive.IDENTITY, 0) | {"method": f"m{i}", "sha256": sha256(path)}
        marks = {"selected": i == 0, "selected_within_1": i == 1}
        rows += [row | marks | {"attack": a} for a in ("fgsm", "pgd")]
    x, y = (np.load(home / "data" / "toy" / f"{a}_test.npy") for a in "xy")
    classifier.save(folder / "model.keras")

    class Toy(Study):
        def data(self, part):
            return x, y.astype("int64")

    study = Toy("toy", "tiny", 0, folder, None, classifier, {"model": "tiny"})
    return study, pd.DataFrame(rows), weights


@pytest.fixture
def attacked(monkeypatch):
    """A list that gets (images, restarts, seed) of every model that is attacked, which is faked."""
    calls = []

    def fake(classifier, x, y, how):
        calls.append((len(x), how.restarts, how.seed))
        sizes = (0, *how.epsilons["linf"])
        return {f"linf/worst/{size:g}": np.ones(len(x), "uint8") for size in sizes}

    monkeypatch.setattr(adaptive, "attack_model", fake)
    return calls


def test_same_settings_are_not_attacked_again_others_are_refused(selected, attacked):
    study, table, weights = selected
    first = adaptive.evaluate(study, table, weights, **SETTINGS)
    assert attacked == [(40, 2, 0)] * 2 and set(first["method"]) == {"m0", "m1"}
    again = adaptive.evaluate(study, table, weights, **SETTINGS)
    pd.testing.assert_frame_equal(first, again)
    assert len(attacked) == 2
    table.loc[table["method"] == "m2", "selected"] = True
    assert set(adaptive.evaluate(study, table, weights, **SETTINGS)["method"]) == {"m0", "m1", "m2"}
    assert len(attacked) == 3  # the new one alone
    before = (study.folder / "adaptive.h5").read_bytes()
    for images, restarts in (40, 1), (30, 2):
        with pytest.raises(UserError, match=r"adaptive.h5 was made with .* it is kept"):
            adaptive.evaluate(study, table, weights, images, restarts)
    assert len(attacked) == 3 and (study.folder / "adaptive.h5").read_bytes() == before


def test_what_was_attacked_before_an_interruption_is_kept(selected, attacked, monkeypatch):
    study, table, weights = selected
    complete, calls = adaptive.attack_model, itertools.count()

    def interrupted(*args):
        if next(calls) == 0:
            return complete(*args)
        while not (study.folder / "adaptive.h5").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptive, "attack_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaptive.evaluate(study, table, weights, **SETTINGS)
    monkeypatch.setattr(adaptive, "attack_model", complete)
    adaptive.evaluate(study, table, weights, **SETTINGS)
    assert len(attacked) == 2


def test_files_of_a_study(selected):
    study, table, weights = selected
    found = adaptive.evaluate(study, table, weights, 25, 1)
    written = pd.read_csv(study.folder / "adaptive.csv")
    pd.testing.assert_frame_equal(found, written, check_dtype=False)
    x, y = study.data("test")
    with h5py.File(study.folder / "adaptive.h5") as file:
        index = file["index"][()]
        assert set(index) <= set(halves_of_test("toy", len(y))[1]) and len(set(index)) == 25
        for digest in table.loc[table["selected"] | table["selected_within_1"], "sha256"].unique():
            model = load_weights(study.classifier, weights[digest])
            clean = model.predict(pixels(x[index]), verbose=0).argmax(axis=1) == y[index]
            np.testing.assert_array_equal(file[digest]["l2/worst/0"][()], clean)
            row = found[(found["sha256"] == digest) & (found["attack"] == "worst")]
            row = row[(row["norm"] == "linf") & (row["epsilon"] == 0.02)].iloc[0]
            robust = file[digest]["linf/worst/0.02"][()] == ROBUST
            assert row["robust_accuracy"] == pytest.approx(100 * robust.mean())
            assert row["low"] <= row["robust_accuracy"] <= row["high"] and row["n"] == 25
