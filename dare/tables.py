"""Step 9: the paper's tables, figures and one report, from the recorded runs.

    python dare/tables.py                                   # everything under models/
    python dare/tables.py --dataset digits --model lenet    # one network, all its training seeds
    python dare/tables.py --paper                           # the same from the paper's own figures
    python dare/tables.py --record NAME                     # keep what they need in dare/results
    python dare/tables.py --results NAME                    # and make them from there

Reads models/*/robustness.csv, scores.h5, adaptive.h5, log.csv, slices, targets and samples, and
dare/paper/*.csv. Writes table.md, table.tex, table.csv, table_differences.csv,
table_verdict.csv, of several networks table_claims.csv, figures/ and report.html, one file that
needs nothing else, to models/, to models/<dataset>_<model>/ of the network that was asked for, to
models/paper/ or to dare/results/NAME/. A number that is not in those files is not in the tables.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation import report
from dare.evaluation.claims import ALL, claims_table
from dare.evaluation.differences import differences_table, paper_differences
from dare.evaluation.intervals import bootstrap, wilson
from dare.evaluation.record import RESULTS
from dare.evaluation.record import record as record_studies
from dare.evaluation.report import Content, Section
from dare.evaluation.runs import (
    KEYS,
    LOSS_ALLOWED,
    PAPER,
    RULES,
    RecordedRuns,
    methods_in_order,
    models_of,
    of_network,
    paper_accuracy,
    paper_runs,
)
from dare.evaluation.verdict import summary, verdict, warnings
from train import artifacts
from train.artifacts import atomic_write, checkpoint_path, write_text
from train.flags import UserError, options, run_script
from train.log import stage

dataset = None  # None: all
model = None
paper = False  # from dare/paper alone
record = None  # copy the small files of the runs into dare/results/<record>/, then as `results`
results = None  # from dare/results/<results>/ instead of models/

ROBUSTNESS_NOTE = (
    "Empirical robustness in %: accuracy on the n reported samples of an attack. In square "
    "brackets the 95% interval (Wilson's, of one run; of the mean over attacks by bootstrap over "
    "images); ± is the standard deviation over runs; in round brackets the paper's mean. Clean "
    "accuracy is on the reporting half of the test images, its change against the original in "
    "points. † loses more than 1 point. Bold: the highest of all other rows, controls too."
)
PAPER_NOTE = (
    "Empirical robustness in %, mean ± standard deviation over nine runs. † loses more than 1 "
    "point of clean accuracy. Bold: the highest of all other rows."
)
DIFFERENCES_NOTE = (
    "Points of empirical robustness on the same samples, with the 95% bootstrap interval (images, "
    "runs and source models drawn again). p, corrected: for all tests of this table (Holm). r runs "
    "cannot give a smaller p than 2 / 2^r before correction: with few, the intervals say more."
)
VERDICT_NOTE = (
    "Differences in points, DARE minus another model, with 95% intervals: of the mean over attacks "
    "of empirical robustness, and, every model attacked itself, of the mean over all Linf epsilons "
    "above 0 of worst-case robust accuracy. Clean: change of clean accuracy in points. Yes: the "
    "interval is above 0. No: it is below 1 point. Undecided: neither, or a model is no comparison."
)
CLAIMS_NOTE = (
    "Points, DARE minus the other, mean over the cells (data set and network) in which the two can "
    "be compared, with a 95% interval that draws cells, source models, runs and images again, and "
    "in how many of them the cell's own interval says yes. Most robust: each method's most robust "
    "epoch, as in the paper's tables. Within 1 point: the epochs that the verdict compares. The "
    "answer is by the rule in bold; it needs three cells, and a yes more than half of them. Paper: "
    "its nine networks and four attacks. Intervals over few cells are too narrow, and nothing is "
    "corrected for the number of claims."
)
SETTINGS_NOTE = (
    "The most robust epoch of every learning rate, and the selected epochs: robustness on the "
    "validation part and, of selected epochs, on the reported part; clean accuracy on the two "
    "halves of the test images."
)


# ------------------------------------------------------------------------------------- robustness


def robustness_table(runs, recorded=None):
    """Every cell of the robustness tables, one row a data set, model, method and attack.

    runs: selected rows of the test part. recorded: where the intervals of the mean come from.

    Returns a DataFrame with the columns dataset, model, method, attack (also "mean", that over the
    attacks), runs, n, mean, std (over runs), low, high (95%: Wilson's of a single run; "mean":
    bootstrap over images), clean, change (of clean accuracy, points), loses (more than 1 point),
    best (of the rows that do not). Percent.
    """
    keys = [*KEYS, "label"]
    runs = runs.assign(n=runs.get("n", np.nan))
    of_runs = runs.groupby([*keys, "folder", "run"], sort=False)
    means = of_runs["empirical_robustness"].mean().reset_index().assign(attack="mean", n=np.nan)
    cells = pd.concat([runs, means]).groupby([*keys, "attack"], sort=False)
    cells = cells.agg(
        runs=("empirical_robustness", "count"), n=("n", "mean"),
        mean=("empirical_robustness", "mean"), std=("empirical_robustness", "std"),
    ).reset_index()  # fmt: skip
    models = runs.drop_duplicates([*keys, "folder", "run"]).groupby(keys)
    clean = models[["test_accuracy", "change"]].mean().rename(columns={"test_accuracy": "clean"})
    cells = cells.merge(clean, on=keys).rename(columns={"label": "method"})

    low, high = wilson(cells["mean"] * cells["n"] / 100, cells["n"])
    single = (cells["runs"] == 1) & (cells["method"] != "original")
    cells["low"], cells["high"] = (np.where(single, 100 * v, np.nan) for v in (low, high))
    for row in cells[cells["attack"] == "mean"].itertuples() if recorded else ():
        if row.method != "original":
            found = mean_interval(recorded, runs, row.dataset, row.model, row.method)
            cells.loc[row.Index, ["low", "high"]] = found

    cells["loses"] = cells["change"] < -LOSS_ALLOWED - 1e-9
    may_win = cells["mean"].where(~cells["loses"] & (cells["method"] != "original"))
    best = may_win.groupby([cells[k] for k in (*KEYS, "attack")]).transform("max")
    cells["best"] = may_win.eq(best)
    return cells


def mean_interval(recorded, chosen, dataset, model, label):
    """95% interval in % of the mean over attacks of a method's models, over images and runs."""
    attacks = recorded.attacks(dataset, model)
    sources = [
        np.stack([recorded.right(folder, digest, attacks) for digest in runs.values()])
        for folder, runs in models_of(of_network(chosen, dataset, model), label).items()
    ]
    return [100 * v[-1] for v in bootstrap(sources)[1:]] if attacks else [np.nan, np.nan]


def wins(cells):
    """(scenarios that DARE wins against adversarial training, all of them).

    A scenario is a data set, model and attack.
    """
    both_kinds = (cells["method"] == "dare") | cells["method"].str.startswith("at-")
    rows = cells[both_kinds & (cells["attack"] != "mean")]
    wide = rows.pivot_table(index=[*KEYS, "attack"], columns="method", values="mean")
    if "dare" not in wide or wide.shape[1] < 2:
        return 0, 0
    baseline = wide.drop(columns="dare").max(axis=1)
    both = wide["dare"].notna() & baseline.notna()
    return int((wide["dare"] > baseline)[both].sum()), int(both.sum())


def published_means():
    """{(dataset, model, method, attack): the paper's mean}; attack also "clean" and "mean"."""
    cells = robustness_table(paper_runs()).set_index([*KEYS, "method", "attack"])["mean"].to_dict()
    return cells | {(*key, "clean"): value for key, value in paper_accuracy().items()}


def shown(cells, published=None):
    """The robustness table of one network as strings: a row a method, a column an attack.

    cells: of robustness_table. published: of published_means, in round brackets where it has the
    cell. The best row of a column is bold (**); a method that loses more than 1 point has a †.
    """

    def text(row, attack, value):
        theirs = (published or {}).get((row.dataset, row.model, row.method, attack))
        return value if theirs is None else f"{value} ({theirs:.1f})"

    def cell(row):
        value = f"{row.mean:.1f}"
        value += f" ± {row.std:.1f}" if row.runs > 1 else ""
        value += f" [{row.low:.1f}, {row.high:.1f}]" if np.isfinite(row.low) else ""
        return text(row, row.attack, f"**{value}**" if row.best else value)

    cells = cells.assign(text=[cell(row) for row in cells.itertuples(index=False)])
    methods = cells.drop_duplicates("method").set_index("method", drop=False)
    methods = methods.loc[methods_in_order(methods.index)]
    rows = list(methods.itertuples(index=False))
    table = pd.DataFrame({"method": [r.method + (" †" if r.loses else "") for r in rows]})
    if (methods["runs"] > 1).any():
        table["runs"] = [str(r.runs) for r in rows]
    table["clean"] = [text(r, "clean", f"{r.clean:.1f}") for r in rows]
    table["change"] = ["" if r.method == "original" else f"{r.change:+.1f}" for r in rows]
    for attack in [a for a in (*ATTACKS, "mean") if a in set(cells["attack"])]:
        column = cells[cells["attack"] == attack].set_index("method")
        n = sorted({int(v) for v in (column["n"].min(), column["n"].max()) if v > 0})
        title = f"{attack}, n {'-'.join(map(str, n))}" if n else attack
        table[title] = column["text"].reindex(methods.index).fillna("").to_numpy()
    return table


# ----------------------------------------------------------------------------------- other tables


def models_table(recorded):
    """Sizes of training, parameters and accuracy of the networks, beside the authors' table.

    RecordedRuns results have no checkpoints, and so no parameters of ours.
    """
    theirs = pd.read_csv(PAPER / "models.csv").set_index(KEYS)
    originals = recorded.rows[recorded.rows["method"] == "original"].drop_duplicates("folder")
    table = originals[[*KEYS, "source", "epoch"]].rename(columns={"epoch": "epochs"})
    paths = map(checkpoint_path, originals["folder"].map(recorded.folders), originals["epoch"])
    authors = theirs.reindex(pd.MultiIndex.from_frame(originals[KEYS]))
    table["images"] = [trained_on(recorded.folders[name]) for name in originals["folder"]]
    table["parameters (M)"] = [parameters(path) / 1e6 for path in paths]
    table["authors' parameters"] = authors["params_millions"].to_numpy()
    table["clean accuracy"] = originals["test_accuracy"]
    table["authors' accuracy"] = authors["test_accuracy_percent"].to_numpy()
    return table.dropna(axis=1, how="all")


def trained_on(folder):
    """Number of training images, by the recorded training; NaN where it was not recorded."""
    recorded = report.commands(folder, versions=True)
    if not {"stage", "images"} <= set(recorded):
        return np.nan
    images = recorded.loc[recorded["stage"].str.startswith("train "), "images"].astype(float)
    return images.iloc[-1] if len(images) else np.nan


def parameters(path):
    """Number of weights in a checkpoint; NaN where it is not there."""
    if not path.exists():
        return np.nan
    sizes = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
    return sum(sizes)


def settings_table(recorded):
    """Every method, setting and learning rate at its most robust epoch, and the selected epochs.

    Mean robustness over attacks and clean accuracy: what selection saw, and what is reported,
    which only selected epochs have.
    """
    keys = [*KEYS, "source", "label", "run", "lr_rate", "epoch"]
    clean = ["selection_accuracy", "test_accuracy"]
    rows = recorded.rows[recorded.rows["method"] != "original"]
    of_models = rows.groupby([*keys, "split"], sort=False, dropna=False)["empirical_robustness"]
    models = of_models.mean().unstack("split").reindex(columns=["validation", "test"])
    models = models.reset_index().merge(
        rows.drop_duplicates(keys)[[*keys, *clean, *RULES]], on=keys
    )
    best = models.groupby(keys[:-1], sort=False, dropna=False)["validation"].transform("max")
    table = models[models["validation"].eq(best) | models[[*RULES]].any(axis=1)]
    yes = {rule: np.where(table[rule], "yes", "") for rule in RULES}
    table = table.assign(**yes).rename(columns={"label": "method", "test": "reported"})
    return table.rename(
        columns=dict(zip(clean, ("clean, selection", "clean, reported"), strict=True))
    )


# ----------------------------------------------------------------------------------- all together


def as_text(table, **formats):
    """A table of strings: floats with one digit or as `formats` says, nothing for NaN and None."""
    text = {}
    for name, column in table.items():
        usual = "{:.1f}" if pd.api.types.is_float_dtype(column) else "{}"
        form = formats.get(name, usual)
        text[name] = ["" if pd.isna(value) else form.format(value) for value in column]
    return pd.DataFrame(text)


def with_interval(table, prefix=""):
    """["difference [low, high]"] of a table's rows, nothing for NaN."""
    columns = [prefix + name for name in ("difference", "low", "high")]
    rows = table[columns].itertuples(index=False, name=None)
    return ["" if pd.isna(row[0]) else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row) for row in rows]


def robustness_section(cells, rule, published, note=ROBUSTNESS_NOTE):
    dataset, model = cells.iloc[0][KEYS]
    title = f"Robustness of {model} on {dataset}: {RULES.get(rule, 'the paper')}"
    return Section(title, shown(cells, published), note)


def differences_section(table):
    dataset, model, rule = table.iloc[0][[*KEYS, "rule"]]
    text = as_text(table[["method", "attack", "runs", "test", "p", "p_holm"]], p="{:.2g}")
    text["p_holm"] = ["" if pd.isna(p) else f"{p:.2g}" for p in table["p_holm"]]
    text.insert(3, "dare minus it", with_interval(table))
    title = f"DARE minus every other method, {model} on {dataset}: {RULES.get(rule, 'the paper')}"
    text = text.rename(columns={"p_holm": "p, corrected"})
    return Section(title, text, DIFFERENCES_NOTE, folded=True)


def verdict_section(rows, dataset, model):
    changes = rows[["change_dare", "change_other"]].map("{:+.1f}".format)
    table = pd.DataFrame({
        "worth of": rows["question"],
        "in words": rows["sentence"],
        "dare minus": rows["control"],
        "the paper's metric": with_interval(rows),
        "adaptive attack": with_interval(rows, "adaptive_"),
        "clean, dare": changes["change_dare"],
        "clean, other": changes["change_other"],
    })  # fmt: skip
    return Section(f"What is DARE's own: {model} on {dataset}", table, VERDICT_NOTE)


def claims_section(claims):
    """The rows over all cells: a row a claim, the paper's difference and ours by two rules."""
    rows = claims[claims["model"] == ALL].assign(text=lambda t: with_interval(t))
    rows["of"] = [
        f"{r.holds:.0f} of {r.cells:.0f}"
        + (f" ({r.measured:.0f} measured)" if r.measured > r.cells else "")
        for r in rows.itertuples()
    ]
    rows["text"] = np.where(rows["decides"], "**" + rows["text"] + "**", rows["text"])
    names = list(dict.fromkeys(rows["claim"]))
    table = rows[rows["decides"]].set_index("claim").loc[names]
    text = pd.DataFrame({"claim": names, "dare minus": table["minus"].to_numpy()})
    text["paper"] = ["" if pd.isna(v) else f"{v:+.1f}" for v in table["paper"]]
    for rule, title in ("selected", "most robust"), ("compared", "within 1 point"):
        here = rows[rows["rule"] == rule].set_index("claim").reindex(names)
        text[title] = here["text"].fillna("").replace("****", "").to_numpy()
        text[f"{title}: yes in"] = here["of"].fillna("").to_numpy()
    text["answer"] = table["answer"].to_numpy()
    return Section("Does it reproduce? Claims over all networks", text, CLAIMS_NOTE)


def network_sections(network, cells, differences, rows, published):
    """The sections of one network. cells, differences: {rule: table}; rows: of the verdict."""
    sections = [verdict_section(rows, *network)] if len(rows) else []
    for rule, note in zip(RULES, (ROBUSTNESS_NOTE, "Read as the table above."), strict=True):
        here = of_network(cells[rule], *network)
        sections.append(robustness_section(here, rule, published, note))
    for rule in RULES:
        if len(differences[rule]):
            here = of_network(differences[rule], *network)
            sections += [differences_section(here)] if len(here) else []
    return sections


def wins_sentence(cells):
    won, scenarios = wins(cells)
    if not scenarios:
        return "DARE and adversarial training have not both been run"
    return (
        f"DARE has the highest mean in {won} of {scenarios} scenarios (data set, network and "
        f"attack) against adversarial training"
    )


def make_paper(target, command):
    """Everything from dare/paper alone."""
    runs = paper_runs()
    cells, differences = robustness_table(runs), paper_differences(runs)
    networks = {}
    for network in runs[KEYS].drop_duplicates().itertuples(index=False, name=None):
        here = of_network(cells, *network)
        table = robustness_section(here, "paper", None, PAPER_NOTE)
        networks[network] = [table, differences_section(of_network(differences, *network))]
    write_tables(target, cells, differences)
    sentences = ["The paper's own figures (doi 10.1145/3630011).", f"{wins_sentence(cells)}."]
    return finish(target, Content(sentences, [], networks, [], command), cells)


def make_recorded(target, folders, command):
    """Everything from the recorded runs in `folders`."""
    recorded = RecordedRuns(folders)
    cells = {rule: robustness_table(recorded.chosen[rule], recorded) for rule in RULES}
    differences = {rule: differences_table(recorded, rule) for rule in RULES}
    verdicts = {network: verdict(recorded, *network) for network in recorded.networks()}
    published = published_means()
    networks = {
        network: network_sections(network, cells, differences, rows, published)
        for network, rows in verdicts.items()
    }
    sentences = [f"{m} on {d}: {summary(rows)}" for (d, m), rows in verdicts.items()]
    sentences.append(f"{wins_sentence(cells['selected'])}; the paper in 22 of 36.")
    models = as_text(models_table(recorded), **{"parameters (M)": "{:.2f}", "images": "{:.0f}"})
    settings = as_text(settings_table(recorded), lr_rate="{:g}")
    claims = claims_table(recorded, published) if len(networks) > 1 else pd.DataFrame()
    overview = [claims_section(claims)] if len(claims) else []
    common = [
        Section("Trained networks, beside the authors' table", models),
        Section("Settings, learning rates and selected epochs", settings, SETTINGS_NOTE, True),
    ]
    every = pd.concat([table.assign(rule=rule) for rule, table in cells.items()])
    both = [rows.assign(dataset=d, model=m) for (d, m), rows in verdicts.items()]
    write_tables(target, every, pd.concat(differences.values()), pd.concat(both), claims)
    content = Content(sentences, warnings(recorded), networks, common, command, overview, claims)
    return finish(target, content, robustness_table(recorded.compared(), recorded), recorded)


def write_tables(target, cells, differences, verdicts=(), claims=()):
    """table.csv, table_differences.csv, table_verdict.csv, table_claims.csv: those with rows."""
    tables = {"table": cells, "table_differences": differences}
    tables |= {"table_verdict": verdicts, "table_claims": claims}
    for name, table in tables.items():
        if len(table):
            with atomic_write(target / f"{name}.csv") as temporary:
                table.round(6).to_csv(temporary, index=False)


def finish(target, content, cells, recorded=None):
    """Terminal, table.md, table.tex and report.html; returns the report's path."""
    of_networks = [section for found in content.networks.values() for section in found]
    sections = content.overview + of_networks + content.common
    for warning in content.warnings:
        print(f"Warning: {warning}")
    for section in sections:
        if not section.folded:
            print(f"\n{section.title}\n\n{markdown(section.table)}")
    print("\n" + "\n".join(content.sentences) + "\n")
    head = [f"**Warning**: {w}" for w in content.warnings] + content.sentences
    parts = [f"## {s.title}\n\n{s.note}\n\n{markdown(s.table)}" for s in sections]
    write_text(target / "table.md", "\n\n".join([*head, *parts]) + "\n")
    write_text(target / "table.tex", "\n\n".join(map(latex, sections)) + "\n")
    return report.write(target, content, cells, recorded)


def markdown(table):
    return table.to_markdown(index=False, disable_numparse=True)


def latex(section):
    """A section's table for LaTeX with booktabs."""
    columns = "l" + "r" * (section.table.shape[1] - 1)
    text = section.table.to_latex(
        index=False, escape=True, caption=section.title, column_format=columns
    )
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)


def main(argv=None):
    args = options(__doc__, argv, globals())
    pattern = f"{args.dataset or '*'}_{args.model or '*'}_seed*/robustness.csv"
    if sum(map(bool, (args.paper, args.record, args.results))) > 1:
        raise UserError("--paper, --record and --results exclude each other: give one.")
    home = RESULTS / args.results if args.results else artifacts.HOME / "models"
    folders = sorted(path.parent for path in home.glob(pattern))
    if not folders and not args.paper:
        raise UserError(f"{home}/{pattern} is missing: score a study with `python dare/test.py`.")
    if args.record:
        record_studies(folders, args.record)
        home = RESULTS / args.record
        folders = sorted(path.parent for path in home.glob(pattern))
    asked = "_".join(filter(None, (args.dataset, args.model)))
    target = home / ("paper" if args.paper else asked)
    command = " ".join(["python dare/tables.py", *(sys.argv[1:] if argv is None else argv)])
    with stage(target / "tables.log", "tables", vars(args)):
        path = (
            make_paper(target, command) if args.paper else make_recorded(target, folders, command)
        )
        print(f"report: {path}", flush=True)


if __name__ == "__main__":
    run_script(main)
