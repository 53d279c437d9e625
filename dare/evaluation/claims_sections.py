"""The sections of the report about the claims: over all cells, and cell by cell."""

import numpy as np
import pandas as pd

from dare.evaluation.claims import ALL, OTHERS, PAPER_CELLS, RULE_NAMES
from dare.evaluation.sections import Section, with_interval, with_settings

CLAIMS_NOTE = (
    "DARE minus another method in points: the mean over the cells (data set and network) in which "
    "the two can be compared. The 95% interval is Student's t over the cells. Cells in favour: "
    "those whose own interval over images is above 0 (clean accuracy: above -1). Most robust "
    "epoch: each method's, as in the paper's tables. Within 1 point: the epochs that keep clean "
    "accuracy, as in the verdict of a network. Last epoch: of every method, so that no epoch or "
    "learning rate is chosen. The difference in bold decides. Only the paper's networks and data "
    "sets count; an interval needs three of these cells, and a yes more than half of them in "
    "favour. Uncorrected: it does not survive Holm's correction for all claims (corrected p). "
    "Paper: its nine networks and four attacks."
)
OTHERS_NOTE = "Read like the table above. These networks or data sets are not the paper's."
CELLS_NOTE = (
    "DARE minus another method in each cell, in points with the 95% interval over images, by the "
    "rule that decides the claim. Bold: the interval excludes 0. Round brackets: the two methods "
    "cannot be compared there; the reason is in table_claims.csv."
)
TITLES = {"component": "component tested", "compared_with": "compared with"}
KEY = [*TITLES, "setting"]  # of a claim
NARROW = 10  # points; a narrower interval is shown with a digit after the point


def claims_sections(claims):
    """The rows over the paper's cells, those over other cells, and the cells one by one."""
    if claims.empty:
        return []
    title = "Claims over all networks"
    sections = [Section(title, claims_text(claims[claims["model"] == ALL]), CLAIMS_NOTE)]
    others = claims[claims["model"] == OTHERS]
    if len(others):
        text = claims_text(others).drop(columns=["paper", "conclusion", "reason", "p, corrected"])
        sections.append(Section("Other networks and data sets", text, OTHERS_NOTE))
    return [*sections, cells_section(claims)]


def claims_text(rows):
    """The rows over cells as strings: a row for each comparison and setting."""
    rows = rows.assign(
        text=with_interval(rows), cells_text=[cells_text(r) for r in rows.itertuples()]
    )
    is_bold = rows["decides"] & (rows["text"] != "")
    rows["text"] = np.where(is_bold, "**" + rows["text"] + "**", rows["text"])
    deciding = rows[rows["decides"]].set_index(KEY)
    names = deciding.index.to_frame(index=False)
    text = {
        **{title: names[name] for name, title in TITLES.items()},
        "paper": ["" if pd.isna(value) else f"{value:+.1f}" for value in deciding["paper"]],
    }
    for rule, title in RULE_NAMES.items():
        of_rule = rows[rows["rule"] == rule].set_index(KEY).reindex(deciding.index)
        text[title] = of_rule["text"].fillna("").to_numpy()
        text[f"{title}: cells in favour"] = of_rule["cells_text"].fillna("").to_numpy()
    text["conclusion"] = deciding["conclusion"].to_numpy()
    text["p, corrected"] = ["" if pd.isna(p) else f"{p:.2g}" for p in deciding["p_holm"]]
    text["reason"] = deciding["reason"].to_numpy()
    return with_settings(pd.DataFrame(text), names["setting"])


def cells_section(claims):
    """The rule that decides, cell by cell: a row for each comparison, a column for each cell."""
    rows = claims[claims["decides"] & ~claims["model"].isin([ALL, OTHERS])]
    found = list(rows[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    others = [cell for cell in found if cell not in PAPER_CELLS]
    cells = [cell for cell in PAPER_CELLS if cell in found] + others
    rows = rows.assign(text=[cell_difference(row) for row in rows.itertuples()])
    comparisons = rows.drop_duplicates(KEY).set_index(KEY).index
    table = rows.pivot(index=KEY, columns=["dataset", "model"], values="text")
    table = table.reindex(index=comparisons, columns=cells).fillna("")
    table.columns = [f"{model} {dataset}" for dataset, model in cells]
    table = table.reset_index().rename(columns=TITLES)
    settings = table.pop("setting")
    return Section("Claims in each cell", with_settings(table, settings), CELLS_NOTE)


def cell_difference(row):
    """ "+13 [5, 21]" of a cell's row; bold or in brackets as CELLS_NOTE says."""
    digits = 1 if row.high - row.low < NARROW else 0
    values = (row.difference, row.low, row.high)
    values = (round(value, digits) + 0.0 for value in values)  # + 0: no "-0"
    text = "{:+.{d}f} [{:.{d}f}, {:.{d}f}]".format(*values, d=digits)
    if row.conclusion == "not comparable":
        return f"({text})"
    return f"**{text}**" if row.low > 0 or row.high < 0 else text


def cells_text(row):
    """ "2 of 3 (6 measured)": cells in favour, of those that are comparable."""
    text = f"{row.cells_with_yes:.0f} of {row.cells:.0f}"
    return text + (f" ({row.measured:.0f} measured)" if row.measured > row.cells else "")
