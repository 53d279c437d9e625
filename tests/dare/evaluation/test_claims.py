"""The comparisons over all networks."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up import PLAIN, made_up

from dare.evaluation import claims, comparisons, intervals, tables
from dare.evaluation.runs import RecordedRuns


def claimed(home, *changes, seeds=1):
    """claims_table of made-up networks "a", "b", ... by what is subtracted, rule and network.

    changes: what methods of each network do otherwise than in PLAIN.
    """
    folders = [
        made_up(home, PLAIN | changed, model=name, seed=seed)
        for name, changed in zip("abc", changes, strict=False)
        for seed in range(seeds)
    ]
    table = claims.claims_table(RecordedRuns(folders), tables.published_means())
    return table.set_index(["compared_with", "rule", "model"]).sort_index()


def test_claims_over_three_networks(home):
    single = {"control-single": (0.5, 0.95, 0.3)}
    table = claimed(home, single, single | {"dare-s": (0.4, 0.95, 0.4)}, {})
    rows = table.loc["control-single", "compared"]
    assert rows["difference"].to_dict() == pytest.approx({"a": 20, "b": 20, "c": 10, "all": 50 / 3})
    assert rows.loc["all", ["measured", "cells", "cells_with_yes", "sources"]].tolist() == [
        3,
        3,
        3,
        3,
    ]
    assert (rows["conclusion"] == "yes").all()
    low, high = rows.loc["all", ["low", "high"]]
    assert 8 < low < 50 / 3 < high < 23 and high - low > 5
    # One network of three says yes: nothing holds in general.
    slicing = table.loc["dare-s", "compared"]
    assert slicing.loc["b", "conclusion"] == "yes" and slicing.loc["a", "conclusion"] != "yes"
    assert (
        slicing.loc["all", "conclusion"] == "undecided"
        and slicing.loc["all", "cells_with_yes"] == 1
    )
    adaptive = table.loc["original", "compared"].loc["all"]
    assert adaptive["difference"] == pytest.approx(10) and adaptive["conclusion"] == "yes"


def test_two_networks_are_too_few_for_an_answer(home):
    for other in {}, {"dare": (0.3, 0.95, 0.2)}:
        rows = claimed(home / str(len(other)), other, other).loc["control-checkpoint", "compared"]
        assert len(set(rows.loc[["a", "b"], "conclusion"]) - {"undecided"}) == 1
        assert rows.loc["all", "conclusion"] == "undecided"


def test_a_majority_is_needed_whatever_the_interval_says(home, monkeypatch):
    """Two cells of a huge and one of no difference: the interval of the mean alone is no yes."""
    large = {"dare-s": (0.1, 0.95, 0.4)}
    monkeypatch.setattr(claims, "draws", lambda n, *_: np.ones((intervals.RESAMPLES, n)))
    rows = claimed(home, large, {}, {}).loc["dare-s", "compared"]
    assert rows.loc["all", "low"] > 0 and rows.loc["all", "conclusion"] == "undecided"


def test_cells_are_drawn_independently_of_their_seeds(home):
    """Three networks of three seeds: every cell is as wide alone, the mean is narrower."""
    rows = claimed(home, {}, {}, {}, seeds=3).loc["control-checkpoint", "compared"]
    widths = rows["high"] - rows["low"]
    assert rows.loc["all", "sources"] == 9 and rows.loc["a", "sources"] == 3
    assert 0.4 * widths["a"] < widths["all"] < 0.9 * widths["a"]


def test_claims_leave_out_what_does_not_compare(home):
    unmoved, lossy = {"control-self": (0.0, 0.95, 0.3)}, {"control-finetune": (0.3, 0.9, 0.3)}
    table = claimed(home, unmoved, lossy, {})
    history = table.loc["control-self", "compared"]
    assert "is the original" in history.loc["a", "reason"]
    assert history.loc["all", ["measured", "cells"]].tolist() == [3, 2]
    assert history.loc["all", "difference"] == pytest.approx(10)
    # Who lost clean accuracy compares only where the most robust epochs do.
    finetune = table.loc["control-finetune"]
    assert finetune.loc[("compared", "all"), "cells"] == 2
    assert finetune.loc[("selected", "all"), "cells"] == 3
    assert finetune.loc[("selected", "all"), "difference"] == pytest.approx(20)


def test_a_useless_dare_counts_against_the_paper_s_claims(home):
    broken = {"dare": (0.1, 0.1, 0.1)}
    table = claimed(home, broken, broken, broken)
    against = table.loc[(comparisons.BEST, "selected", "all")]
    assert against["cells"] == 3 and against["conclusion"] == "no"
    assert table.loc[(comparisons.BEST, "compared", "all"), "cells"] == 0


def test_the_best_baseline_is_chosen_on_the_validation_part(home):
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.95, 0.5), "at-bim": (0.65, 0.9, 0.5)})
    rows = pd.read_csv(folder / "robustness.csv")
    best = (rows["method"] == "at-pgd") & (rows["split"] == "validation")
    rows.loc[best, "empirical_robustness"] = 90
    rows.to_csv(folder / "robustness.csv", index=False)
    recorded = RecordedRuns([folder])
    chosen = recorded.chosen["selected"]
    assert comparisons.best_baseline(recorded, chosen, is_fair=False) == "at-pgd"
    rows.loc[best, "empirical_robustness"] = 10
    rows.to_csv(folder / "robustness.csv", index=False)
    recorded = RecordedRuns([folder])
    assert comparisons.best_baseline(recorded, chosen, is_fair=False) == "at-bim"
    assert comparisons.best_baseline(recorded, chosen, is_fair=True) == "at-fgsm"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.9, 0.5, "yes"), (-1.5, -0.3, "undecided"), (-3.0, -1.1, "no")]
)
def test_the_claim_that_clean_accuracy_is_kept(low, high, expected):
    kept = next(c for c in comparisons.COMPARISONS if c.quantity == "clean")
    difference = comparisons.Difference(0, low, high, None, 1)
    assert comparisons.conclusion(difference, kept.quantity)[0] == expected
    assert claims.rules_of(kept) == ("selected",)


def test_the_change_of_clean_accuracy(home):
    lost = {"dare": (0.7, 0.8, 0.4)}
    rows = claimed(home, lost, lost, lost).loc["original", "selected"].loc["all"]
    kept = rows[rows["component"].str.startswith("clean")].iloc[0]
    assert kept["difference"] == pytest.approx(-15, abs=0.2) and kept["conclusion"] == "no"


def test_claims_of_the_paper_s_figures(home):
    """DARE minus the best adversarial training of every cell, mean over the nine."""
    cells = pd.read_csv(ROOT / "dare/paper/robustness.csv")
    means = cells.groupby(["dataset", "model", "method", "attack"])["empirical_robustness"].mean()
    means = means.groupby(["dataset", "model", "method"]).mean().unstack("method")
    expected = (means["dare"] - means.drop(columns="dare").max(axis=1)).mean()
    table = claimed(home, {})
    assert table.loc[(comparisons.BEST, "selected", "all"), "paper"] == pytest.approx(expected)
