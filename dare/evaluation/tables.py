"""The tables of the report, as numbers: robustness, learning rates, optimism."""

import numpy as np
import pandas as pd

from dare.evaluation.intervals import bootstrap, wilson
from dare.evaluation.runs import (
    NETWORK,
    TABLE_RULES,
    dare_rows,
    models_of,
    of_network,
    paper_accuracy,
    paper_runs,
)
from dare.evaluation.scores import loses_too_much
from dare.methods import family


def robustness_table(runs, recorded=None):
    """The robustness tables: a row for each network, method and attack.

    Args:
        runs: selected rows of the test part.
        recorded: RecordedRuns, for the intervals of the mean; None: without these.

    Returns:
        DataFrame with the columns dataset, model, label, method, setting, batches, attack (also
        "mean", over the attacks), runs, n, mean, std (over runs), low, high (95%: Wilson's of a
        single run; of "mean" by bootstrap over images), clean, change (of clean accuracy, points),
        loses (more than 1 point), best (of the rows that do not lose more). In %.
    """
    keys = [*NETWORK, "label", "method", "setting", "batches"]
    runs = runs.assign(n=runs.get("n", np.nan))
    averaged = runs if recorded is None else runs[is_shared_attack(runs, recorded)]
    by_run = averaged.groupby([*keys, "folder", "run"], sort=False, dropna=False)
    means = by_run["empirical_robustness"].mean().reset_index().assign(attack="mean", n=np.nan)
    cells = pd.concat([runs, means]).groupby([*keys, "attack"], sort=False, dropna=False)
    cells = cells.agg(
        runs=("empirical_robustness", "count"), n=("n", "mean"),
        mean=("empirical_robustness", "mean"), std=("empirical_robustness", "std"),
    ).reset_index()  # fmt: skip
    models = runs.drop_duplicates([*keys, "folder", "run"]).groupby(keys, dropna=False)
    clean = models[["test_accuracy", "change"]].mean().rename(columns={"test_accuracy": "clean"})
    cells = cells.merge(clean, on=keys)
    add_intervals(cells, runs, recorded)
    cells["loses"] = loses_too_much(cells["change"])
    may_win = cells["mean"].where(~cells["loses"] & (cells["method"] != "original"))
    best = may_win.groupby([cells[key] for key in (*NETWORK, "attack")]).transform("max")
    cells["best"] = may_win.eq(best)
    return cells


def is_shared_attack(runs, recorded):
    """Whether all studies of a row's network have samples of its attack, bool (rows,)."""
    shared = {network: recorded.attacks(*network) for network in recorded.networks()}
    columns = (runs[name] for name in (*NETWORK, "attack"))
    return [attack in shared[tuple(network)] for *network, attack in zip(*columns, strict=True)]


def add_intervals(cells, runs, recorded):
    """Set the columns low and high of the robustness table."""
    low, high = wilson(cells["mean"] * cells["n"] / 100, cells["n"])
    is_single = (cells["runs"] == 1) & (cells["method"] != "original")
    cells["low"] = np.where(is_single, 100 * low, np.nan)
    cells["high"] = np.where(is_single, 100 * high, np.nan)
    if recorded is None:
        return
    for row in cells[cells["attack"] == "mean"].itertuples():
        if row.method != "original":
            rows = of_network(runs[runs["label"] == row.label], row.dataset, row.model)
            interval = mean_interval(recorded, rows, row.dataset, row.model)
            cells.loc[row.Index, ["low", "high"]] = interval


def mean_interval(recorded, rows, dataset, model):
    """95% interval in % of the mean over attacks of a method's models, over images and runs."""
    attacks = recorded.attacks(dataset, model)
    if not attacks:
        return [np.nan, np.nan]
    sources = [
        np.stack([recorded.right(folder, digest, attacks) for digest in runs.values()])
        for folder, runs in models_of(rows).items()
    ]
    _, low, high = bootstrap(sources)
    return [100 * low[-1], 100 * high[-1]]


def wins(cells):
    """(scenarios that DARE wins, all scenarios).

    A scenario is a network, an attack and a setting of DARE. DARE wins if its mean is higher than
    that of every adversarial training.
    """
    cells = cells[cells["attack"] != "mean"]
    scenario = [*NETWORK, "attack"]
    dare = dare_rows(cells).set_index(scenario)["mean"]
    baselines = cells[cells["method"].map(family) == "adversarial training"]
    best = baselines.groupby(scenario)["mean"].max().rename("best")
    both = dare.to_frame("dare").join(best, how="inner").dropna()
    return int((both["dare"] > both["best"]).sum()), len(both)


def published_means():
    """{(dataset, model, method, attack): the paper's mean}; attack also "clean" and "mean"."""
    cells = robustness_table(paper_runs())
    means = cells.set_index([*NETWORK, "method", "attack"])["mean"].to_dict()
    return means | {(*key, "clean"): value for key, value in paper_accuracy().items()}


def learning_rates_table(recorded):
    """Every method and learning rate at its most robust epoch, and the selected epochs.

    Mean robustness over attacks and clean accuracy, as selection saw them and as they are reported.
    Only selected epochs are reported.
    """
    keys = [*NETWORK, "source", "label", "run", "lr_rate", "epoch"]
    clean = {"selection_accuracy": "clean, selection", "test_accuracy": "clean, reported"}
    rows = recorded.rows[recorded.rows["method"] != "original"]
    by_model = rows.groupby([*keys, "split"], sort=False, dropna=False)["empirical_robustness"]
    models = by_model.mean().unstack("split").reindex(columns=["validation", "test"])
    marks = rows.drop_duplicates(keys)[[*keys, *clean, *TABLE_RULES]]
    models = models.reset_index().merge(marks, on=keys)
    is_selected = models[[*TABLE_RULES]].any(axis=1)
    models.loc[~is_selected, ["test", "test_accuracy"]] = np.nan
    best = models.groupby(keys[:-1], sort=False, dropna=False)["validation"].transform("max")
    table = models[models["validation"].eq(best) | is_selected]
    for rule in TABLE_RULES:
        table = table.assign(**{rule: np.where(table[rule], "yes", "")})
    return table.rename(columns={"label": "method", "test": "reported"} | clean)


def optimism_table(recorded):
    """How much better the most robust epoch is where it was selected than where it is reported.

    A method with many candidates gains more from the luck of the validation part.

    Returns:
        DataFrame with the columns dataset, model, method (its label), candidates (epochs and rates,
        mean over runs), validation, test (mean robustness of the selected epoch, in %), optimism
        (their difference in points).
    """
    rows = recorded.rows[recorded.rows["method"] != "original"]
    of_run = [*NETWORK, "label", "folder", "run"]
    seen = rows[rows["split"] == "validation"]
    candidates = seen.groupby(of_run, sort=False)["sha256"].nunique().rename("candidates")
    selected = rows[rows["selected"]].groupby([*of_run, "split"])["empirical_robustness"].mean()
    table = selected.unstack("split").join(candidates).groupby([*NETWORK, "label"]).mean()
    table = table.reset_index().rename(columns={"label": "method"})
    table["optimism"] = table["validation"] - table["test"]
    return table[[*NETWORK, "method", "candidates", "validation", "test", "optimism"]]
