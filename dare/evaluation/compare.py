"""DARE minus another method on the same images: what each component of DARE is worth.

1. An image's difference is the mean of (DARE right) minus (other right) over the attacks that have
   a sample of the image, in points.
2. A network's difference is the mean over images, with Student's 95% interval (paired_difference).
3. The difference over networks is the mean of theirs, with Student's interval (over_networks).

Networks are few and share images, so all of it describes these runs and tests nothing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dare.evaluation.results import NETWORK, of_network
from dare.methods import METHODS, unseen_splits

BEST = "best at-*"  # the adversarial training with the highest mean on the validation samples
ALL = "all"  # data set and model of the rows over networks
RUNS_NEEDED = 6  # of Wilcoxon's test: with fewer, no outcome has a two-sided p below 0.05


@dataclass(frozen=True)
class Comparison:
    """A component of DARE, the method that lacks it, and the kind of score (Results.parts)."""

    component: str
    other: str
    kind: str = "robustness"


COMPARISONS = (
    Comparison("adversarial training", BEST),
    Comparison("clean accuracy", "original", "clean"),
    Comparison("mined history", "control-self"),
    Comparison("best checkpoint", "control-random"),
    Comparison("regression", "control-finetune"),
    Comparison("transformation", "dare-sl"),
    Comparison("inner layer", "dare-last"),
    Comparison("slicing", "dare-s"),
    Comparison("beyond batch normalisation", "control-batchnorm"),
    Comparison("beyond averaged epochs", "control-swa"),
    Comparison("another training seed", "control-seed"),
    Comparison("adaptive attack", "original", "adaptive"),
)
MORE_ADAPTIVE = tuple(
    Comparison("adaptive attack", other, "adaptive") for other in ("control-finetune", "at-pgd")
)


def comparisons_table(results):
    """table_comparisons.csv: every comparison in every network, and over networks.

    Returns:
        DataFrame with the columns component, other, method (of `best at-*`: which one), kind,
        dataset, model (both "all" over networks), seeds, images, difference, low, high (in points,
        95%), clean_difference, heldout_difference (the same on clean images, and on samples of test
        images), originals (in how many cells the other model is the original itself), cells,
        lowest, highest, ahead (in how many cells the difference is above 0). A network with several
        training seeds has a row for each after its own.
    """
    rows = []
    for comparison in (*COMPARISONS, *MORE_ADAPTIVE):
        cells = []
        for network in results.networks:
            found = network_rows(results, network, comparison)
            rows += found
            cells += found[:1]
        if cells and len(results.networks) > 1:
            rows.append(over_networks(comparison, pd.DataFrame(cells)))
    columns = "component other method kind dataset model seeds images difference low high"
    columns += " clean_difference heldout_difference originals cells lowest highest ahead"
    return pd.DataFrame(rows).reindex(columns=columns.split())


def network_rows(results, network, comparison):
    """The rows of one comparison in a network: of all its seeds, and of each if it has several."""
    last = of_network(results.attacked if comparison.kind == "adaptive" else results.last, network)
    method, splits = comparison.other, None
    if method == BEST:  # chosen on the validation samples
        method, splits = best_adversarial_training(results, network), ("test",)
    if method is None:
        return []
    splits = splits or unseen_splits("dare", method)
    models = [results.models(last, name) for name in ("dare", method)]
    kinds = comparison.kind, "clean", "heldout"
    pairs = {kind: pairs_by_study(results, models, kind, splits) for kind in kinds}

    def difference(kind, studies):
        found = [pairs[kind][study] for study in studies if study in pairs[kind]]
        return paired_difference(found) if len(found) == len(studies) else {"difference": np.nan}

    studies = list(pairs[comparison.kind])
    first = last[last["method"] == method].drop_duplicates("study").set_index("study")
    about = {"component": comparison.component, "other": comparison.other, "method": method}
    about |= {"kind": comparison.kind, "dataset": network[0], "model": network[1]}
    about["originals"] = int(first.loc[studies, "is_original"].all())
    groups = [studies, *([s] for s in studies if len(studies) > 1)] if studies else []
    return [
        about
        | {"seeds": ", ".join(map(str, first.loc[group, "seed"]))}
        | difference(comparison.kind, group)
        | {f"{kind}_difference": difference(kind, group)["difference"]
           for kind in ("clean", "heldout")}
        for group in groups
    ]  # fmt: skip


def pairs_by_study(results, models, kind, splits):
    """{study: Results.right of both methods}, of the studies in which both were scored.

    models: of Results.models, for each of two methods. kind, splits: as in Results.parts.
    """
    pairs = {}
    for study in sorted(set(models[0]) & set(models[1])):
        parts = results.parts(study, kind, splits)
        pair = [results.right(study, of_method[study], parts) for of_method in models]
        if all(right is not None for right in pair):
            pairs[study] = pair
    return pairs


def best_adversarial_training(results, network):
    """The at-* with the highest mean over attacks and seeds on the validation samples, or None."""
    rows = of_network(results.last, network)
    rows = rows[(rows["split"] == "validation") & rows["method"].str.startswith("at-")]
    means = rows.groupby("method")["empirical_robustness"].mean()
    return means.idxmax() if len(means) else None


# ------------------------------------------------------------------------------------- statistics


def paired_difference(pairs):
    """One difference, DARE minus another method in a network.

    For every source image the mean over the attacks of (DARE right) minus (other right), one number
    an image, so that attacks on the same image are no independent evidence; the mean over images,
    and its 95% interval by Student's t over the images. Of several training seeds the mean of
    theirs.

    pairs: for every training seed, Results.right of DARE and of the other method: DataFrames with a
        row an image and a column an attack, 1 right or 0 wrong, the mean over runs.
    Returns {"images", "difference", "low", "high"}, in points.
    """
    differences = [100 * (dare - other).mean(axis=1).dropna() for dare, other in pairs]
    values = one_number_an_image(differences)
    difference, low, high = mean_with_interval(values)
    return {"images": len(values), "difference": difference, "low": low, "high": high}


def one_number_an_image(differences):
    """One number for each image of several training seeds, float (images,).

    differences: a Series by image for every seed. Their mean is the mean of the seeds' means. An
    image that several seeds share counts once, so that it is no independent evidence twice.
    """
    mean = np.mean([values.mean() for values in differences])
    around = [(v - v.mean()) / (len(differences) * len(v)) for v in differences]
    of_image = pd.concat(around).groupby(level=0).sum().to_numpy()
    return mean + len(of_image) * of_image


def mean_with_interval(values):
    """(mean, low, high): Student's t, 95%; the interval is NaN for one or two values."""
    values = np.asarray(values, float)
    if len(values) < 3:  # two say next to nothing about their spread
        return values.mean(), np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean(), values.mean() - half, values.mean() + half


def over_networks(comparison, cells):
    """The row over networks; cells: their rows as a DataFrame."""
    difference, low, high = mean_with_interval(cells["difference"])
    return {
        "component": comparison.component, "other": comparison.other, "kind": comparison.kind,
        "dataset": ALL, "model": ALL,
        "difference": difference, "low": low, "high": high,
        "clean_difference": cells["clean_difference"].mean(),
        "heldout_difference": cells["heldout_difference"].mean(),
        "originals": cells["originals"].sum(), "cells": len(cells),
        "lowest": cells["difference"].min(), "highest": cells["difference"].max(),
        "ahead": int((cells["difference"] > 0).sum()),
    }  # fmt: skip


def wilcoxon_table(rows):
    """The paper's own test: is DARE ahead of a method over RUNS_NEEDED runs or more?

    Wilcoxon's signed-rank test, one-sided, with the normal approximation, as the authors have it.

    rows: with NETWORK, study, run, method, attack and empirical_robustness in %, a row a run.
    Returns DataFrame with the columns dataset, model, attack, method, runs, difference, p_value.
    """
    tests = []
    for key, of_attack in rows.groupby([*NETWORK, "attack"], sort=False):
        if of_attack.groupby("method").size().max() < RUNS_NEEDED:
            continue
        runs = of_attack.pivot_table(
            index=["study", "run"], columns="method", values="empirical_robustness"
        )
        for method in sorted(set(runs) - {"dare", "original"} if "dare" in runs else ()):
            pairs = runs[["dare", method]].dropna()
            difference = pairs["dare"] - pairs[method]
            if len(pairs) >= RUNS_NEEDED and difference.any():
                p = stats.wilcoxon(difference, alternative="greater", method="approx").pvalue
                row = dict(zip((*NETWORK, "attack"), key, strict=True)) | {"method": method}
                tests.append(row | {"runs": len(pairs)} | {"difference": difference.mean()})
                tests[-1]["p_value"] = p
    return pd.DataFrame(tests)


# ------------------------------------------------------------------------- agreement with the paper


def scenario_means(rows):
    """Mean robustness over runs and seeds: a row a scenario (dataset, model, attack), by method.

    Only the methods that a scenario of the paper has: DARE and the adversarial trainings.
    """
    compared = [m for m in METHODS if m == "dare" or m.startswith("at-")]
    rows = rows[rows["method"].isin(compared)]
    return rows.pivot_table(
        index=[*NETWORK, "attack"], columns="method", values="empirical_robustness"
    )


def agreement(ours, theirs):
    """How our results agree with the paper's on the scenarios and methods that both have.

    ours, theirs: of scenario_means. A scenario needs DARE and a rival.

    Returns {"scenarios", "means" (number of them), "rank_correlation" (Spearman's, of the means),
    "same_winner", "dare_ours", "dare_theirs" (in how many scenarios it has the highest mean)}; {}
    if there is no such scenario.
    """
    methods = [m for m in theirs if m in ours]
    if "dare" not in methods or len(methods) < 2:
        return {}
    scenarios = ours.index.intersection(theirs.index)
    ours, theirs = (t.loc[scenarios, methods].dropna(subset="dare") for t in (ours, theirs))
    both = ours.index[ours.drop(columns="dare").notna().any(axis=1)]
    if not len(both):
        return {}
    ours, theirs = ours.loc[both], theirs.loc[both].where(ours.loc[both].notna())
    winners = ours.idxmax(axis=1), theirs.idxmax(axis=1)
    means = pd.DataFrame({"ours": ours.stack(), "theirs": theirs.stack()}).dropna()
    return {
        "scenarios": len(both),
        "means": len(means),
        "rank_correlation": float(stats.spearmanr(means).statistic),
        "same_winner": int((winners[0] == winners[1]).sum()),
        "dare_ours": int((winners[0] == "dare").sum()),
        "dare_theirs": int((winners[1] == "dare").sum()),
    }
