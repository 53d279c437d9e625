"""The comparisons over all networks: does a claim about DARE hold in general?

A cell is a network and data set. Every comparison is measured in each cell by three rules: at each
method's most robust epoch ("selected", as in the paper's tables), at the epochs that the verdict
compares ("compared"), and at the last epoch of each ("last_epoch"), where no method gains from
choosing among many epochs and learning rates. Only cells of the paper's networks and data sets
count; others are shown apart.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dare.evaluation.comparisons import (
    BEST,
    COMPARISONS,
    MATTERS,
    Difference,
    as_columns,
    conclusion,
    conclusion_of,
    difference,
    readers,
    rows_to_compare,
    why_not_comparable,
    why_unchanged,
)
from dare.evaluation.intervals import holm, mean_of_cells
from dare.evaluation.runs import of_network
from dare.evaluation.scores import LOSS_ALLOWED

LAST = "last_epoch"
ALL = "all"  # data set and network of the row over the paper's cells
OTHERS = "others"  # of the row over all other cells
RULE_NAMES = {
    "selected": "most robust epoch",
    "compared": "epochs within 1 point",
    LAST: "last epoch",
}
ALPHA = 0.05
CELLS_NEEDED = 3  # for a yes or a no over cells
PAPER_CELLS = [  # (data set, network), in the paper's order
    (dataset, model)
    for model in ("alexnet", "vgg16", "vgg19")
    for dataset in ("cifar10", "svhn", "fashion_mnist")
]


@dataclass
class Cell:
    """A comparison in one network; obstacle: why the methods cannot be compared, or None."""

    dataset: str
    model: str
    difference: Difference
    obstacle: str | None

    @property
    def is_in_paper(self):
        return (self.dataset, self.model) in PAPER_CELLS


def rules_of(comparison):
    """The rules that apply to a comparison.

    `compared` is left out for clean accuracy, because it already limits the loss. LAST is left out
    for control-checkpoint, whose last epoch hardly differs from the original, and for adaptive
    attacks, which attack selected epochs only.
    """
    if comparison.quantity == "clean":
        return ("selected",)
    has_last = comparison.quantity == "robustness" and comparison.other != "control-checkpoint"
    return ("selected", "compared", *([LAST] if has_last else []))


def claims_table(recorded, published):
    """A row for every comparison, rule, setting and cell, and rows over several cells.

    published: {(dataset, model, method, attack, also "clean" and "mean"): the paper's mean}.

    Returns:
        DataFrame with the columns component, compared_with, setting, rule, decides (whether it is
        the rule that decides), dataset, model (over cells: ALL or OTHERS), difference, low, high
        (points), n (images), conclusion, reason and sources (source models); over cells also
        measured (cells), cells (those that are comparable), cells_with_yes, p, paper (the
        difference in its figures) and, for the rows that decide, p_holm. Empty if DARE was not run.
    """
    rows = []
    for comparison in COMPARISONS:
        for setting in all_settings(recorded):
            for rule in rules_of(comparison):
                cells = cells_of(recorded, comparison, setting, rule)
                about = {"component": comparison.component, "compared_with": comparison.other}
                about |= {"setting": setting, "rule": rule, "decides": rule == comparison.rule}
                rows += [about | row for row in rows_of(comparison, cells, published)]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    is_answer = table["decides"] & (table["model"] == ALL)
    table.loc[is_answer, "p_holm"] = holm(table.loc[is_answer, "p"])
    is_decided = is_answer & table["conclusion"].isin(("yes", "no"))
    for answer in table[is_decided].itertuples():
        table.loc[answer.Index, "reason"] += other_conclusions(table, answer)
    is_uncorrected = is_decided & ~(table["p_holm"] < ALPHA)
    table.loc[is_uncorrected, "conclusion"] += ", uncorrected"
    return table


def other_conclusions(table, answer):
    """What other rules conclude over the cells, where they differ: the end of a reason."""
    is_other = (table["component"] == answer.component) & (table["setting"] == answer.setting)
    is_other &= (table["model"] == ALL) & ~table["decides"]
    others = table[is_other & (table["conclusion"] != answer.conclusion)]
    return "".join(
        f"; {row.conclusion} by the {RULE_NAMES[row.rule]}" for row in others.itertuples()
    )


def rows_of(comparison, cells, published):
    """The rows of a comparison by one rule: its cells, the paper's together, and the others."""
    if not cells:
        return []
    groups = {ALL: [cell for cell in cells if cell.is_in_paper]}
    groups[OTHERS] = [cell for cell in cells if not cell.is_in_paper]
    rows = [row_of_cell(comparison, cell) for cell in cells]
    for name, group in groups.items():
        if group or name == ALL:
            rows.append(row_over_cells(comparison, name, group))
            if name == ALL:
                rows[-1]["paper"] = paper_difference(comparison, published)
    return rows


def all_settings(recorded):
    """The texts of all settings at which DARE was run, the default first."""
    texts = {s.text for network in recorded.networks() for s in recorded.settings(*network)}
    return sorted(texts)


def cells_of(recorded, comparison, setting, rule):
    """The Cells of a comparison, in the networks that were measured at a setting."""
    cells = []
    for network in recorded.networks():
        for found in recorded.settings(*network):
            if found.text == setting:
                cell = cell_of(recorded, comparison, network, found, rule)
                cells += [cell] if cell else []
    return cells


def cell_of(recorded, comparison, network, setting, rule):
    """The Cell of a comparison in one network, or None if it was not measured.

    Only the rule "compared" refuses methods that lose too much clean accuracy.
    """
    is_fair = rule == "compared"
    if is_fair:
        rows = recorded.compared(*network, setting)
    else:
        rows = of_network(recorded.chosen[rule], *network)
        rows = rows[setting.matches(rows)]
    methods = rows_to_compare(recorded, rows, comparison.other, is_fair)
    if methods is None:
        return None
    read = readers(recorded, *network, methods)
    same_images = comparison.quantity == "clean" and recorded.share_test_images(*network)
    found = difference(*methods.values(), read[comparison.quantity], same_images)
    if found is None:
        return None
    if is_fair:
        obstacle = why_not_comparable(network[0], methods, read["robustness"])
    else:
        obstacle = why_unchanged(methods, read["robustness"])
    return Cell(*network, found, obstacle)


def row_of_cell(comparison, cell):
    row = {"dataset": cell.dataset, "model": cell.model} | as_columns(cell.difference)
    row["conclusion"], row["reason"] = conclusion(cell.difference, comparison.quantity)
    if cell.obstacle:
        row |= {"conclusion": "not comparable", "reason": cell.obstacle}
    return row | {"sources": cell.difference.sources}


def row_over_cells(comparison, name, cells):
    """The mean over the comparable cells of a group and, with CELLS_NEEDED of them, what it shows.

    Fewer cells conclude nothing: they get no interval, and no test in Holm's correction.
    """
    comparable = [cell.difference for cell in cells if cell.obstacle is None]
    of_cells = [conclusion_of(cell.low, cell.high, comparison.quantity)[0] for cell in comparable]
    row = {"dataset": name, "model": name, "measured": len(cells), "cells": len(comparable)}
    row |= {"cells_with_yes": of_cells.count("yes")}
    row |= {"sources": sum(cell.sources for cell in comparable)}
    if not comparable:
        reason = "no cell is comparable" if cells else "none of the paper's networks was run"
        return row | {"conclusion": "not comparable", "reason": reason}
    values = [cell.value for cell in comparable]
    row |= {"difference": np.mean(values), "n": sum(cell.images for cell in comparable)}
    if len(comparable) < CELLS_NEEDED:
        row |= dict.fromkeys(("low", "high", "p"), np.nan)
        return row | {"conclusion": "undecided", "reason": f"fewer than {CELLS_NEEDED} cells"}
    return row | conclusion_over_cells(comparison.quantity, values, row["cells_with_yes"])


def conclusion_over_cells(quantity, values, with_yes):
    """Interval, p, conclusion and reason of the differences (points) in at least two cells.

    with_yes: how many of the cells have a yes of their own. A yes needs more than half of them.
    """
    null = -LOSS_ALLOWED if quantity == "clean" else 0
    _, low, high, p = mean_of_cells(values, null)
    answer, reason = conclusion_of(low, high, quantity)
    if answer == "no" and high > null:  # p must test what the conclusion says
        p = mean_of_cells(values, MATTERS)[3]
    if answer == "yes" and 2 * with_yes <= len(values):
        answer, reason = "undecided", "a yes in at most half of the cells"
    return {"low": low, "high": high, "p": p, "conclusion": answer, "reason": reason}


def paper_difference(comparison, published):
    """The difference in the paper's published numbers, mean over its cells; NaN if they lack it."""
    attack = "clean" if comparison.quantity == "clean" else "mean"
    means = pd.Series(published).xs(attack, level=3).unstack()  # a row a cell, a column a method
    others = [comparison.other]
    if comparison.other == BEST:
        others = [method for method in means if method.startswith("at-")]
    if comparison.quantity == "adaptive" or not set(others) <= set(means):
        return np.nan
    return (means["dare"] - means[others].max(axis=1)).mean()
