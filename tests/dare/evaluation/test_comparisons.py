"""The verdict of a network: what is compared, by which settings, and what is concluded."""

import h5py
import numpy as np
import pandas as pd
import pytest
from made_up import PLAIN, made_up

from dare.evaluation import checks, comparisons
from dare.evaluation.comparisons import verdict, verdict_sentences
from dare.evaluation.runs import RecordedRuns


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """RecordedRuns of one study with one run."""
    return RecordedRuns([made_up(tmp_path_factory.mktemp("single"))])


def judged(home, trainings=1, **changed):
    """The verdict on made-up studies, by the method compared with, and its sentences."""
    methods = PLAIN | {name.replace("_", "-"): value for name, value in changed.items()}
    folders = [made_up(home, methods, n=400, seed=seed) for seed in range(trainings)]
    rows = verdict(RecordedRuns(folders), "digits", "lenet")
    return rows.set_index("compared_with"), verdict_sentences(rows)


def test_a_method_that_is_better_than_every_control(home):
    rows, text = judged(home, trainings=5)
    controls = rows[rows.index.str.startswith("control-")]
    assert len(controls) == 9
    assert (controls["conclusion"] == "yes").all()
    assert (controls["adaptive_conclusion"] == "yes").all()
    assert text.startswith("DARE is more robust than at-pgd, control-self, ")
    assert "Under adaptive attack it is more robust than control-self" in text
    assert (rows.loc[controls.index, "reason"] == "the interval is above 0").all()


def test_noise_is_no_merit_of_dare(home):
    rows, text = judged(home, dare=(0.5, 0.95, 0.3), control_noise=(0.5, 0.95, 0.3))
    assert rows.loc["control-noise", "component"] == "direction of the change"
    assert rows.loc["control-noise", "conclusion"] != "yes"
    assert "control-noise" not in text.split(".")[0]


def test_a_control_that_changes_nothing_is_not_comparable(home):
    rows, text = judged(home, dare=(0.5, 0.95, 0.3), control_self=(0.0, 0.95, 0.3))
    row = rows.loc["control-self"]
    assert row["conclusion"] == row["adaptive_conclusion"] == "not comparable"
    reason = "is the original: no batch normalisation up to the chosen layer"
    assert row["reason"] == f"control-self {reason}"
    assert f"Not comparable: control-self ({reason})." in text


def test_batch_normalisation_s_drift_is_no_merit_of_dare(home):
    rows, text = judged(home, dare=(0.62, 0.95, 0.3), control_batchnorm=(0.62, 0.95, 0.3))
    row = rows.loc["control-batchnorm"]
    assert row["conclusion"] != "yes" and row["adaptive_conclusion"] != "yes"
    assert "control-batchnorm" not in text.split(".")[0]


def test_a_planted_effect_is_found(home):
    """In five trainings; fewer are not enough to tell whether others would end the same."""
    better = PLAIN | {"dare": (0.65, 0.95, 0.4), "control-self": (0.6, 0.95, 0.45)}
    folders = [made_up(home, better, seed=seed, n=200) for seed in range(5)]
    for trainings, expected in (folders, "yes"), (folders[:1], "undecided"):
        rows = verdict(RecordedRuns(trainings), "digits", "lenet").set_index("compared_with")
        row = rows.loc["control-self"]
        assert row["difference"] == pytest.approx(5) and 0 < row["low"] < 5 < row["high"] < 10
        assert row["conclusion"] == expected and row["component"] == "mined history"
    assert row["reason"] == "the interval is above 0, but one training is not enough"
    assert row["adaptive_difference"] == pytest.approx(-5) and row["adaptive_high"] < 0
    assert rows.loc["control-noise", "conclusion"] == "yes"  # 25 points


def test_all_unseen_samples_count(home):
    """3 points are found on 80% of 500 samples and not on 20%."""
    better = PLAIN | {"dare": (0.63, 0.95, 0.4)}
    for training in True, False:
        folder = made_up(home / str(training), better, n=100, training=training)
        rows = verdict(RecordedRuns([folder]), "digits", "lenet").set_index("compared_with")
        row = rows.loc["control-self"]
        assert row["difference"] == pytest.approx(3) and (row["low"] > 0) == training
        # Images of which any of three attacks made a sample, each of half of them.
        assert row["n"] == pytest.approx(700 if training else 175, rel=0.05)
        # What adversarial training was tuned on does not count.
        assert rows.loc["at-pgd", "n"] == pytest.approx(175, rel=0.05)


def test_the_same_model_is_no_better(home):
    folder = made_up(home)
    rows = pd.read_csv(folder / "robustness.csv")
    dare = rows.loc[rows["method"] == "dare", "sha256"].iloc[0]
    rows.loc[rows["method"] == "control-self", "sha256"] = dare
    rows.to_csv(folder / "robustness.csv", index=False)
    found = verdict(RecordedRuns([folder]), "digits", "lenet").set_index("compared_with")
    columns = ["low", "high", "conclusion", "reason"]
    low, high, *answer = found.loc["control-self", columns]
    # By the rule of three, 3 of all images might differ.
    assert high == -low == pytest.approx(300 / found.loc["control-self", "n"])
    assert answer == ["no", "the gain is below 1 point"]


def test_few_images_without_a_difference_decide_nothing():
    difference = comparisons.difference(*two_equal_models(40))
    assert (difference.low, difference.high) == (-7.5, 7.5)
    assert comparisons.conclusion(difference)[0] == "undecided"


def test_the_level_of_dare_is_on_the_same_images():
    assert comparisons.difference(*two_equal_models(41)).of_dare == pytest.approx(100 * 20 / 41)


def two_equal_models(images):
    """Arguments of `difference`: two methods that are right on the same images."""
    rows = pd.DataFrame({"method": ["dare"], "folder": ["seed0"], "run": [0], "sha256": ["a"]})
    right = np.arange(images)[:, None] % 2 * 1.0
    return rows, rows.assign(method="control-self"), lambda *_: right


@pytest.mark.parametrize(("sources", "factor"), [(1, 3), (4, np.sqrt(3)), (5, 1)])
def test_the_interval_over_trainings(sources, factor):
    difference = comparisons.Difference(5, 3, 8, sources, 400)
    low, high = difference.over_trainings("robustness")
    assert (low, high) == pytest.approx((5 - 2 * factor, 5 + 3 * factor))
    low, high = comparisons.Difference(0, -1, 1, 1, 700).over_trainings("clean")
    assert high == -low == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize(("dare_has_one", "epochs"), [(True, [3, 1]), (False, [9, 2])])
def test_both_sides_of_a_difference_may_lose_as_much(dare_has_one, epochs):
    """If DARE has no epoch within 1 point, a control is compared at its most robust one, too."""
    rows = [
        ("dare", 3, "within"),
        ("dare", 9, "highest"),
        ("control-swa", 1, "within"),
        ("control-swa", 2, "highest"),
    ]
    table = pd.DataFrame(rows, columns=["method", "epoch", "rule"])
    table = table.assign(dataset="digits", model="lenet", folder="seed0", run=0, setting="")
    table = table.assign(per=np.nan, choose_layer=np.nan, batches=np.nan, label=table["method"])
    table.loc[table["method"] == "dare", ["per"]] = 0.95
    table["choose_layer"] = np.where(table["method"] == "dare", "conv3", None)
    within = table[(table["rule"] == "within") & ((table["label"] != "dare") | dare_has_one)]
    recorded = RecordedRuns.__new__(RecordedRuns)
    highest = table[table["rule"] == "highest"]
    recorded.chosen = {"selected_within_1": within, "selected": highest}
    (setting,) = recorded.settings("digits", "lenet")
    found = recorded.compared("digits", "lenet", setting).set_index("label")["epoch"]
    assert [found["dare"], found["control-swa"]] == epochs and len(found) == 2


def test_lost_clean_accuracy_is_not_comparable(home):
    rows, text = judged(home, dare=(0.9, 0.93, 0.6))
    assert set(rows["conclusion"]) == {"not comparable"}
    assert set(rows["adaptive_conclusion"]) == {"not comparable"}
    assert "dare loses 2.00 points" in rows["reason"].iloc[0]
    assert text.startswith("DARE is not shown to be more robust than any other method.")


def test_under_twice_chance_is_not_comparable(home):
    guessing = {m: (r, 0.19, a) for m, (r, _, a) in PLAIN.items()}
    recorded = RecordedRuns([made_up(home, guessing)])
    rows = verdict(recorded, "digits", "lenet")
    assert set(rows["conclusion"]) == {"not comparable"}
    assert rows["reason"].str.contains("less than 20%").all()
    assert any("clean accuracy, less than 20%" in text for text in checks.warnings(recorded))


def test_the_verdict_has_rows_for_what_was_run(home):
    methods = {m: v for m, v in PLAIN.items() if m not in ("control-seed", "control-single")}
    rows = verdict(RecordedRuns([made_up(home, methods)]), "digits", "lenet")
    assert {"control-seed", "control-single"}.isdisjoint(rows["compared_with"])
    assert "control-self" in set(rows["compared_with"])
    text = verdict_sentences(rows)
    assert "Not run: " in text
    assert {"control-seed", "control-single"} <= set(
        text.split("Not run: ")[1].split(".")[0].split(", ")
    )
    assert "have not all been run" in verdict_sentences(rows.iloc[:0])


# --------------------------------------------------------------------------------------- settings

SLICED = ("dare", "control-self", "control-single", "control-random", "control-noise")


def at(per=0.95, choose_layer="conv3", methods=PLAIN):
    """Jobs for made_up: the methods with other settings, as far as they have them."""
    jobs = []
    for name, values in methods.items():
        changed = {"per": per} if name in SLICED else {}
        if name in (*SLICED, "dare-s", "control-finetune", "control-batchnorm"):
            changed |= {"choose_layer": choose_layer}
        jobs.append((name, values, changed))
    return jobs


def test_a_study_at_another_setting_alone_has_a_full_verdict(home):
    usual = verdict(RecordedRuns([made_up(home / "a")]), "digits", "lenet")
    for number, job in enumerate((at(per=0.5), at(choose_layer="conv2"))):
        recorded = RecordedRuns([made_up(home / str(number), {}, more=job)])
        found = verdict(recorded, "digits", "lenet")
        assert set(found["setting"]) == {("per 0.5", "at conv2")[number]}
        pd.testing.assert_frame_equal(
            found.drop(columns="setting"), usual.drop(columns="setting"), check_exact=False
        )
        text = verdict_sentences(found)
        assert text.startswith(f"DARE {found['setting'].iloc[0]} is more robust than at-pgd")


def test_two_settings_are_compared_like_with_like(home):
    """The dare of per 0.5 is compared with the controls of per 0.5, not with those of 0.95."""
    weak = PLAIN | {"dare": (0.65, 0.95, 0.4), "control-self": (0.4, 0.95, 0.3)}
    sliced = {name: weak[name] for name in SLICED}
    recorded = RecordedRuns([made_up(home, more=at(per=0.5, methods=sliced), n=400)])
    rows = verdict(recorded, "digits", "lenet").set_index(["setting", "compared_with"])
    assert rows.loc[("", "control-self"), "difference"] == pytest.approx(10)
    assert rows.loc[("per 0.5", "control-self"), "difference"] == pytest.approx(25)
    # Methods without a slice are the same at both.
    assert rows.loc[("", "dare-s"), "difference"] == pytest.approx(0)
    assert rows.loc[("per 0.5", "dare-s"), "difference"] == pytest.approx(-5)
    assert len(rows.loc[""]) == len(rows.loc["per 0.5"])
    assert "DARE per 0.5 is more robust than" in verdict_sentences(rows.reset_index())


def test_dare_with_batches_is_another_method(home):
    """`--batches 5` is shown under its own name, and is not the DARE that is compared."""
    more = [("dare", (0.1, 0.95, 0.1), {"batches": 5})]
    recorded = RecordedRuns([made_up(home, more=more)])
    assert "dare batches 5" in set(recorded.rows["label"])
    rows = verdict(recorded, "digits", "lenet").set_index("compared_with")
    assert rows.loc["control-self", "difference"] == pytest.approx(10)


# --------------------------------------------------------------------------------------- warnings


def test_warnings(home, monkeypatch):
    methods = PLAIN | {"at-pgd": (0.5, 0.9, 0.5)}
    folder = made_up(home, methods, n=40, model="alexnet")
    rows = pd.read_csv(folder / "robustness.csv").assign(dataset="svhn", test_accuracy=70)
    rows["choose_layer"] = rows["choose_layer"].replace("conv3", "conv5")
    rows.loc[(rows["method"] == "dare-s") & (rows["split"] == "validation"), "n"] = 0
    more = rows[rows["method"] == "control-noise"].assign(epoch=99, lr_rate=0.5)
    rows = pd.concat([rows, more.assign(selected=False, selected_within_1=False)])
    rows.to_csv(folder / "robustness.csv", index=False)
    with h5py.File(folder / "adv/cw.h5", "a") as file:
        file["success"][:25] = False
    with h5py.File(folder / "ats_conv3.h5", "a") as file:
        del file["index"]
        file["index"] = np.arange(99)
    found = checks.warnings(RecordedRuns([folder]))
    for text in (
        "70.0% clean accuracy, over 20 points below the paper's 93.3%",
        "cw succeeds on 38% of the images",
        "fewer than 50 reported samples of fgsm (40), pgd (40), cw (40)",
        "ats_conv3.h5 has 99 mined images",
        "dare-s: no validation sample",
        "numbers of epochs to choose from (",
        "numbers of learning rates to choose from (control-finetune 1, control-noise 2, ",
        "no epoch within 1 point of the original's clean accuracy: at-pgd.",
    ):
        assert sum(text in warning for warning in found) == 1, (text, found)
    assert len(found) == 8


def test_a_good_run_has_no_warnings(single):
    assert checks.warnings(single) == []
