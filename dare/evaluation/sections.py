"""The sections of the report: the tables as text, with their headings and notes."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.runs import NETWORK, TABLE_RULES, labels_in_order, of_network

ROBUSTNESS_NOTE = (
    "Empirical robustness in %: accuracy on the n reported samples of an attack. Square brackets "
    "hold the 95% interval (Wilson's for one run; for the mean over attacks by bootstrap over "
    "images), ± is the standard deviation over runs, and round brackets hold the paper's mean. "
    "Clean accuracy is measured on the reporting half of the test images; its change against the "
    "original is in points. † marks a loss of more than 1 point. Bold: the highest value of the "
    "other rows, controls included."
)
PAPER_NOTE = (
    "Empirical robustness in %, mean ± standard deviation over nine runs. † marks a loss of more "
    "than 1 point of clean accuracy. Bold: the highest value of the other rows."
)
DIFFERENCES_NOTE = (
    "Points of empirical robustness on the same samples, with the 95% bootstrap interval over "
    "images, runs and source models. The corrected p is for all tests of a setting (Holm). A "
    "single run is tested over images (McNemar), six or more over runs (Wilcoxon). Two to five are "
    "not tested, because with r runs p cannot be below 2 / 2^r."
)
PAPER_DIFFERENCES_NOTE = (
    "Points of empirical robustness, with the 95% bootstrap interval over runs and source models. "
    "The test is the authors': Wilcoxon's signed-rank test over nine runs, one-sided, with the "
    "normal approximation. The corrected p is for all tests of a network (Holm)."
)
VERDICT_NOTE = (
    "DARE minus a method that lacks one of its components, in points, with 95% intervals. The "
    "paper's metric is the mean over attacks of empirical robustness; DARE: its own, in %, on the "
    "same images. Under adaptive attack every model is attacked itself, and the difference is of "
    "worst-case robust accuracy, the mean over all Linf epsilons above 0. n: images that neither "
    "method has seen; if they get the same results on all of these, the interval is by the rule of "
    "three. The conclusion is about the paper's metric. Yes: the interval is above 0. No: it is "
    "below 1 point. Undecided: neither; or one training was run, and another may well end "
    "otherwise."
)
NETWORKS_NOTE = (
    "At the most robust epoch of each method, DARE at its default setting: mean empirical "
    "robustness over the attacks (four in the paper) and clean accuracy, in %. The best "
    "adversarial training is the one with the highest mean: the paper's on the reported samples, "
    "ours on the validation part; in brackets, its attack. Another seed: the original of another "
    "training."
)
LEARNING_RATES_NOTE = (
    "The most robust epoch of every learning rate, and the selected epochs: mean robustness on the "
    "validation part and, for selected epochs, on the reported part; clean accuracy on the two "
    "halves of the test images."
)
OPTIMISM_NOTE = (
    "The most robust epoch of every method: mean robustness on the validation part, where it was "
    "selected among the candidates, minus that on the test part, in points. The claims by the last "
    "epoch are free of it."
)


@dataclass
class Section:
    """A table of strings with its title and a note; `folded` shows only the title at first."""

    title: str
    table: pd.DataFrame
    note: str = ""
    folded: bool = False


@dataclass
class Content:
    """What the report shows.

    sentences, warnings: text at the top. networks: {(dataset, model): [Section]}. common: Sections
    after them. command: the command that makes the report. overview, claims: the Sections over all
    networks and claims_table, if there are several.
    """

    sentences: list
    warnings: list
    networks: dict
    common: list
    command: str
    overview: list = field(default_factory=list)
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)


def text_table(table, **formats):
    """A table of strings: floats with one digit or as `formats` says; nothing for NaN and None."""
    text = {}
    for name, column in table.items():
        default = "{:.1f}" if pd.api.types.is_float_dtype(column) else "{}"
        form = formats.get(name, default)
        text[name] = ["" if pd.isna(value) else form.format(value) for value in column]
    return pd.DataFrame(text)


def with_interval(table, prefix=""):
    """["+1.0 [-0.5, +2.5], n 60"] of a table's rows, nothing for NaN."""
    columns = [prefix + name for name in ("difference", "low", "high", "n")]
    rows = table.reindex(columns=columns).itertuples(index=False, name=None)
    return ["" if pd.isna(row[0]) else interval_text(*row) for row in rows]


def with_settings(text, settings):
    """A table of strings with DARE's settings in front, if any row is not at the default ("")."""
    if any(settings):
        text.insert(0, "DARE's setting", [setting or "default" for setting in settings])
    return text


def interval_text(difference, low, high, n):
    text = f"{difference:+.1f}"
    text += "" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]"
    return text if pd.isna(n) else f"{text}, n {n:.0f}"


# ------------------------------------------------------------------------------------- robustness


def robustness_text(cells, published=None):
    """The robustness table of one network as strings: a row a method, a column an attack.

    Args:
        cells: of robustness_table.
        published: of published_means; the paper's means, in round brackets. None: without.
    """
    published = published or {}
    texts = [cell_text(row, published) for row in cells.itertuples(index=False)]
    cells = cells.assign(text=texts)
    methods = cells.drop_duplicates("label").set_index("label", drop=False)
    methods = methods.loc[labels_in_order(methods)]
    rows = list(methods.itertuples(index=False))
    table = pd.DataFrame({"method": [row.label + (" †" if row.loses else "") for row in rows]})
    if (methods["runs"] > 1).any():
        table["runs"] = [str(row.runs) for row in rows]
    table["clean"] = [with_paper(f"{row.clean:.1f}", row, "clean", published) for row in rows]
    table["change"] = ["" if row.method == "original" else f"{row.change:+.1f}" for row in rows]
    for attack in [a for a in (*ATTACKS, "mean") if a in set(cells["attack"])]:
        column = cells[cells["attack"] == attack].set_index("label")
        title = attack_title(attack, column["n"])
        table[title] = column["text"].reindex(methods.index).fillna("").to_numpy()
    return table


def cell_text(row, published):
    text = f"{row.mean:.1f}"
    text += f" ± {row.std:.1f}" if row.runs > 1 else ""
    text += f" [{row.low:.1f}, {row.high:.1f}]" if np.isfinite(row.low) else ""
    return with_paper(f"**{text}**" if row.best else text, row, row.attack, published)


def with_paper(text, row, attack, published):
    """A cell's text, with the paper's mean in round brackets if there is one."""
    mean = published.get((row.dataset, row.model, row.label, attack))
    return text if mean is None else f"{text} ({mean:.1f})"


def attack_title(attack, n):
    """The heading of an attack's column, with the number of samples: "pgd, n 60"."""
    counts = sorted({int(count) for count in (n.min(), n.max()) if count > 0})
    return f"{attack}, n {'-'.join(map(str, counts))}" if counts else attack


def robustness_section(cells, rule, published, note=ROBUSTNESS_NOTE):
    dataset, model = cells.iloc[0][NETWORK]
    title = f"Robustness of {model} on {dataset}: {TABLE_RULES.get(rule, 'the paper')}"
    return Section(title, robustness_text(cells, published), note)


# -------------------------------------------------------------------------------------- comparisons


def differences_section(table, note=DIFFERENCES_NOTE):
    dataset, model, rule = table.iloc[0][[*NETWORK, "rule"]]
    columns = ["method", "attack", "runs", *(["n"] if table["n"].any() else []), "test", "p"]
    text = text_table(table[columns], p="{:.2g}", n="{:.0f}")
    text["p, corrected"] = ["" if pd.isna(p) else f"{p:.2g}" for p in table["p_holm"]]
    values = with_interval(table.drop(columns="n"))
    text.insert(text.columns.get_loc("test"), "DARE minus it", values)
    title = (
        f"DARE minus every other method, {model} on {dataset}: {TABLE_RULES.get(rule, 'the paper')}"
    )
    return Section(title, with_settings(text, table["setting"]), note, folded=True)


def verdict_section(rows, dataset, model):
    columns = {
        "component tested": rows["component"],
        "compared with": rows["compared_with"],
        "DARE": [f"{percent:.1f}" for percent in rows["dare"]],
        "difference by the paper's metric": with_interval(rows),
        "difference under adaptive attack": with_interval(rows, "adaptive_"),
        "conclusion": rows["conclusion"],
        "reason": rows["reason"],
    }
    title = f"What each component of DARE is worth: {model} on {dataset}"
    return Section(title, with_settings(pd.DataFrame(columns), rows["setting"]), VERDICT_NOTE)


def networks_section(table):
    """The table of networks, ours beside the paper's; table: of networks_table."""
    text = text_table(table)
    attacks = table["best_at"].fillna("").str.removeprefix("at-")  # a CSV file has NaN for ""
    names = [f" ({attack})" if attack else "" for attack in attacks]
    columns = {
        "network": text["model"],
        "data set": text["dataset"],
        "clean: paper": text["paper_clean"],
        "clean: ours": text["clean"].mask(table["clean"].isna(), "not run"),
        "best at-*: paper": text["paper_at"],
        "best at-*: ours": text["at"] + names,
        "DARE: paper": text["paper_dare"],
        "DARE: ours": text["dare"],
        "DARE's clean: paper": text["paper_dare_clean"],
        "DARE's clean: ours": text["dare_clean"],
        "another seed: ours": text["control_seed"],
    }
    return Section(
        "Robustness of the networks, beside the paper's", pd.DataFrame(columns), NETWORKS_NOTE
    )


def network_sections(network, cells, differences, verdict, published):
    """The Sections of one network.

    cells, differences: {rule: table}. verdict: rows of `verdict`. published: of published_means.
    """
    sections = [verdict_section(verdict, *network)] if len(verdict) else []
    for rule, note in zip(
        TABLE_RULES, (ROBUSTNESS_NOTE, "Read like the table above."), strict=True
    ):
        sections.append(
            robustness_section(of_network(cells[rule], *network), rule, published, note)
        )
    for rule in TABLE_RULES:
        table = differences[rule]
        table = of_network(table, *network) if len(table) else table
        if len(table):
            sections.append(differences_section(table))
    return sections


def wins_sentence(count, paper_count=None):
    """count, paper_count: (scenarios that DARE wins, all of them), ours and the paper's."""
    won, scenarios = count
    if not scenarios:
        return "DARE and adversarial training have not both been run."
    text = (
        f"DARE has the highest mean in {won} of {scenarios} scenarios (data set, network, "
        f"attack and setting of DARE) against adversarial training"
    )
    return text + (
        f"; in the paper in {paper_count[0]} of {paper_count[1]}." if paper_count else "."
    )
