"""Scoring: which images are scored, the rules, and what is kept."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

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


def candidates(*rows):
    """Models to mark: (method, lr_rate, epoch, robustness on the validation part)."""
    table = pd.DataFrame(rows, columns=["method", "lr_rate", "epoch", "robustness"])
    return table.assign(run=0, per=0.95, choose_layer=None, batches=np.nan)


def test_rules():
    models = candidates(
        ("original", None, 20, 0),
        ("control-seed", None, 1, 90),
        ("control-seed", None, 2, 80),
        ("dare", 1e-3, 1, 70),
        ("dare", 1e-3, 2, 60),
        ("dare", 1e-4, 1, 50),
        ("dare", 1e-4, 2, 55),
    )
    marks = scoring.mark_last_and_best(models)
    assert marks["last"].tolist() == [True, True, True, False, True, False, True]
    assert marks["best"].tolist() == [True, True, False, True, False, False, False]
    # The rule that statements rest on looks at no score.
    models["robustness"] = models["robustness"].to_numpy()[::-1]
    assert scoring.mark_last_and_best(models)["last"].equals(marks["last"])


def test_runs_layers_and_slices_are_marked_separately():
    one = candidates(("original", None, 9, 0), ("dare", 1e-3, 1, 50))
    others = [one[1:].assign(**{k: v}) for k, v in (("run", 1), ("per", 0.5), ("batches", 1.0))]
    models = pd.concat([one, *others], ignore_index=True)
    assert scoring.mark_last_and_best(models).sum().tolist() == [5, 5]


def test_scores_are_kept_as_bits(tmp_path):
    scores = Scores()
    right = np.random.default_rng(0).random(13) < 0.5
    scores.define("pgd test", np.arange(13) * 3, "aaaa")
    scores.define("clean reporting", np.arange(5), "bbbb")
    scores.add("model", "pgd test", right)
    scores.save(tmp_path / "scores.h5")
    again = Scores.read(tmp_path / "scores.h5")
    np.testing.assert_array_equal(again.right("model", "pgd test"), right)
    np.testing.assert_array_equal(again.index["pgd test"], np.arange(13) * 3)
    assert again.percent("model", "pgd test") == pytest.approx(100 * right.mean())
    assert np.isnan(again.percent("model", "clean reporting"))
    assert again.has("model", ["pgd test"]) and not again.has("model", ["clean reporting"])
    again.define("pgd test", np.arange(13) * 3, "aaaa")
    assert again.has("model", ["pgd test"])
    again.define("pgd test", np.arange(13) * 3, "cccc")  # other samples of the same name
    assert not again.has("model", ["pgd test"])
    assert not Scores.read(tmp_path / "none.h5").index


def test_an_attack_without_success_in_a_part():
    empty = scoring.Part(np.zeros((0, 12, 12, 1)), np.zeros(0, int), np.zeros(0, int), "")
    assert len(scoring.score(None, {"jsma validation": empty})["jsma validation"]) == 0


@pytest.fixture
def scored(study):
    _, folder, flags = study
    generate_adv.main([*flags, "--part", "test", "--attack", "fgsm", "--samples", "20"])
    dare.main([*flags, "--epoch", "2", "--lr_rate", "0.001"])
    dare.main([*flags, "--epoch", "1", "--lr_rate", "1e-6"])
    fintune_adv.main([*flags, "--attack", "fgsm", "--epoch", "2"])
    controls.main([*flags, "--epoch", "1", "--lr_rate", "0.001", "--control", "self,swa"])
    test.main(flags)
    return folder, flags


def test_robustness_csv(scored, monkeypatch, capsys):
    folder, flags = scored
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
    assert not table["is_original"].any()  # batch normalisation: control-self differs
    # A second time nothing is scored, and the same is written.
    before = (folder / "robustness.csv").read_bytes()
    monkeypatch.setattr(scoring, "score", None)
    test.main(flags)
    assert (folder / "robustness.csv").read_bytes() == before
    assert '"stage": "fgsm test"' in (folder / "adv/fgsm_test.log").read_text()
    x[0] += 1  # other test images than those of the held-out samples
    np.save(folder.parents[1] / "data/toy/x_test.npy", x)
    with pytest.raises(UserError, match=r"fgsm_test.h5 was made from test_sha256 "):
        test.main(flags)


def test_what_cannot_be_scored_is_refused(study):
    """Samples of other images, without a validation part, or of another checkpoint."""
    _, folder, flags = study
    shutil.copy(folder / "adv/pgd.h5", folder / "pgd.h5")
    (folder / "adv/pgd.h5").unlink()
    generate_adv.main([*flags, "--attack", "pgd", "--samples", "50"])
    with pytest.raises(UserError, match=r"pgd.h5 \(50 samples\) and .*fgsm.h5 \(60\)"):
        test.main(flags)
    shutil.copy(folder / "pgd.h5", folder / "adv/pgd.h5")
    for name in "fgsm", "pgd":
        with h5py.File(folder / f"adv/{name}.h5", "a") as file:
            file["success"][file["split"][()] == 1] = False
    with pytest.raises(UserError, match="no successful sample in the split validation"):
        test.main(flags)
    with h5py.File(folder / "adv/pgd.h5", "a") as file:
        file.attrs["checkpoint_sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"pgd.h5 was made from .*000000000000, not"):
        test.main(flags)


def test_tuned_models_that_do_not_belong_are_refused(study):
    """Renamed, tuned from another checkpoint, or on samples that may be reported now."""
    _, folder, flags = study
    dare.main([*flags, "--epoch", "1", "--lr_rate", "1e-3"])
    (tuned,) = (folder / "tuned").iterdir()
    old = tuned.rename(tuned.with_name(f"{tuned.name}.old"))
    with pytest.raises(UserError, match=f"belongs in a folder {tuned.name}: move .*old out of"):
        test.main(flags)
    old.rename(tuned)
    path = weights_path(tuned, 1)
    with h5py.File(path, "a") as file:
        file.attrs["checkpoint_sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"tuned from checkpoint 000000000000, not [0-9a-f]{12}"):
        test.main(flags)
    shutil.rmtree(tuned)
    fintune_adv.main([*flags, "--attack", "pgd", "--epoch", "1"])
    for name in "pgd", "fgsm":
        with h5py.File(folder / f"adv/{name}.h5", "a") as file:
            file["split"][...] = file["split"][()][::-1]
    with pytest.raises(UserError, match=r"at-pgd.*trained on other samples than those in adv/pgd"):
        test.main(flags)


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


def test_a_control_that_is_the_original_says_so(study):
    _, folder, flags = study
    dare.main([*flags, "--epoch", "1", "--lr_rate", "1e-3"])
    (tuned,) = (folder / "tuned").iterdir()
    with h5py.File(weights_path(tuned, 1), "a") as file:
        file.attrs["is_original"] = True  # as controls.keep_original writes it
    test.main(flags)
    table = pd.read_csv(folder / "robustness.csv")
    assert table["is_original"].equals(table["method"] == "dare")


def test_halves_of_the_test_images():
    selection, reporting = halves_of_test("nowhere", 101)
    assert sorted([*selection, *reporting]) == list(range(101))
    np.testing.assert_array_equal(halves_of_test("nowhere", 101)[0], selection)
