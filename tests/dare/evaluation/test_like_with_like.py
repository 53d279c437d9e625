"""Methods are compared at the same setting of DARE, whatever their labels are."""

import pandas as pd
import pytest
from made_up import PLAIN, made_up

from dare.evaluation.claims import OTHERS, claims_table
from dare.evaluation.comparisons import verdict, verdict_sentences
from dare.evaluation.differences import differences_table
from dare.evaluation.runs import RecordedRuns
from dare.evaluation.tables import published_means, robustness_table, wins
from dare.methods import METHODS

IN_VERDICT = set(PLAIN) - {"original", "dare"}
SLICED = [name for name in PLAIN if "per" in METHODS[name].settings]
LAYERED = [name for name in PLAIN if "choose_layer" in METHODS[name].settings]


def rewritten(folder, change):
    """RecordedRuns of a made-up study whose robustness.csv `change` has edited."""
    path = folder / "robustness.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    return RecordedRuns([folder])


def moved(column, value, methods):
    """A function that gives the rows of some methods another setting."""

    def change(rows):
        rows.loc[rows["method"].isin(methods), column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("column", "value", "methods", "text"),
    [("per", 0.5, SLICED, "per 0.5"), ("choose_layer", "conv2", LAYERED, "at conv2")],
)
def test_another_setting_alone_gives_the_same_verdict(home, column, value, methods, text):
    usual = RecordedRuns([made_up(home / "usual")])
    other = rewritten(made_up(home / "other"), moved(column, value, methods))
    expected = verdict(usual, "digits", "lenet")
    rows = verdict(other, "digits", "lenet")
    assert set(rows["compared_with"]) == IN_VERDICT and set(rows["setting"]) == {text}
    assert set(expected["setting"]) == {""}
    same = {"check_dtype": False}
    pd.testing.assert_frame_equal(
        rows.drop(columns="setting"), expected.drop(columns="setting"), **same
    )
    usual_text = verdict_sentences(expected)
    assert verdict_sentences(rows) == usual_text.replace("DARE is", f"DARE {text} is")
    cells = robustness_table(other.chosen["selected"])
    assert wins(cells) == wins(robustness_table(usual.chosen["selected"])) == (3, 3)
    table = differences_table(other, "selected")
    expected = differences_table(usual, "selected")
    assert table["difference"].sum() == pytest.approx(expected["difference"].sum())
    assert set(table["setting"]) == {text}


def test_two_settings_have_a_verdict_each(home):
    """At per 0.5 DARE is better and control-self worse; what has no per is compared with both."""
    more = [
        ("dare", (0.8, 0.95, 0.4), {"per": 0.5}),
        ("control-self", (0.4, 0.95, 0.3), {"per": 0.5}),
    ]
    recorded = RecordedRuns([made_up(home, more=more)])
    rows = verdict(recorded, "digits", "lenet").set_index(["setting", "compared_with"])
    difference = rows["difference"]
    assert set(rows.loc[""].index) == IN_VERDICT
    assert difference["", "control-self"] == pytest.approx(10)
    assert difference["per 0.5", "control-self"] == pytest.approx(40)
    assert difference["", "control-finetune"] == pytest.approx(10)
    assert difference["per 0.5", "control-finetune"] == pytest.approx(20)
    # control-single was not run at per 0.5.
    assert ("per 0.5", "control-single") not in rows.index
    text = verdict_sentences(rows.reset_index())
    assert "DARE is more robust than" in text and "DARE per 0.5 is more robust than" in text
    table = differences_table(recorded, "selected").set_index(["setting", "method", "attack"])
    assert table.loc[("per 0.5", "control-self per 0.5", "mean"), "difference"] == pytest.approx(40)
    assert table.loc[("", "control-self", "mean"), "difference"] == pytest.approx(10)
    assert ("", "control-self per 0.5", "mean") not in table.index


def test_dare_with_batches_is_not_the_dare_that_is_compared(home):
    more = [("dare", (0.2, 0.95, 0.1), {"batches": 5})]
    recorded = RecordedRuns([made_up(home, more=more)])
    rows = verdict(recorded, "digits", "lenet")
    expected = verdict(RecordedRuns([made_up(home / "plain")]), "digits", "lenet")
    pd.testing.assert_frame_equal(rows, expected)
    table = differences_table(recorded, "selected").set_index(["method", "attack"])
    assert table.loc[("dare batches 5", "mean"), "difference"] == pytest.approx(50)
    cells = robustness_table(recorded.chosen["selected"])
    assert "dare batches 5" in set(cells["label"]) and wins(cells) == (3, 3)
    assert "dare batches 5" in set(recorded.all_compared["label"])


def test_figures_also_show_models_at_whose_setting_dare_was_not_run(home):
    more = [("control-noise", (0.3, 0.95, 0.3), {"per": 0.05})]
    recorded = RecordedRuns([made_up(home, more=more)])
    rows = verdict(recorded, "digits", "lenet").set_index("compared_with")
    assert rows.loc["control-noise", "difference"] == pytest.approx(30)
    assert "control-noise per 0.05" in set(recorded.all_compared["label"])


def test_claims_have_a_row_for_every_setting(home):
    """The chosen layer of every network is the same setting, whatever its name."""
    layers = {"alexnet": "conv5", "lenet": "conv3", "own": "conv3"}
    folders = []
    for model, layer in layers.items():
        more = [(name, PLAIN[name], {"per": 0.5}) for name in ("dare", "control-self")]
        folders.append(made_up(home, model=model, more=more))
        change = moved("choose_layer", layer, LAYERED)
        change(pd.read_csv(folders[-1] / "robustness.csv")).to_csv(
            folders[-1] / "robustness.csv", index=False
        )
    table = claims_table(RecordedRuns(folders), published_means())
    rows = table[table["decides"] & (table["model"] == OTHERS)]
    rows = rows.set_index(["compared_with", "setting"])["cells"]
    assert set(rows.index.unique("setting")) == {"", "per 0.5"}
    assert rows["control-self", ""] == rows["control-self", "per 0.5"] == 3
    assert rows["control-finetune", "per 0.5"] == 3
    assert ("control-single", "per 0.5") not in rows.index
