"""Scoring: which images are scored, the rules, and what is kept."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import TOY, copy_as_home

import train.shared.paths
from adv import fintune_adv, generate_adv
from dare import controls, dare, test
from dare.evaluation import scoring
from dare.evaluation.scores import Scores
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.flags import UserError
from train.shared.paths import tuned_folder, weights_path
from train.shared.study import Study
from train.utils import halves_of_test, predict

SETTINGS = {"choose_layer": "conv2", "per": 0.95, "lr_rate": 1e-3, "run": 0}


def test_rules():
    rows = (
        ("original", None, 20, 0),
        ("control-seed", None, 1, 90),
        ("control-seed", None, 2, 80),
        ("dare", 1e-3, 1, 70),
        ("dare", 1e-3, 2, 60),
        ("dare", 1e-4, 1, 50),
        ("dare", 1e-4, 2, 55),
    )
    models = pd.DataFrame(rows, columns=["method", "lr_rate", "epoch", "robustness"])
    models = models.assign(run=0, per=0.95, choose_layer=None, batches=np.nan)
    marks = scoring.mark_last_and_best(models)
    assert marks["last"].tolist() == [True, True, True, False, True, False, True]
    assert marks["best"].tolist() == [True, True, False, True, False, False, False]
    # The rule that statements rest on looks at no score.
    models["robustness"] = models["robustness"].to_numpy()[::-1]
    assert scoring.mark_last_and_best(models)["last"].equals(marks["last"])

    others = [models[3:4].assign(**{k: v}) for k, v in (("run", 1), ("per", 0.5), ("batches", 1.0))]
    marks = scoring.mark_last_and_best(pd.concat([models, *others], ignore_index=True))
    assert marks[-3:].all(axis=None)  # runs, layers and slices are marked separately


def test_scores_on_other_samples_of_the_same_name_are_dropped():
    scores = Scores()
    scores.define("pgd test", np.arange(13), "aaaa")
    scores.add("model", "pgd test", np.arange(13) < 5)
    scores.define("pgd test", np.arange(13), "aaaa")
    assert scores.percent("model", "pgd test") == pytest.approx(500 / 13)
    for index, made_from in (np.arange(13), "cccc"), (np.arange(13) + 1, "cccc"):
        scores.define("pgd test", index, made_from)
        assert not scores.has("model", ["pgd test"]) and np.isnan(
            scores.percent("model", "pgd test")
        )
        scores.add("model", "pgd test", np.arange(13) < 5)


def test_an_attack_without_success_in_a_part():
    empty = scoring.Part(np.zeros((0, 12, 12, 1)), np.zeros(0, int), np.zeros(0, int), "")
    assert len(scoring.score(None, empty)) == 0


@pytest.fixture(scope="module")
def scored_home(trained, tmp_path_factory):
    """A copy of `trained` with tuned models, of which one is the original, and scores."""
    with copy_as_home(trained, tmp_path_factory) as home:
        generate_adv.main([*TOY, "--part", "test", "--attack", "fgsm", "--samples", "20"])
        dare.main([*TOY, "--epoch", "2", "--lr_rate", "0.001"])
        dare.main([*TOY, "--epoch", "1", "--lr_rate", "1e-6"])
        fintune_adv.main([*TOY, "--attack", "fgsm", "--epoch", "1"])
        controls.main([*TOY, "--control", "swa"])
        folder = home / "models/toy_tiny_seed0"
        path = weights_path(tuned_folder(folder, "dare", **SETTINGS | {"lr_rate": 1e-6}), 1)
        with h5py.File(path, "a") as file:
            file.attrs["is_original"] = True  # as controls.keep_original writes it
        test.main(TOY)
    return home


@pytest.fixture
def scored(scored_home, tmp_path, monkeypatch):
    """The folder of a scored study, to change it."""
    shutil.copytree(scored_home, tmp_path / "home")
    monkeypatch.setattr(train.shared.paths, "HOME", tmp_path / "home")
    return tmp_path / "home/models/toy_tiny_seed0"


def test_robustness_csv(scored, monkeypatch):
    folder = scored
    table = pd.read_csv(folder / "robustness.csv")
    wanted = "dataset, model, source, run, seed, method, lr_rate, epoch, attack, split, n, "
    wanted += "empirical_robustness, test_accuracy, last, best"
    assert list(table.columns)[:15] == wanted.split(", ")
    original = table[(table["method"] == "original") & (table["split"] != "heldout")]
    assert (original["empirical_robustness"] == 0).all() and original["last"].all()
    of_dare = table[table["method"] == "dare"]
    last = of_dare[of_dare["last"]].drop_duplicates("sha256")
    assert sorted(zip(last["lr_rate"], last["epoch"], strict=True)) == [(1e-6, 1), (1e-3, 2)]
    splits = table.groupby(["method", "attack"])["split"].agg(set)
    everything = {"training", "validation", "test"}
    assert splits["dare", "pgd"] == everything and splits["dare", "fgsm"] == everything | {
        "heldout"
    }
    assert splits["at-fgsm", "fgsm"] == {"validation", "test", "heldout"}  # not what it has seen

    row = of_dare[of_dare["last"] & (of_dare["lr_rate"] == 1e-3) & (of_dare["attack"] == "pgd")]
    row = row[row["split"] == "test"].iloc[0]
    path = weights_path(tuned_folder(folder, "dare", **SETTINGS), 2)
    model = load_weights(load_classifier(folder), path)
    with h5py.File(folder / "adv/pgd.h5") as file:
        rows = (file["split"][()] == 2) & file["success"][()]
        predicted = predict(model, file["image"][()][rows]).argmax(axis=1)
        by_hand = 100 * np.mean(predicted == file["label"][()][rows])
    assert row["empirical_robustness"] == pytest.approx(by_hand, abs=1e-3)
    assert row["n"] == rows.sum()
    x, y = (np.load(folder.parents[1] / f"data/toy/{a}_test.npy") for a in "xy")
    _, reporting = halves_of_test("toy", len(y))
    right = predict(model, x[reporting]).argmax(axis=1) == y[reporting]
    assert row["test_accuracy"] == pytest.approx(100 * right.mean(), abs=1e-3)
    assert table["is_original"].equals(table["lr_rate"].eq(1e-6))
    # A second time nothing is scored, and the same is written.
    before = (folder / "robustness.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", None)
        test.main(TOY)
    assert (folder / "robustness.csv").read_bytes() == before
    assert '"stage": "fgsm test"' in (folder / "adv/fgsm_test.log").read_text()
    # Scores on samples that are gone are gone too.
    (folder / "adv/pgd.h5").unlink()
    test.main(TOY)
    parts = Scores.read(folder / "scores.h5").index
    assert "fgsm test" in parts and not any("pgd" in part for part in parts)


def change_samples(folder, name, change, attacks=("fgsm", "pgd")):
    for attack in attacks:
        with h5py.File(folder / f"adv/{attack}.h5", "a") as file:
            values = change(file[name][()])
            del file[name]
            file[name] = values


def other_checkpoint(folder):
    path = weights_path(tuned_folder(folder, "dare", **SETTINGS), 1)
    with h5py.File(path, "a") as file:
        file.attrs["checkpoint_sha256"] = "0" * 64


def renamed(folder):
    path = tuned_folder(folder, "dare", **SETTINGS)
    path.rename(path.with_name(f"{path.name}.old"))


def other_test_images(folder):
    path = folder.parents[1] / "data/toy/x_test.npy"
    np.save(path, np.load(path)[::-1])


REFUSED = {
    r"pgd.h5 \(60 samples\) and .*fgsm.h5 \(60\) are samples of different": lambda folder: (
        change_samples(folder, "index", lambda index: index + 1, ["pgd"])
    ),
    "no successful sample in the split validation": lambda folder: change_samples(
        folder, "split", lambda split: np.zeros_like(split)
    ),
    # Some of what it was trained on would be reported.
    r"at-fgsm.*trained on other samples than those in adv/fgsm": lambda folder: change_samples(
        folder, "split", lambda split: split[::-1]
    ),
    "belongs in a folder dare_.*run0: move .*old out of": renamed,
    "tuned from checkpoint 000000000000, not [0-9a-f]{12}": other_checkpoint,
    r"fgsm_test.h5 was made from test_sha256 ": other_test_images,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_belong_is_refused(scored, message):
    before = (scored / "robustness.csv").read_bytes()
    REFUSED[message](scored)
    with pytest.raises(UserError, match=message):
        test.main(TOY)
    assert (scored / "robustness.csv").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("data_sha256", "f" * 64), ("epochs", 7)])
def test_seeds_that_are_left_out(study, name, value):
    """Those that are still in training, and those trained on other data or for other epochs."""
    _, folder, _ = study
    last = folder.parent / "toy_tiny_seed1/checkpoints/model.008.weights.h5"
    shutil.copytree(folder, last.parents[1])
    opened = Study.open(SimpleNamespace(dataset="toy", model="tiny", seed=0))
    assert opened.other_seeds() == {1: last}
    if name == "epochs":
        last = last.rename(last.with_name("model.007.weights.h5"))
    with h5py.File(last, "a") as file:
        file.attrs[name] = value
    assert opened.other_seeds() == {}
    last.unlink()
    assert opened.other_seeds() == {}
