"""Adaptive evaluation of the last epochs: what is attacked, kept and written."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import write_data

from adv.attacks.worst_case import ROBUST, UNKNOWN
from dare.evaluation import adaptive
from dare.evaluation.scores import Scores
from train.shared.artifacts import sha256
from train.shared.checkpoints import load_weights
from train.shared.study import Study
from train.utils import halves_of_test, pixels

SETTINGS = {"images": 40, "restarts": 2}


@pytest.fixture
def marked(home, classifier):
    """(a study with four saved models, robustness.csv, paths).

    Two are compared: original and dare. One is no last epoch, and one a DARE at another rate.
    """
    write_data(home)
    folder = home / "models" / "toy_tiny_seed0"
    folder.mkdir(parents=True)
    rows, paths = [], {}
    models = ("original", np.nan), ("dare", 1e-3), ("control-finetune", 1e-3), ("dare", 1e-2)
    for i, (method, lr_rate) in enumerate(models):
        path = folder / f"{i}.weights.h5"
        last = classifier.layers[-1]
        last.set_weights([w + 0.1 * i for w in last.get_weights()])
        classifier.save_weights(path)
        paths[sha256(path)] = path
        row = dict.fromkeys(adaptive.IDENTITY, 0) | {"method": method, "lr_rate": lr_rate}
        row |= {"dataset": "toy", "model": "tiny", "per": 0.95, "choose_layer": "conv2"}
        row |= {"batches": np.nan, "sha256": sha256(path)}
        rows += [row | {"last": i != 2, "attack": a} for a in ("fgsm", "pgd")]
    x, y = (np.load(home / "data" / "toy" / f"{a}_test.npy") for a in "xy")

    class Toy(Study):
        def data(self, part):
            return x, y.astype("int64")

    study = Toy("toy", "tiny", 0, folder, None, classifier, {"model": "tiny"})
    return study, pd.DataFrame(rows), paths


@pytest.fixture
def attacked(monkeypatch):
    """A list that gets (images, restarts, seed) of every model that is attacked, which is faked."""
    calls = []

    def fake(model, x, y, epsilons, restarts, seed):
        calls.append((len(x), restarts, seed))
        results = np.resize([ROBUST, 0, UNKNOWN], len(x)).astype("uint8")
        named = itertools.product(adaptive.OUTCOMES, (0, *epsilons))
        return dict.fromkeys(named, results)

    monkeypatch.setattr(adaptive, "attack_model", fake)
    return calls


def test_unknown_images_are_not_robust(marked, attacked):
    study, table, paths = marked
    found = adaptive.evaluate(study, table, paths, 30, 1)
    assert (found["robust_accuracy"].round() == 33).all() and (found["unknown"] == 10).all()
    scores = Scores.read(study.folder / "scores.h5")
    sha = table["sha256"].iloc[0]
    np.testing.assert_array_equal(scores.right(sha, "adaptive worst 0.1"), np.resize([1, 0, 0], 30))


def test_what_was_attacked_is_kept_unless_the_settings_differ(marked, attacked, monkeypatch):
    study, table, paths = marked
    first = adaptive.evaluate(study, table, paths, **SETTINGS)
    assert attacked == [(40, 2, 0)] * 2 and set(first["method"]) == {"original", "dare"}
    again = adaptive.evaluate(study, table, paths, **SETTINGS)
    pd.testing.assert_frame_equal(first, again)
    table.loc[table["method"] == "control-finetune", "last"] = True
    some = adaptive.evaluate(study, table, paths, **SETTINGS, methods=["dare", "control-finetune"])
    assert len(attacked) == 3 and set(some["method"]) == {"original", "dare", "control-finetune"}
    adaptive.evaluate(study, table, paths, images=30, restarts=2)
    assert attacked[3:] == [(30, 2, 0)] * 3

    whole, calls = adaptive.attack_model, itertools.count()

    def interrupted(*args):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(adaptive, "attack_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaptive.evaluate(study, table, paths, images=20)
    monkeypatch.setattr(adaptive, "attack_model", whole)
    adaptive.evaluate(study, table, paths, images=20)
    assert len(attacked) == 6 + 3


def test_no_model_and_other_epsilons(marked, attacked, monkeypatch):
    study, table, paths = marked
    adaptive.evaluate(study, table, paths, **SETTINGS, methods=["at-pgd"])
    assert pd.read_csv(study.folder / "adaptive.csv").empty
    adaptive.evaluate(study, table, paths, **SETTINGS)
    monkeypatch.setattr(adaptive, "GREY", (0.03, 0.1))  # the largest stays
    found = adaptive.evaluate(study, table, paths, **SETTINGS)
    assert set(found["epsilon"]) == {0, 0.03, 0.1}
    assert not any("0.01" in part for part in Scores.read(study.folder / "scores.h5").index)


def test_files_of_a_study(marked):
    """With the real attacks: the row at epsilon 0 is clean accuracy, and the worst case counts."""
    study, table, paths = marked
    found = adaptive.evaluate(study, table, paths, 25, 1)
    written = pd.read_csv(study.folder / "adaptive.csv")
    pd.testing.assert_frame_equal(found, written, check_dtype=False)
    assert set(found["attack"]) == {"fgsm", "pgd", "rays", "worst"}
    x, y = study.data("test")
    scores = Scores.read(study.folder / "scores.h5")
    index = scores.index["adaptive worst 0.02"]
    assert set(index) <= set(halves_of_test("toy", len(y))[1]) and len(set(index)) == 25
    for sha in found["sha256"].unique():
        model = load_weights(study.classifier, paths[sha])
        clean = model.predict(pixels(x[index]), verbose=0).argmax(axis=1) == y[index]
        np.testing.assert_array_equal(scores.right(sha, "adaptive worst 0"), clean)
        of_model = found[(found["sha256"] == sha) & np.isclose(found["epsilon"], 0.1)]
        by_attack = of_model.set_index("attack")["robust_accuracy"]
        assert by_attack["worst"] <= by_attack[["fgsm", "pgd"]].min()
