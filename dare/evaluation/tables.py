"""The tables of the report: numbers as data frames, which are the CSV files, and as text."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.compare import ALL, COMPARISONS
from dare.evaluation.results import NETWORK, in_order
from dare.methods import unseen_splits

AVERAGED = "mean"  # the row over attacks


@dataclass
class Section:
    """A table of strings with its title and one or two sentences of notes.

    folded: the report shows its title only, until it is opened.
    """

    title: str
    note: str
    table: pd.DataFrame
    folded: bool = False


def name_of(network):
    """ "vgg16 cifar10", as networks are called in tables and figures."""
    return " ".join(reversed(network))


def number(value, form="{:z.1f}"):
    """A number as text, nothing for NaN; no "-0.0"."""
    return "" if pd.isna(value) else form.format(round(value, 6))


def points(value):
    return number(value, "{:+z.1f}").replace("+0.0", "0.0")


def interval(row):
    """ " [-2.9, 17.6]" of a row with low and high, to stand after its value; "" for NaN."""
    return "" if pd.isna(row.low) else f" [{number(row.low)}, {number(row.high)}]"


def marked(row):
    """ "+7.3 [-2.9, 17.6]" of a row of comparisons; † if the other model is the original itself."""
    return points(row.difference) + interval(row) + (" †" if row.originals > 0 else "")


# ------------------------------------------------------------------------------------- comparisons


def comparisons_text(table):
    """Table (a), a row for each of COMPARISONS; table: of comparisons_table.

    Over networks, or of the network if there is only one.
    """
    rows = table[table["dataset"] == ALL] if (table["dataset"] == ALL).any() else first_rows(table)
    others = [(c.component, c.other) for c in COMPARISONS]
    rows = rows.set_index(["component", "other"]).reindex(others).dropna(subset="difference")
    text = pd.DataFrame([*rows.index], columns=["component", "DARE minus"])
    text["points"] = [marked(row) for row in rows.itertuples()]
    if rows["cells"].notna().any():
        text["ahead"] = [f"{row.ahead:.0f} of {row.cells:.0f}" for row in rows.itertuples()]
        text["range"] = [f"{number(r.lowest)} to {number(r.highest)}" for r in rows.itertuples()]
    else:
        text["images"] = [f"{images:.0f}" for images in rows["images"]]
    text["clean accuracy"] = [points(value) for value in rows["clean_difference"]]
    if rows["heldout_difference"].notna().any():
        # No sample leaves the original right, so that nothing is learned from a comparison with it.
        values = rows["heldout_difference"].where(rows.index.get_level_values(1) != "original")
        text["held-out samples"] = [points(value) for value in values]
    return text


def first_rows(table):
    """Of a table of comparisons, the rows of whole networks, without those of single seeds."""
    return table.drop_duplicates(["component", "other", *NETWORK])


def by_network(table, networks):
    """Every comparison in every network: "+7.3 [-2.9, 17.6]"."""
    rows = first_rows(table[table["dataset"] != ALL])
    rows = rows.assign(
        text=[marked(row) for row in rows.itertuples()],
        network=[name_of(n) for n in rows[NETWORK].itertuples(index=False, name=None)],
    )
    return pivoted(rows, [name_of(n) for n in networks])


def by_seed(table):
    """Every comparison in every training seed, of networks with several."""
    rows = table[(table["dataset"] != ALL) & table.duplicated(["component", "other", *NETWORK])]
    rows = rows.assign(
        text=[points(value) for value in rows["difference"]],
        network=[f"{r.model} {r.dataset} {r.seeds}" for r in rows.itertuples()],
    )
    return pivoted(rows, rows["network"].unique())


def pivoted(rows, columns):
    index = ["component", "other"]
    order = rows.drop_duplicates(index).set_index(index).index
    table = rows.pivot(index=index, columns="network", values="text").reindex(order)
    table = table.reindex(columns=[c for c in columns if c in table]).fillna("").reset_index()
    return table.rename(columns={"other": "DARE minus"}).rename_axis(None, axis=1)


# -------------------------------------------------------------------------------------- robustness


def robustness_table(rows):
    """Robustness of every method in every network under every attack, and its mean over attacks.

    rows: of Results (a row a model, attack and split), or the paper's. Splits count as one, by the
    number of their samples.

    Returns:
        DataFrame with the columns dataset, model, method, attack, runs (of all seeds), n (samples
        of a run), robustness, std (over runs), clean, change. In %; change in points.
    """
    rows = rows.dropna(subset="empirical_robustness")
    rows = rows.assign(right=rows["n"] * rows["empirical_robustness"])
    run = [*NETWORK, "method", "study", "run", "sha256", "test_accuracy", "change"]
    runs = rows.groupby([*run, "attack"], sort=False, dropna=False)[["right", "n"]].sum()
    runs = runs.assign(robustness=runs["right"] / runs["n"]).reset_index()
    means = runs.groupby(run, sort=False, dropna=False)[["robustness", "n"]].mean().reset_index()
    runs = pd.concat([runs, means.assign(attack=AVERAGED)])
    cells = runs.groupby([*NETWORK, "method", "attack"], sort=False)
    return cells.agg(
        runs=("robustness", "count"), n=("n", "mean"), robustness=("robustness", "mean"),
        std=("robustness", "std"), clean=("test_accuracy", "mean"), change=("change", "mean"),
    ).reset_index()  # fmt: skip


def unseen(rows):
    """The rows of the splits that each method was not tuned on."""
    seen = {m: unseen_splits(m) for m in rows["method"].unique()}
    is_unseen = [s in seen[m] for m, s in zip(rows["method"], rows["split"], strict=True)]
    return rows[is_unseen]


def attacks_text(cells):
    """Table (d) of one network: a row a method, a column an attack; cells: of robustness_table."""
    methods = in_order(cells["method"])
    wide = cells.set_index(["method", "attack"])
    first = cells.drop_duplicates("method").set_index("method").loc[methods]
    table = pd.DataFrame({"method": methods})
    table["clean"] = [number(value) for value in first["clean"]]
    table["change"] = [points(value) for value in first["change"]]
    for attack in [a for a in (*ATTACKS, AVERAGED) if a in set(cells["attack"])]:
        table[attack] = [
            mean_and_std(wide.loc[(m, attack)]) if (m, attack) in wide.index else ""
            for m in methods
        ]
    return table


def mean_and_std(cell):
    return number(cell["robustness"]) + ("" if pd.isna(cell["std"]) else f" ± {cell['std']:.1f}")


def beside_paper_text(ours, theirs, networks, samples):
    """Table (b), methods by networks: "57.4 (64.5), -0.3 (+0.6)".

    Mean robustness and change in clean accuracy, the paper's in brackets. ours, theirs: of
    robustness_table. samples: {network: [how many each adversarial training was tuned on]}.
    """
    ours, theirs = (
        t[t["attack"] == AVERAGED].set_index([*NETWORK, "method"])[["robustness", "change"]]
        for t in (ours, theirs)
    )
    methods = [m for m in in_order(ours.index.unique("method")) if m != "original"]
    table = pd.DataFrame({"method": methods})
    if not methods:
        return table

    def both(key, column, form):
        text = form(ours[column].get(key, np.nan))
        return text + (f" ({form(theirs[column][key])})" if key in theirs.index else "")

    for network in networks:
        keys = [(*network, method) for method in methods]
        texts = [f"{both(k, 'robustness', number)}, {both(k, 'change', points)}" for k in keys]
        table[name_of(network)] = [
            t if key in ours.index else "" for t, key in zip(texts, keys, strict=True)
        ]
    table.loc[len(table)] = ["samples for each at-*"] + [
        "-".join(str(n) for n in sorted({min(found), max(found)})) if found else ""
        for found in (samples.get(network, []) for network in networks)
    ]
    return table
