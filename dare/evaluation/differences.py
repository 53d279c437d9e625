"""DARE minus every other method on the same samples: differences, intervals and tests."""

import numpy as np
import pandas as pd

from dare.evaluation.intervals import holm, mcnemar, paired_bootstrap, wilcoxon
from dare.evaluation.runs import KEYS, WITHOUT_RUNS, methods_in_order, models_of, of_network, paired

RUNS_NEEDED = 6  # of a two-sided signed-rank test: with fewer, no outcome has p < 0.05


def differences_table(recorded, rule):
    """One row a network, method and attack, and "mean", that over the attacks.

    The test is McNemar's for a single run and Wilcoxon's signed-rank test over runs, exact and
    two-sided, where there are RUNS_NEEDED; p_holm corrects all tests of a network.

    Returns a DataFrame with the columns dataset, model, rule, method, attack, runs, difference,
    low, high (points, 95%), test, p, p_holm.
    """
    tables = []
    for dataset, model in recorded.networks():
        chosen = of_network(recorded.chosen[rule], dataset, model)
        attacks, dare = recorded.attacks(dataset, model), models_of(chosen, "dare")
        read = recorded.reader(attacks)
        rows = []
        for method in methods_in_order(chosen["label"]) if attacks else ():
            if method not in ("dare", "original"):
                sides = paired(dare, models_of(chosen, method), read, method in WITHOUT_RUNS)
                rows += compare(*sides, attacks, method) if sides[0] else []
        tables.append(corrected(rows, dataset, model, rule))
    return pd.concat(tables, ignore_index=True)


def compare(first, second, attacks, method):
    """Rows of the table for two methods: lists of arrays (runs, images, attacks), one a source."""
    estimates = 100 * np.stack(paired_bootstrap(first, second), axis=1)
    runs = sum(len(values) for values in first)
    rows = []
    for i, attack in enumerate([*attacks, "mean"]):
        row = {"method": method, "attack": attack, "runs": runs}
        row |= dict(zip(("difference", "low", "high"), estimates[i], strict=True))
        if attack == "mean":
            test, p = "interval only", np.nan
        else:
            test, p = significance([v[:, :, i] for v in first], [v[:, :, i] for v in second])
        rows.append(row | {"test": test, "p": p})
    return rows


def significance(first, second):
    """(name of the test, its p) of two methods under one attack: lists of (runs, images)."""
    runs = sum(len(values) for values in first)
    if runs == 1:
        a, b = first[0][0], second[0][0]
        present = np.isfinite(a)
        return "McNemar", mcnemar(a[present], b[present])
    if runs < RUNS_NEEDED:
        return f"none: {runs} runs, {RUNS_NEEDED} needed", np.nan
    per_run = (np.concatenate([np.nanmean(v, axis=1) for v in side]) for side in (first, second))
    return "Wilcoxon", wilcoxon(*per_run)


def paper_differences(runs):
    """The same from the paper's runs, with its one-sided, approximate Wilcoxon test.

    The interval draws source models and runs again: there are no images.
    """
    tables = []
    for (dataset, model), here in runs.groupby(KEYS, sort=False):
        wide = here.pivot(
            index=["attack", "source", "run"], columns="label", values="empirical_robustness"
        )
        rows = []
        for attack, values in wide.groupby("attack"):
            for method in methods_in_order(set(wide.columns) - {"dare"}):
                pairs = values[["dare", method]].dropna()
                sources = [of_one.to_numpy() for _, of_one in pairs.groupby("source")]
                sides = ([of_one[:, i, None, None] for of_one in sources] for i in (0, 1))
                estimate = (float(v[0]) for v in paired_bootstrap(*sides))
                row = {"method": method, "attack": attack, "runs": len(pairs)}
                row |= dict(zip(("difference", "low", "high"), estimate, strict=True))
                p = wilcoxon(pairs["dare"], pairs[method], "greater", approximate=True)
                rows.append(row | {"test": "Wilcoxon, one-sided, approximate", "p": p})
        tables.append(corrected(rows, dataset, model, "paper"))
    return pd.concat(tables, ignore_index=True)


def corrected(rows, dataset, model, rule):
    """A network's rows as a DataFrame, with p_holm over all of them."""
    about = {"dataset": dataset, "model": model, "rule": rule}
    table = pd.DataFrame([about | row for row in rows])
    return table.assign(p_holm=holm(table["p"])) if rows else table
