"""The tables: the paper's figures, cells, labels, differences and their significance."""

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up import ATTACKS, PLAIN, made_up, sha
from scipy import stats

from dare.evaluation import differences, runs, tables
from dare.evaluation.runs import RecordedRuns
from dare.evaluation.sections import robustness_text
from train.shared.flags import UserError


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """RecordedRuns of one study with one run."""
    return RecordedRuns([made_up(tmp_path_factory.mktemp("single"))])


def test_the_paper_s_figures_give_the_paper_s_claims():
    of_paper = runs.paper_runs()
    assert tables.wins(tables.robustness_table(of_paper)) == (22, 36)
    keys = ["model", "dataset", "attack"]
    found = differences.paper_differences(of_paper).set_index([*keys, "method"])["p"]
    published = pd.read_csv(ROOT / "dare/paper/wilcoxon.csv").set_index([*keys, "baseline"])
    assert len(published) == 88
    np.testing.assert_allclose(found[published.index], published["p_value"], rtol=1e-9)


def test_a_row_that_loses_more_than_a_point_is_marked_and_never_the_best():
    cells = tables.robustness_table(runs.paper_runs())
    assert cells["loses"].any() and not (cells["best"] & cells["loses"]).any()
    here = runs.of_network(cells, "svhn", "alexnet")
    table = robustness_text(here)
    losers = {f"{name} †" for name in here.loc[here["loses"], "method"]}
    assert {name for name in table["method"] if name.endswith("†")} == losers


def test_labels_name_what_is_not_the_default():
    def row(**changed):
        usual = {"dataset": "digits", "model": "lenet", "method": "dare", "per": 0.95}
        return usual | {"choose_layer": "conv3", "batches": np.nan} | changed

    rows = [row(per=0.5)] * 5 + [
        row(),
        row(choose_layer="conv2"),
        row(method="control-self", per=0.05, choose_layer="conv2"),
        row(method="dare-s", per=np.nan),
        row(method="dare-last", choose_layer="predictions"),
        row(method="dare-released", batches=1),
        row(method="at-pgd", per=np.nan, choose_layer=np.nan),
        row(dataset="fashion_mnist", model="vgg16", choose_layer="block4_conv3_relu"),
        row(dataset="cifar10", model="vgg16", choose_layer="block4_conv3_relu"),
    ]
    assert runs.with_labels(pd.DataFrame(rows))["label"].tolist() == ["dare per 0.5"] * 5 + [
        "dare",
        "dare at conv2",
        "control-self per 0.05 at conv2",
        "dare-s",
        "dare-last",
        "dare-released",
        "at-pgd",
        "dare",
        "dare at block4_conv3_relu",
    ]


def test_cells_are_what_the_scores_say(single):
    cells = tables.robustness_table(single.chosen["selected"], single)
    dare = cells[cells["label"] == "dare"].set_index("attack")
    assert dare["mean"].to_dict() == pytest.approx(dict.fromkeys((*ATTACKS, "mean"), 70))
    low, high = stats.binomtest(210, 300).proportion_ci(method="wilson")
    assert dare.loc["pgd", ["low", "high"]].tolist() == pytest.approx([100 * low, 100 * high])
    assert dare.loc["mean", "low"] < 70 < dare.loc["mean", "high"]
    assert dare.loc["mean", "high"] - dare.loc["mean", "low"] < 100 * (high - low)
    table = robustness_text(cells).set_index("method")
    assert table.loc["dare", "pgd, n 300"] == f"**70.0 [{100 * low:.1f}, {100 * high:.1f}]**"
    assert table.loc["original", "pgd, n 300"] == "0.0" and table.loc["dare", "change"] == "+0.0"


def test_a_control_can_be_the_best(home):
    methods = PLAIN | {"control-self": (0.8, 0.95, 0.3), "at-pgd": (0.9, 0.9, 0.5)}
    recorded = RecordedRuns([made_up(home, methods)])
    cells = tables.robustness_table(recorded.chosen["selected"], recorded)
    assert set(cells.loc[cells["best"], "method"]) == {"control-self"}
    within = tables.robustness_table(recorded.chosen["selected_within_1"], recorded)
    assert "at-pgd" not in set(within["method"])
    assert "at-pgd †" in set(robustness_text(cells)["method"])


def test_standard_deviation_over_runs(home):
    folders = [
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, seed, 2) for seed in (0, 1)
    ]
    recorded = RecordedRuns(folders)
    values = iter((60.0, 70.0, 80.0, 90.0))
    chosen = recorded.chosen["selected"].copy()
    dare = chosen[chosen["label"] == "dare"]
    for _, of_run in dare.groupby(["folder", "run"]):
        chosen.loc[of_run.index, "empirical_robustness"] = next(values)
    cells = tables.robustness_table(chosen).set_index(["method", "attack"])
    found = cells.loc[("dare", "pgd")]
    assert (found["runs"], found["mean"]) == (4, 75)
    assert found["std"] == pytest.approx(np.std([60, 70, 80, 90], ddof=1)) and np.isnan(
        found["low"]
    )


def test_differences_of_a_single_run(single):
    table = differences.differences_table(single, "selected").set_index(["method", "attack"])
    assert "original" not in table.index.unique("method")
    row = table.loc[("control-finetune", "cw")]
    sha = {m: single.rows.loc[single.rows["method"] == m, "sha256"].iloc[0] for m in PLAIN}
    scores = single.scores("digits_lenet_seed0")
    first, second = (
        np.concatenate([scores.right(sha[m], f"cw {split}") for split in ("training", "test")])
        for m in ("dare", "control-finetune")
    )
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    assert row["difference"] == pytest.approx(100 * (won - lost) / 1200)
    assert row["test"] == "McNemar" and row["p"] == pytest.approx(
        stats.binomtest(won, won + lost).pvalue
    )
    assert row["low"] < row["difference"] < row["high"]
    tested = table[table["p"].notna()]
    assert len(tested) == (len(PLAIN) - 2) * len(ATTACKS)
    smallest = tested["p"].min() * len(tested)
    assert tested["p_holm"].min() == pytest.approx(min(smallest, 1))


@pytest.mark.parametrize("run_count, test", [(1, "none: 3 runs, 6 needed"), (2, "Wilcoxon")])
def test_differences_over_runs(home, run_count, test):
    methods = {m: PLAIN[m] for m in ("original", "dare", "control-self", "control-swa")}
    folders = [made_up(home, methods, seed, run_count, n=60) for seed in range(3)]
    table = differences.differences_table(RecordedRuns(folders), "selected")
    rows = table[table["attack"] != "mean"]
    assert set(rows["test"]) == {test}
    # control-swa has one model for all runs of a source, and is paired with each.
    assert set(rows["runs"]) == {3 * run_count}
    assert rows["p"].notna().all() == (test == "Wilcoxon")
    if test == "Wilcoxon":  # DARE is 10 points better in all six runs: 2 of 64 signs are as extreme
        assert rows["p"].to_numpy() == pytest.approx(2 / 64)


def test_scores_of_other_models_are_refused(home):
    folder = made_up(home)
    with h5py.File(folder / "scores.h5", "a") as file:
        del file["models"][sha(1)]
    recorded = RecordedRuns([folder])
    with pytest.raises(UserError, match=r"scores.h5 lacks a model.*dare/test.py"):
        differences.differences_table(recorded, "selected")


def test_optimism_of_the_selection(home):
    """Three epochs of DARE, of which the luckiest on the validation part is selected."""
    folder = made_up(home)
    rows = pd.read_csv(folder / "robustness.csv")
    dare = rows[rows["method"] == "dare"]
    for epoch in 4, 5:
        other = dare[dare["split"] == "validation"].assign(epoch=epoch, sha256=str(epoch))
        other = other.assign(selected=False, selected_within_1=False, last_epoch=False)
        rows = pd.concat([rows, other])
    lucky = (rows["method"] == "dare") & rows["selected"] & (rows["split"] == "validation")
    rows.loc[lucky, "empirical_robustness"] += 6
    rows.to_csv(folder / "robustness.csv", index=False)
    table = tables.optimism_table(RecordedRuns([folder])).set_index("method")
    columns = ["candidates", "validation", "test", "optimism"]
    assert table.loc["dare", columns].tolist() == pytest.approx([3, 76, 70, 6])
    assert table.loc["control-seed", columns].tolist() == pytest.approx([1, 50, 50, 0])
