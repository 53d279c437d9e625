"""The comparisons over all networks: does a claim about DARE hold in general?

A cell is a network and data set. Every comparison is measured in each cell by two rules: at each
method's most robust epoch ("selected", as in the paper's tables) and at the epochs that the verdict
compares ("compared").
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dare.evaluation.comparisons import (
    BEST,
    COMPARISONS,
    Difference,
    as_columns,
    conclusion,
    difference,
    readers,
    rows_to_compare,
    why_not_comparable,
    why_unchanged,
)
from dare.evaluation.intervals import draws, interval
from dare.evaluation.runs import of_network

ALL = "all"  # data set and network of the row over all cells
CELLS_NEEDED = 3  # for a yes or a no over cells


@dataclass
class Cell:
    """A comparison in one network; obstacle: why the methods cannot be compared, or None."""

    dataset: str
    model: str
    difference: Difference
    obstacle: str | None


def rules_of(comparison):
    """Epochs that lose at most a point cannot show whether clean accuracy is kept."""
    return ("selected",) if comparison.quantity == "clean" else ("selected", "compared")


def claims_table(recorded, published):
    """A row for every comparison, rule, setting and cell, and one over the comparable cells.

    published: {(dataset, model, method, attack, also "clean" and "mean"): the paper's mean}.

    Returns:
        DataFrame with the columns component, compared_with, setting, rule, decides (whether it is
        the rule that decides), dataset, model ("all" over cells), difference, low, high (points),
        conclusion, reason and sources (source models); over cells also measured (cells), cells
        (those that are comparable), cells_with_yes, and paper (the difference in its figures).
    """
    rows = []
    for comparison in COMPARISONS:
        for setting in all_settings(recorded):
            for rule in rules_of(comparison):
                cells = cells_of(recorded, comparison, setting, rule)
                if not cells:
                    continue
                of_cells = [row_of_cell(comparison, cell) for cell in cells]
                over_cells = row_over_cells(comparison, cells, of_cells)
                over_cells["paper"] = paper_difference(comparison, published)
                about = {"component": comparison.component, "compared_with": comparison.other}
                about |= {"setting": setting, "rule": rule, "decides": rule == comparison.rule}
                rows += [about | row for row in (*of_cells, over_cells)]
    return pd.DataFrame(rows)


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

    By the paper's rule two methods are compared whatever clean accuracy they lose.
    """
    is_fair = rule == "compared"
    if is_fair:
        rows = recorded.compared(*network, setting)
    else:
        rows = of_network(recorded.chosen["selected"], *network)
        rows = rows[setting.matches(rows)]
    methods = rows_to_compare(recorded, rows, comparison.other, is_fair)
    if methods is None:
        return None
    read = readers(recorded, *network)
    found = difference(*methods.values(), read[comparison.quantity])
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


def row_over_cells(comparison, cells, rows):
    """The mean over the comparable cells, with an interval that also draws cells.

    A yes or no needs CELLS_NEEDED cells, and a yes also in more than half of them.
    """
    comparable = [cell.difference for cell in cells if cell.obstacle is None]
    with_yes = sum(row["conclusion"] == "yes" for row in rows)
    row = {"dataset": ALL, "model": ALL, "measured": len(cells), "cells": len(comparable)}
    row |= {"cells_with_yes": with_yes, "sources": sum(cell.sources for cell in comparable)}
    if not comparable:
        return row | {"conclusion": "not comparable", "reason": "no cell is comparable"}
    over_cells = mean_over_cells(comparable)
    row |= as_columns(over_cells)
    row["conclusion"], row["reason"] = conclusion(over_cells, comparison.quantity)
    if len(comparable) < CELLS_NEEDED:
        row |= {"conclusion": "undecided", "reason": f"fewer than {CELLS_NEEDED} cells"}
    elif row["conclusion"] == "yes" and 2 * with_yes <= len(comparable):
        row |= {"conclusion": "undecided", "reason": "a yes in at most half of the cells"}
    return row


def mean_over_cells(differences):
    """The mean of the Differences of several cells, as a Difference."""
    # All cells were resampled by the same random numbers; shuffled, they vary independently.
    rng = np.random.default_rng(1)
    resampled = np.stack([rng.permutation(cell.resampled) for cell in differences], axis=1)
    count = len(differences)
    weights = draws(count, count, len(resampled), rng) / count
    means = (weights * resampled).sum(axis=1)
    value = np.mean([cell.value for cell in differences])
    return Difference(value, *interval(means), means, sum(cell.sources for cell in differences))


def paper_difference(comparison, published):
    """The difference in the paper's own figures, mean over its cells; NaN if they lack it."""
    attack = "clean" if comparison.quantity == "clean" else "mean"
    means = pd.Series(published).xs(attack, level=3).unstack()  # a row a cell, a column a method
    others = [comparison.other]
    if comparison.other == BEST:
        others = [method for method in means if method.startswith("at-")]
    if comparison.quantity == "adaptive" or not set(others) <= set(means):
        return np.nan
    return (means["dare"] - means[others].max(axis=1)).mean()
