"""Claims about DARE, the paper's and those of our controls, over all recorded networks.

Called by dare/tables.py. Every claim is a difference, DARE minus another method, on the same
images; a cell is a network and data set. It is measured by two rules: at each method's most robust
epoch ("selected", as in the paper's tables) and at the epochs that the verdict compares
("compared", which lose at most 1 point of clean accuracy where there are any).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dare.evaluation.intervals import draws, interval, plain_means, resampled_means
from dare.evaluation.runs import LOSS_ALLOWED, of_network
from dare.evaluation.verdict import (
    answer_of,
    is_unmoved,
    judged_models,
    lowest_accuracy,
    paired_differences,
    reason,
)

BEST = "the best at-*"  # of the cell, by its mean over attacks on the validation part
ALL = "all"  # data set and network of the row over all cells
CELLS_NEEDED = 3  # for a yes or a no over cells


@dataclass
class Claim:
    """DARE minus `other`, of `quantity` (robustness, clean or adaptive), decided by a rule."""

    title: str
    other: str
    quantity: str = "robustness"
    decides: str = "compared"

    @property
    def rules(self):
        """Epochs that lose at most a point say nothing of whether clean accuracy is kept."""
        return ("selected",) if self.quantity == "clean" else ("selected", "compared")


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

    sources: number of source models. why_not: None, or why the two methods cannot be compared.
    """

    dataset: str
    model: str
    difference: float
    resampled: np.ndarray
    sources: int
    why_not: str | None


def claims_table(recorded, published):
    """A row for every claim, rule and cell, and one over the cells that can be compared.

    published: {(dataset, model, method, attack, also "clean" and "mean"): the paper's mean}.

    Returns a DataFrame with the columns claim, minus, rule, decides (whether it is the rule that
    decides the claim), dataset, model ("all" in the row over cells), difference, low, high (points,
    95%), answer (yes, no, undecided), sources (source models), why_not; and of rows over cells,
    measured, cells (of these, that compare), holds (of these, with a yes), paper (the difference in
    the paper's figures). No row where no cell was measured.
    """
    tables = {"selected": recorded.chosen["selected"], "compared": recorded.compared()}
    rows = []
    for claim in CLAIMS:
        for rule in claim.rules:
            measured = [
                cell_of(recorded, claim, rule, *network, of_network(tables[rule], *network))
                for network in recorded.networks()
            ]
            cells = [cell for cell in measured if cell is not None]
            of_cells = [row_of_cell(claim, cell) for cell in cells]
            over = [row_over_cells(claim, cells, of_cells, published)] if cells else []
            about = {"claim": claim.title, "minus": claim.other, "rule": rule}
            about |= {"decides": rule == claim.decides}
            rows += [about | row for row in (*of_cells, *over)]
    return pd.DataFrame(rows)


def cell_of(recorded, claim, rule, dataset, model, rows):
    """The Cell of a claim in one network (rows: its models of a rule), or None: not measured.

    By the paper's rule two methods compare whatever clean accuracy they lose.
    """
    fair = rule == "compared"
    other = best_baseline(recorded, rows, fair) if claim.other == BEST else claim.other
    judged = {name: judged_models(rows, name) for name in ("dare", other)}
    if not all(judged.values()):
        return None
    transferred = recorded.reader(recorded.attacks(dataset, model))
    read = {"robustness": transferred, "adaptive": recorded.adaptive, "clean": recorded.clean}
    differences = paired_differences(*judged.values(), read[claim.quantity], other)
    if not differences:
        return None
    unmoved, why_not = other != "original" and is_unmoved(judged[other], transferred), None
    if fair or unmoved:
        why_not = reason(lowest_accuracy(dataset), judged, unmoved)
    difference = 100 * plain_means(differences).mean()
    resampled = 100 * resampled_means(differences).mean(axis=1)
    return Cell(dataset, model, difference, resampled, len(differences), why_not)


def best_baseline(recorded, rows, fair):
    """The adversarial training with the highest mean over attacks, "" where there is none.

    It is chosen as epochs are, on the validation part, so that the reported part is no judge of
    itself; fair: among those that lose at most LOSS_ALLOWED, where there are any.
    """
    baselines = rows[rows["label"].str.startswith("at-")]
    kept = baselines.groupby("label")["change"].transform("mean") >= -LOSS_ALLOWED - 1e-9
    if fair and kept.any():
        baselines = baselines[kept]
    seen = recorded.rows[recorded.rows["split"] == "validation"]
    seen = seen[seen["sha256"].isin(baselines["sha256"])]
    means = seen.groupby("label")["empirical_robustness"].mean()
    return means.idxmax() if len(means) else ""


def row_of_cell(claim, cell):
    low, high = interval(cell.resampled)
    answer = "undecided" if cell.why_not else answer_to(claim, low, high)
    row = {"dataset": cell.dataset, "model": cell.model, "difference": cell.difference}
    row |= {"low": low, "high": high, "answer": answer, "sources": cell.sources}
    return row | {"why_not": cell.why_not}


def row_over_cells(claim, cells, rows, published):
    """The mean over the cells that compare; its interval draws cells again, too.

    An answer needs CELLS_NEEDED cells, and a yes that more than half of them say it.
    """
    row = {"dataset": ALL, "model": ALL, "measured": len(cells), "answer": "undecided"}
    cells = [cell for cell in cells if cell.why_not is None]
    row |= {"cells": len(cells), "holds": sum(r["answer"] == "yes" for r in rows)}
    row |= {"sources": sum(cell.sources for cell in cells)}
    row |= {"paper": paper_difference(claim, published)}
    if not cells:
        return row
    # All cells were resampled by the same random numbers: shuffled, they vary independently.
    rng = np.random.default_rng(1)
    resampled = np.stack([rng.permutation(cell.resampled) for cell in cells], axis=1)
    weight = draws(len(cells), len(cells), len(resampled), rng) / len(cells)
    low, high = interval((weight * resampled).sum(axis=1))
    row |= {"difference": np.mean([cell.difference for cell in cells]), "low": low, "high": high}
    answer = answer_to(claim, low, high)
    few = len(cells) < CELLS_NEEDED or (answer == "yes" and 2 * row["holds"] <= len(cells))
    return row | {"answer": "undecided" if few else answer}


def answer_to(claim, low, high):
    """yes, no or undecided; clean accuracy is kept where at most LOSS_ALLOWED points are lost."""
    if claim.quantity != "clean":
        return answer_of(low, high)
    if low > -LOSS_ALLOWED:
        return "yes"
    return "no" if high < -LOSS_ALLOWED else "undecided"


def paper_difference(claim, published):
    """The same difference in the paper's own figures, mean over its cells; NaN: not in them."""
    name = "clean" if claim.quantity == "clean" else "mean"
    means = pd.Series(published).xs(name, level=3).unstack()  # a row a cell, a column a method
    others = [claim.other]
    if claim.other == BEST:
        others = [method for method in means if method.startswith("at-")]
    if claim.quantity == "adaptive" or not set(others) <= set(means):
        return np.nan
    return (means["dare"] - means[others].max(axis=1)).mean()
