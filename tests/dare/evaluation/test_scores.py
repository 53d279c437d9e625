"""Scoring and the selection rule."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from adv import fintune_adv
from dare import controls, dare, test
from dare.evaluation import selection
from dare.evaluation.scores import SELECTION_RULES, Scores
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.flags import UserError
from train.shared.paths import tuned_folder, weights_path
from train.shared.study import Study
from train.utils import halves_of_test, predict


def candidates(*rows):
    """Models to select from: (method, lr_rate, epoch, validation robustness, clean accuracy)."""
    columns = ["method", "lr_rate", "epoch", "robustness", "selection_accuracy"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(model="lenet", run=0, per=0.95, choose_layer=None, batches=np.nan)


def test_selection_rule():
    models = candidates(
        ("original", None, 20, 0, 90.0),
        ("dare", 1e-3, 1, 50, 89.5),
        ("dare", 1e-3, 2, 60, 89.0),  # loses exactly one point: allowed
        ("dare", 1e-3, 3, 70, 88.9),  # loses more
        ("dare", 1e-4, 1, 55, 90.0),
        ("at-fgsm", 1e-4, 1, 90, 80.0),
        ("at-fgsm", 1e-4, 2, 70, 85.0),  # none within one point
    )
    marks = selection.select(models)
    chosen = {
        rule: list(models[marks[rule]][["method", "epoch"]].itertuples(index=False, name=None))
        for rule in marks
    }
    assert chosen["selected"] == [("original", 20), ("dare", 3), ("at-fgsm", 1)]
    assert chosen["selected_within_1"] == [("original", 20), ("dare", 2)]
    # Of DARE the last epoch at the default rate, 1e-3, and not at 1e-4.
    assert chosen["last_epoch"] == [("original", 20), ("dare", 3), ("at-fgsm", 2)]


def test_the_last_epoch_looks_at_no_sample():
    """At the rate that is nearest to the default one, 1e-3 for lenet and 1e-4 for at-*."""
    rows = [("original", None, 9, 0, 90.0)]
    for rate in (1e-5, 1e-4, 1e-2):
        rows += [("dare", rate, epoch, 50, 90.0) for epoch in (1, 2)]
        rows += [("at-pgd", rate, epoch, 50, 90.0) for epoch in (1, 2)]
    models = candidates(*rows)
    last = models[selection.select(models)["last_epoch"]].set_index("method")
    assert last.loc["dare", ["lr_rate", "epoch"]].tolist() in ([1e-4, 2], [1e-2, 2])
    assert last.loc["at-pgd", ["lr_rate", "epoch"]].tolist() == [1e-4, 2]
    before = selection.select(models)["last_epoch"]
    models["robustness"] = np.random.default_rng(0).random(len(models))
    models["selection_accuracy"] = 50 + models["robustness"]
    pd.testing.assert_series_equal(selection.select(models)["last_epoch"], before)


def test_runs_layers_and_slices_are_selected_separately():
    one = candidates(("original", None, 9, 0, 90.0), ("dare", 1e-3, 1, 50, 90.0))
    others = [one[1:].assign(**{k: v}) for k, v in (("run", 1), ("per", 0.5), ("batches", 1.0))]
    models = pd.concat([one, *others], ignore_index=True)
    assert selection.select(models).sum().tolist() == [5, 5, 5]


def test_scores_are_kept_as_bits(tmp_path):
    scores = Scores(tmp_path / "scores.h5")
    right = np.random.default_rng(0).random(13) < 0.5
    scores.define("pgd test", np.arange(13) * 3, "aaaa")
    scores.define("clean reporting", np.arange(5), "bbbb")
    scores.add("model", "pgd test", right)
    scores.save()
    again = Scores(tmp_path / "scores.h5")
    np.testing.assert_array_equal(again.right("model", "pgd test"), right)
    np.testing.assert_array_equal(again.index["pgd test"], np.arange(13) * 3)
    assert again.percent("model", "pgd test") == pytest.approx(100 * right.mean())
    assert np.isnan(again.percent("model", "clean reporting"))
    assert again.missing("model", ["pgd test", "clean reporting"]) == ["clean reporting"]
    again.define("pgd test", np.arange(13) * 3, "aaaa")
    assert not again.missing("model", ["pgd test"])
    again.define("pgd test", np.arange(13) * 3, "cccc")  # other samples of the same name
    assert again.missing("model", ["pgd test"])


def test_only_selected_models_are_reported(tmp_path):
    """Also if an earlier scoring, with other models, selected and reported another one."""
    models = candidates(("original", None, 9, 0, 90.0), ("dare", 1e-3, 1, 50, 90.0))
    models = models.assign(dataset="toy", model="tiny", source="M0", seed=0, sha256=["a", "b"])
    models = models.assign(selected=[True, False], selected_within_1=[True, False])
    models["last_epoch"] = [True, False]
    scores = Scores(tmp_path / "scores.h5")
    for part in ("pgd validation", "pgd test", "clean reporting"):
        scores.define(part, np.arange(4), "0" * 64)
        for model in "ab":
            scores.add(model, part, np.ones(4, bool))
    table = selection.robustness_rows(models, ["pgd"], scores).set_index("method")
    assert table.loc["original", "test_accuracy"].tolist() == [100, 100]
    assert np.isnan(table.loc["dare", "test_accuracy"])


@pytest.fixture
def scored(study):
    _, folder, flags = study
    dare.main([*flags, "--epoch", "2", "--lr_rate", "0.001"])
    dare.main([*flags, "--epoch", "1", "--lr_rate", "1e-6"])  # VGG's rate
    fintune_adv.main([*flags, "--attack", "fgsm", "--epoch", "2"])
    controls.main([*flags, "--epoch", "2", "--lr_rate", "0.001"])
    test.main(flags)
    return folder, flags


def test_robustness_csv(scored, capsys, monkeypatch):
    folder, flags = scored
    table = pd.read_csv(folder / "robustness.csv")
    wanted = "dataset, model, source, run, seed, method, lr_rate, epoch, attack, split, n, "
    wanted += "empirical_robustness, test_accuracy, selected, selected_within_1, last_epoch"
    assert list(table.columns)[:16] == wanted.split(", ")
    original = table[table["method"] == "original"]
    assert (original["empirical_robustness"] == 0).all() and original["selected"].all()
    names = {f"control-{c}" for c in controls.CONTROLS}
    assert names | {"dare", "at-fgsm", "control-checkpoint"} <= set(table["method"])

    of_dare = table[table["method"] == "dare"]
    assert set(of_dare["lr_rate"]) == {1e-3, 1e-6}  # not rounded

    # What is reported is scored for selected models only, and nothing else was looked at.
    tested = table[table["split"] == "test"]
    assert tested[[*SELECTION_RULES]].any(axis=1).all()
    unselected = table[~table[[*SELECTION_RULES]].any(axis=1)]
    assert len(unselected) and unselected["test_accuracy"].isna().all()

    row = table[(table["method"] == "dare") & (table["attack"] == "pgd") & table["selected"]]
    row = row[row["split"] == "test"].iloc[0]
    settings = {"choose_layer": "conv2", "per": 0.95, "lr_rate": row["lr_rate"], "run": 0}
    path = weights_path(tuned_folder(folder, "dare", **settings), row["epoch"])
    model = load_weights(load_classifier(folder), path)
    with h5py.File(folder / "adv/pgd.h5") as file:
        rows = (file["split"][()] == 2) & file["success"][()]
        predicted = predict(model, file["image"][()][rows]).argmax(axis=1)
        by_hand = 100 * np.mean(predicted == file["label"][()][rows])
    assert row["empirical_robustness"] == pytest.approx(by_hand, abs=1e-3)
    assert row["n"] == rows.sum()
    x, y = (np.load(folder.parents[1] / f"data/toy/{a}_test.npy") for a in "xy")
    _, reporting = halves_of_test("toy", len(y))
    clean = 100 * np.mean(predict(model, x[reporting]).argmax(axis=1) == y[reporting])
    assert row["test_accuracy"] == pytest.approx(clean, abs=1e-3)

    monkeypatch.setattr(
        selection, "score", lambda *_: pytest.fail("scored again what scores.h5 has")
    )
    test.main(flags)
    out = capsys.readouterr().out
    assert "at-fgsm" in out and "control-swa" in out
    assert pd.read_csv(folder / "robustness.csv").equals(table)


def test_the_reported_parts_do_not_change_the_selection(scored):
    """Other labels in the reporting half and the test part: the same models are selected."""
    folder, flags = scored
    marks = [*SELECTION_RULES]
    keys = ["method", "lr_rate", "epoch", *marks]
    before = pd.read_csv(folder / "robustness.csv").query("split == 'validation'")[keys]
    path = folder.parents[1] / "data/toy/y_test.npy"
    y = np.load(path)
    _, reporting = halves_of_test("toy", len(y))
    y[reporting] = (y[reporting] + 1) % 4
    np.save(path, y)
    with h5py.File(folder / "adv/pgd.h5", "a") as file:
        rows = file["split"][()] == 2
        file["label"][rows] = (file["label"][rows] + 1) % 4
    test.main(flags)
    after = pd.read_csv(folder / "robustness.csv").query("split == 'validation'")[keys]
    pd.testing.assert_frame_equal(before, after)


def test_halves_share_no_image():
    selection, reporting = halves_of_test("nowhere", 101)
    assert sorted([*selection, *reporting]) == list(range(101))
    np.testing.assert_array_equal(halves_of_test("nowhere", 101)[0], selection)


def test_samples_of_different_images_are_refused(study):
    from adv import generate_adv

    _, folder, flags = study
    (folder / "adv/pgd.h5").unlink()
    generate_adv.main([*flags, "--attack", "pgd", "--samples", "50"])
    with pytest.raises(UserError, match=r"pgd.h5 \(50 samples\) and .*fgsm.h5 \(60\)"):
        test.main(flags)


def test_no_validation_sample(study):
    _, folder, flags = study
    for name in "fgsm", "pgd":
        with h5py.File(folder / f"adv/{name}.h5", "a") as file:
            file["success"][file["split"][()] == 1] = False
    with pytest.raises(UserError, match="no successful sample in its validation part"):
        test.main(flags)


def test_adversarial_training_on_other_samples_is_refused(study):
    """With another number of samples the reported part may hold what was trained on."""
    _, folder, flags = study
    fintune_adv.main([*flags, "--attack", "pgd", "--epoch", "1"])
    with h5py.File(folder / "adv/pgd.h5", "a") as file:
        file["split"][...] = file["split"][()][::-1]
    with h5py.File(folder / "adv/fgsm.h5", "a") as file:
        file["split"][...] = file["split"][()][::-1]
    with pytest.raises(
        UserError, match=r"at-pgd.*was trained on other samples than those in adv/pgd.h5"
    ):
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


def test_an_attack_without_success_in_a_part():
    empty = selection.Part(np.zeros((0, 12, 12, 1)), np.zeros(0, int), np.zeros(0, int), "")
    assert len(selection.score(None, {"jsma validation": empty})["jsma validation"]) == 0


def test_a_tuned_folder_that_was_renamed_is_no_further_candidate(study):
    _, folder, flags = study
    dare.main([*flags, "--epoch", "1", "--lr_rate", "1e-3"])
    (tuned,) = (folder / "tuned").iterdir()
    tuned.rename(tuned.with_name(f"{tuned.name}.old"))
    with pytest.raises(UserError, match=f"belongs in a folder {tuned.name}: move .*old out of"):
        test.main(flags)


def test_a_tuned_model_of_another_checkpoint_is_refused(study):
    _, folder, flags = study
    dare.main([*flags, "--epoch", "1", "--lr_rate", "0.001"])
    settings = {"choose_layer": "conv2", "per": 0.95, "lr_rate": 1e-3, "run": 0}
    path = weights_path(tuned_folder(folder, "dare", **settings), 1)
    with h5py.File(path, "a") as file:
        file.attrs["checkpoint_sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"tuned from checkpoint 000000000000, not [0-9a-f]{12}"):
        test.main(flags)
