"""DARE minus every other method under every attack, with the tests of their significance."""

import numpy as np
import pandas as pd

from dare.evaluation.intervals import holm, mcnemar, paired_bootstrap, wilcoxon
from dare.evaluation.runs import NETWORK, dare_rows, labels_in_order, of_network, paired

RUNS_NEEDED = 6  # of a two-sided signed-rank test: with fewer, no outcome has p < 0.05


def differences_table(recorded, rule):
    """One row for each network, setting of DARE, method and attack; "mean" is over the attacks.

    The test is McNemar's for a single run, and Wilcoxon's signed-rank test over at least
    RUNS_NEEDED runs, two-sided. p_holm corrects all tests of a network and setting.

    Returns:
        DataFrame with the columns dataset, model, rule, setting, method (its label), attack, runs,
        n (samples), difference, low, high (points, 95%), test, p, p_holm.
    """
    tables = []
    for network in recorded.networks():
        chosen = of_network(recorded.chosen[rule], *network)
        attacks = recorded.attacks(*network)
        for setting in recorded.settings(*network) if attacks else ():
            at_setting = chosen[setting.matches(chosen)]
            rows = rows_of_setting(at_setting, recorded, attacks)
            tables.append(corrected(rows, network, rule, setting.text))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def rows_of_setting(chosen, recorded, attacks):
    """DARE minus every other method among the chosen rows of a network and setting.

    On all samples that neither method has seen.
    """
    dare = dare_rows(chosen)
    others = chosen.drop(dare.index)
    others = others[others["method"] != "original"]
    rows = []
    for label in labels_in_order(others):
        other = others[others["label"] == label]
        read = recorded.right_under(attacks, "dare", other["method"].iloc[0])
        first, second = paired(dare, other, read)
        rows += compare(first, second, attacks, label) if first else []
    return rows


def compare(first, second, attacks, label):
    """Rows of the table for two methods: lists of arrays (runs, images, attacks), by source."""
    estimates = 100 * np.stack(paired_bootstrap(first, second), axis=1)
    runs = sum(len(values) for values in first)
    samples = sum(np.isfinite(values[0]).sum(axis=0) for values in first)
    n = [*samples, sum(len(values[0]) for values in first)]
    rows = []
    for i, attack in enumerate([*attacks, "mean"]):
        if attack == "mean":
            test, p = "interval only", np.nan
        else:
            test, p = significance([v[:, :, i] for v in first], [v[:, :, i] for v in second])
        rows.append(difference_row(label, attack, runs, n[i], estimates[i], test, p))
    return rows


def difference_row(label, attack, runs, n, estimate, test, p):
    """One row; estimate: difference, low and high in points."""
    difference, low, high = estimate
    row = {"method": label, "attack": attack, "runs": runs, "n": n}
    return row | {"difference": difference, "low": low, "high": high, "test": test, "p": p}


def significance(first, second):
    """(name of the test, p) of two methods under one attack: lists of (runs, images)."""
    runs = sum(len(values) for values in first)
    if runs == 1:
        is_sample = np.isfinite(first[0][0])
        return "McNemar", mcnemar(first[0][0][is_sample], second[0][0][is_sample])
    if runs < RUNS_NEEDED:
        return f"none: {runs} runs, {RUNS_NEEDED} needed", np.nan
    means = [np.concatenate([np.nanmean(v, axis=1) for v in side]) for side in (first, second)]
    return "Wilcoxon", wilcoxon(*means)


def paper_differences(runs):
    """The same from the paper's runs, with its one-sided, approximate Wilcoxon test.

    The interval draws source models and runs again, because there are no images.
    """
    tables = []
    for network, of_one_network in runs.groupby(NETWORK, sort=False):
        wide = of_one_network.pivot(
            index=["attack", "source", "run"], columns="method", values="empirical_robustness"
        )
        others = [name for name in labels_in_order(of_one_network) if name != "dare"]
        rows = []
        for attack, values in wide.groupby("attack"):
            for method in others:
                pairs = values[["dare", method]].dropna()
                sources = [table.to_numpy() for _, table in pairs.groupby("source")]
                first, second = ([table[:, i, None, None] for table in sources] for i in (0, 1))
                estimate = [float(values[0]) for values in paired_bootstrap(first, second)]
                p = wilcoxon(pairs["dare"], pairs[method], "greater", approximate=True)
                test = "Wilcoxon, one-sided, approximate"
                rows.append(difference_row(method, attack, len(pairs), np.nan, estimate, test, p))
        tables.append(corrected(rows, network, "paper"))
    return pd.concat(tables, ignore_index=True)


def corrected(rows, network, rule, setting=""):
    """The rows of a network and setting as a DataFrame, with p_holm over all of them."""
    about = {"dataset": network[0], "model": network[1], "rule": rule, "setting": setting}
    table = pd.DataFrame([about | row for row in rows])
    return table.assign(p_holm=holm(table["p"])) if rows else table
