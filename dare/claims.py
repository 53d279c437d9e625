"""The paper's claims, and what became of them over all recorded networks.

Called by dare/tables.py. Every claim is a difference, DARE minus another method, on the same
images; a cell is a network and data set. It is measured by two rules: at each method's most robust
epoch ("selected", as in the paper's tables) and at the epochs that the verdict compares
("compared", at most 1 point of clean accuracy lost).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dare.intervals import draws, interval, plain_means, resampled_means
from dare.runs import LOSS_ALLOWED, WITHOUT_RUNS, of_network, paired
from dare.verdict import answer_of, is_unmoved, judged_models, lowest_accuracy, reason

BEST = "the best at-*"  # of the cell, by its mean over attacks
ALL = "all"  # data set and network of the row over all cells


@dataclass
class Claim:
    """DARE minus `other`, of `measure` ("robustness", "clean" or "adaptive"), decided by a rule."""

    title: str
    other: str
    measure: str = "robustness"
    decides: str = "compared"

    @property
    def rules(self):
        """At epochs that lose at most a point, clean accuracy is kept by construction."""
        return ("selected",) if self.measure == "clean" else ("selected", "compared")


CLAIMS = (
    Claim("DARE is better than adversarial training", BEST, decides="selected"),
    Claim("clean accuracy is kept: at most 1 point lost", "original", "clean", "selected"),
    Claim("slicing matters", "dare-s"),
    Claim("the transformation matters", "dare-sl"),
    Claim("an inner layer is better than the last", "dare-last"),
    Claim("regression beats plain fine-tuning", "control-finetune"),
    Claim("the mined history matters", "control-self"),
    Claim("the choice per image matters", "control-single"),
    Claim("DARE is better than an untouched earlier epoch", "control-checkpoint"),
    Claim("DARE is better than another training", "control-seed"),
    Claim("DARE is more robust when attacked itself", "original", "adaptive"),
)


@dataclass
class Cell:
    """A claim in one network: the difference in points and its resampled values (resamples,).

    why_not: None, or why the two methods cannot be compared here.
    """

    dataset: str
    model: str
    difference: float
    resampled: np.ndarray
    why_not: str | None


def claims_table(recorded, published):
    """A row for every claim, rule and cell, and one over the cells that can be compared.

    published: {(dataset, model, method, attack, also "clean" and "mean"): the paper's mean}.

    Returns a DataFrame with the columns claim, minus, rule, decides (whether it is the rule that
    decides the claim), dataset, model ("all" in the row over cells), difference, low, high (points,
    95%), answer (yes, no, undecided), why_not; and of rows over cells, cells (that compare), holds
    (those with a yes), paper (the difference in the paper's figures). No row where no cell was
    measured.
    """
    tables = {"selected": recorded.chosen["selected"], "compared": recorded.compared()}
    rows = []
    for claim in CLAIMS:
        for rule in claim.rules:
            here = {n: of_network(tables[rule], *n) for n in recorded.networks()}
            found = [measure(recorded, claim, rule, *network, of) for network, of in here.items()]
            cells = [cell for cell in found if cell is not None]
            of_cells = [row_of_cell(claim, cell) for cell in cells]
            over = [row_over_cells(claim, cells, of_cells, published)] if cells else []
            about = {"claim": claim.title, "minus": claim.other, "rule": rule}
            about |= {"decides": rule == claim.decides}
            rows += [about | row for row in (*of_cells, *over)]
    return pd.DataFrame(rows)


def measure(recorded, claim, rule, dataset, model, rows):
    """The Cell of a claim in one network (rows: its models of a rule), or None: not measured."""
    other = best_baseline(rows) if claim.other == BEST else claim.other
    judged = {name: judged_models(rows, name) for name in ("dare", other)}
    if not all(judged.values()):
        return None
    transferred = recorded.reader(recorded.attacks(dataset, model))
    read = {"robustness": transferred, "adaptive": recorded.adaptive, "clean": recorded.clean}
    models = [of_method.models for of_method in judged.values()]
    sides = paired(*models, read[claim.measure], shared=other in WITHOUT_RUNS)
    if not sides[0]:
        return None
    differences = [a - b for a, b in zip(*sides, strict=True)]
    unmoved = other != "original" and is_unmoved(judged[other], transferred)
    allowed = LOSS_ALLOWED if rule == "compared" else np.inf
    why_not = reason(lowest_accuracy(dataset), judged, unmoved, allowed)
    resampled = 100 * resampled_means(differences).mean(axis=1)
    return Cell(dataset, model, 100 * plain_means(differences).mean(), resampled, why_not)


def best_baseline(rows):
    """The adversarial training with the highest mean over attacks, "" where there is none."""
    baselines = rows[rows["label"].str.startswith("at-")]
    means = baselines.groupby("label")["empirical_robustness"].mean()
    return means.idxmax() if len(means) else ""


def row_of_cell(claim, cell):
    low, high = interval(cell.resampled)
    answer = "undecided" if cell.why_not else answer_to(claim, low, high)
    row = {"dataset": cell.dataset, "model": cell.model, "difference": cell.difference}
    return row | {"low": low, "high": high, "answer": answer, "why_not": cell.why_not}


def row_over_cells(claim, cells, rows, published):
    """The mean over the cells that compare; its interval draws cells again, too.

    A yes needs, besides the interval, two cells and a yes of more than half of them.
    """
    cells = [cell for cell in cells if cell.why_not is None]
    holds = sum(row["answer"] == "yes" for row in rows)
    row = {"dataset": ALL, "model": ALL, "cells": len(cells), "holds": holds}
    row |= {"paper": paper_difference(claim, published), "answer": "undecided"}
    if not cells:
        return row
    resampled = np.stack([cell.resampled for cell in cells], axis=1)
    weight = draws(len(cells), len(cells), len(resampled), np.random.default_rng(0)) / len(cells)
    low, high = interval((weight * resampled).sum(axis=1))
    answer = answer_to(claim, low, high)
    if answer == "yes" and (len(cells) == 1 or 2 * holds <= len(cells)):
        answer = "undecided"
    difference = np.mean([cell.difference for cell in cells])
    return row | {"difference": difference, "low": low, "high": high, "answer": answer}


def answer_to(claim, low, high):
    """yes, no or undecided; clean accuracy is kept where at most LOSS_ALLOWED points are lost."""
    if claim.measure == "clean":
        low, high = low + LOSS_ALLOWED, high + LOSS_ALLOWED
        return "no" if high < 0 else answer_of(low, high)
    return answer_of(low, high)


def paper_difference(claim, published):
    """The same difference in the paper's own figures, mean over its cells; NaN: not in them."""
    name = "clean" if claim.measure == "clean" else "mean"
    methods = {method for _, _, method, _ in published}
    others = [m for m in methods if m.startswith("at-")] if claim.other == BEST else [claim.other]
    if claim.measure == "adaptive" or not methods.intersection(others):
        return np.nan
    cells = {(dataset, model) for dataset, model, _, _ in published}
    best = [max(published.get((*c, m, name), -np.inf) for m in others) for c in cells]
    return np.mean([published[*c, "dare", name] - b for c, b in zip(cells, best, strict=True)])
