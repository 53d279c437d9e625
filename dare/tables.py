"""Step 9: the paper's tables, figures and one report, from the recorded runs.

    python dare/tables.py                                  # everything under models/
    python dare/tables.py --dataset digits --model alexnet # one model folder (all its training seeds)
    python dare/tables.py --paper                          # the same tables from the paper's own figures

Reads models/*/robustness.csv, adaptive.csv, log.csv, slices and targets, and dare/paper/*.csv. Writes table.md, table.tex,
table.csv, figures/ and report.html, a single file that needs nothing else, to models/, or to the folder of the model that
was asked for. Nothing is typed in by hand: a number that is not in those files is not in the tables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from dare import report
from dare.report import methods_in_order
from train import files
from train.files import ATTACKS, UserError, options, run, stage, whole, write_text

dataset = None  # None: all
model = None
paper = False  # from dare/paper alone

PAPER = Path(__file__).parent / "paper"
RUNS_NEEDED = 5  # of a one-sided signed-rank test: with fewer, no outcome has p < 0.05
KEYS = ["dataset", "model"]


def paper_runs():
    """The nine runs of every cell of the TOSEM paper, with the columns of robustness.csv that the tables use."""
    runs = pd.read_csv(PAPER / "robustness.csv").rename(columns={"group": "source"})
    accuracy = pd.read_csv(PAPER / "accuracy.csv")
    accuracy["test_accuracy"] *= 100
    original = accuracy[accuracy["method"] == "original"].assign(source="M0", run=1, attack="clean", empirical_robustness=np.nan)
    return pd.concat([runs.merge(accuracy, on=["model", "dataset", "method"], how="left"), original], ignore_index=True)


def recorded_runs(folders):
    """The selected rows of the test part of every robustness.csv, and all rows; `method` gets what was not the default."""
    tables = [pd.read_csv(folder / "robustness.csv", keep_default_na=True).assign(folder=folder.name) for folder in folders]
    rows = pd.concat(tables, ignore_index=True)
    usual = rows[rows["method"] == "dare"].groupby("folder").agg(per=("per", lambda p: p.max()), layer=("choose_layer", lambda c: c.mode().iloc[0]))
    for index, row in rows[rows["method"].isin(["dare", "dare-s"])].iterrows():
        changed = f" per {row['per']:g}" if row["per"] < usual["per"].get(row["folder"], 1) else ""
        layer = usual["layer"].get(row["folder"])
        rows.loc[index, "method"] += changed + (f" at {row['choose_layer']}" if layer is not None and row["choose_layer"] != layer else "")
    return rows[rows["selected"] & (rows["split"] == "test")].reset_index(drop=True), rows


def robustness_table(runs):
    """Attack x method for each data set and model: mean, standard deviation and number of runs, and whether it is the best."""
    attacked = runs[runs["method"] != "original"]
    cells = attacked.groupby([*KEYS, "attack", "method"], sort=False)["empirical_robustness"]
    cells = cells.agg(mean="mean", std=lambda v: v.std(ddof=1), runs="count").reset_index()
    own = ~cells["method"].str.startswith("control-")
    best = cells[own].groupby([*KEYS, "attack"])["mean"].transform("max")
    cells["best"] = cells["mean"].eq(best) & own
    return cells


def wins(cells):
    """(scenarios that DARE wins against adversarial training, all scenarios); a scenario is a data set, model and attack."""
    rivals = cells[(cells["method"] == "dare") | cells["method"].str.startswith("at-")]
    wide = rivals.pivot_table(index=[*KEYS, "attack"], columns="method", values="mean")
    if "dare" not in wide or wide.shape[1] < 2:
        return 0, 0
    wide = wide.dropna(subset=["dare"])
    return int((wide["dare"] > wide.drop(columns="dare").max(axis=1)).sum()), len(wide)


def wilcoxon_table(runs):
    """One-sided Wilcoxon signed-rank tests, DARE against every other method, over the runs of a scenario (TOSEM 2024).

    p is NaN and `note` says why where there are fewer than RUNS_NEEDED pairs or no difference at all.
    """
    rows = []
    for (name, network, attack), group in runs[runs["method"] != "original"].groupby([*KEYS, "attack"], sort=False):
        wide = group.pivot_table(index=["source", "run"], columns="method", values="empirical_robustness")
        for baseline in methods_in_order(wide.columns):
            if "dare" not in wide or baseline == "dare":
                continue
            pairs = wide[["dare", baseline]].dropna()
            row = {"dataset": name, "model": network, "attack": attack, "baseline": baseline, "runs": len(pairs), "p_value": np.nan, "note": ""}
            if len(pairs) < RUNS_NEEDED:
                row["note"] = f"{len(pairs)} runs, {RUNS_NEEDED} needed"
            elif (pairs["dare"] == pairs[baseline]).all():
                row["note"] = "no difference"
            else:
                row["p_value"] = wilcoxon(pairs["dare"], pairs[baseline], alternative="greater", method="approx").pvalue
            rows.append(row)
    return pd.DataFrame(rows)


def accuracy_table(runs):
    """Clean accuracy in % before and after each method, mean over runs, beside the paper's."""
    ours = runs.drop_duplicates([*KEYS, "source", "run", "method"]).groupby([*KEYS, "method"], sort=False)["test_accuracy"]
    theirs = pd.read_csv(PAPER / "accuracy.csv").set_index([*KEYS, "method"])["test_accuracy"] * 100
    table = ours.mean().to_frame("clean").reset_index()
    order = {name: i for i, name in enumerate(methods_in_order(table["method"]))}
    table = table.sort_values([*KEYS, "method"], key=lambda column: column.map(order) if column.name == "method" else column, ignore_index=True)
    table["paper"] = [theirs.get(tuple(row), np.nan) for row in table[[*KEYS, "method"]].itertuples(index=False)]
    return table


def models_table(folders):
    """Parameters in millions and accuracy of the trained networks, beside the seed's table."""
    import h5py

    seed_table = pd.read_csv(PAPER / "models.csv").set_index(KEYS)
    rows = []
    for folder in folders:
        about = pd.read_csv(folder / "robustness.csv", nrows=1).iloc[0]
        path = files.checkpoint_path(folder, int(about["epoch"]))
        sizes = []
        with h5py.File(path) as file:
            file.visititems(lambda _, item, sizes=sizes: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
        theirs = seed_table.loc[(about["dataset"], about["model"])] if (about["dataset"], about["model"]) in seed_table.index else {}
        rows.append(
            {"dataset": about["dataset"], "model": about["model"], "source": about["source"], "epochs": int(about["epoch"])}
            | {"parameters (M)": sum(sizes) / 1e6, "paper's": theirs.get("params_millions", np.nan)}
            | {"clean accuracy": about["test_accuracy"], "paper's accuracy": theirs.get("test_accuracy_percent", np.nan)}
        )
    return pd.DataFrame(rows)


def ablation_table(rows):
    """Mean robustness over attacks (test part) and clean accuracy of every variant of DARE that was run, best epoch each."""
    chosen = rows[rows["method"].str.startswith("dare") & (rows["split"] == "validation")]
    keys = [*KEYS, "source", "run", "method", "lr_rate"]
    epochs = chosen.groupby([*keys, "epoch"], sort=False)["empirical_robustness"].mean().reset_index()
    best = epochs.loc[epochs.groupby(keys, sort=False)["empirical_robustness"].idxmax(), [*keys, "epoch"]]
    tested = rows[rows["split"] == "test"].merge(best, on=[*keys, "epoch"])
    table = tested.groupby([*keys, "epoch"], sort=False).agg(
        robustness=("empirical_robustness", "mean"), clean=("test_accuracy", "first"), selected=("selected", "first")
    )
    return table.reset_index()


def shown(cells, dataset_, model_):
    """One paper table as strings: a row a method, a column an attack, mean and standard deviation, best in bold."""
    theirs = robustness_table(paper_runs()).set_index([*KEYS, "attack", "method"])["mean"]
    here = cells[(cells["dataset"] == dataset_) & (cells["model"] == model_)]
    attacks = [a for a in ATTACKS if a in set(here["attack"])]
    rows = []
    for name in methods_in_order(here["method"]):
        row = {"method": name}
        for attack in attacks:
            cell = here[(here["method"] == name) & (here["attack"] == attack)]
            if cell.empty:
                row[attack] = ""
                continue
            cell = cell.iloc[0]
            text = f"{cell['mean']:.1f}" + (f" ± {cell['std']:.1f}" if cell["runs"] > 1 else "")
            published = theirs.get((dataset_, model_, attack, name))
            row[attack] = (f"**{text}**" if cell["best"] else text) + (f" ({published:.1f})" if published is not None else "")
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(runs, adaptive=None):
    """One paragraph, from the numbers alone: what is transfer, what is averaging over the history, what is DARE's own."""
    mean = runs.groupby("method")["empirical_robustness"].mean()
    if "dare" not in mean or not any(m.startswith("control-") for m in mean.index):
        return "DARE and its controls have not both been run, so nothing can be said about where its robustness comes from."
    dare = mean["dare"]
    free = {m: mean[m] for m in mean.index if m.startswith("control-")}
    best = max(free, key=free.get)
    text = f"Mean empirical robustness over all attacks: DARE {dare:.1f}%. "
    transfer = {m: free[m] for m in ("control-noise", "control-checkpoint", "control-seed") if m in free}
    if transfer:
        name = max(transfer, key=transfer.get)
        text += (
            f"Transfer: {name}, which knows nothing of DARE, already has {transfer[name]:.1f}%, because samples that lie just across the "
            f"boundary of one model seldom lie across that of another. "
        )
    if "control-swa" in free:
        text += f"Averaging over the history: the plain mean of the mined checkpoints has {free['control-swa']:.1f}%. "
    if "control-finetune" in free:
        text += f"The same images with their labels (control-finetune) give {free['control-finetune']:.1f}%. "
    gap = dare - free[best]
    text += f"DARE's own: {gap:+.1f} points over the best control ({best}, {free[best]:.1f}%)" + (
        "; a control that costs nothing does as well or better." if gap <= 0 else "."
    )
    if adaptive is not None and len(adaptive):
        curve = adaptive[adaptive["attack"] == "pgd"]
        for epsilon in sorted(curve["epsilon"].dropna().unique()):
            here = curve[curve["epsilon"] == epsilon].groupby("method")["value"].mean()
            others = [m for m in here.index if m.startswith("control-")]
            if "dare" in here and "original" in here:
                text += f" Attacked itself by pgd at {epsilon:g}, DARE keeps {here['dare']:.1f}% and the original {here['original']:.1f}%"
                text += f"; the best control {max(here[others]):.1f}%." if others else "."
    return text


def markdown(table, digits=1):
    """A DataFrame as a Markdown table."""

    def text(value):
        return "" if pd.isna(value) else f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *([text(v) for v in row] for row in table.itertuples(index=False))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(table, caption, digits=1):
    """A DataFrame as a LaTeX table (booktabs)."""

    def text(value):
        value = "" if pd.isna(value) else f"{value:.{digits}f}" if isinstance(value, float) else str(value)
        bold = value.count("**") == 2
        if bold:
            value = r"\textbf{" + value.replace("**", "", 1).replace("**", "}", 1)
        for plain, escaped in (("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$"), ("#", r"\#"), ("&", r"\&")):
            value = value.replace(plain, escaped)
        return value

    rows = [[text(c) for c in table.columns], *([text(v) for v in row] for row in table.itertuples(index=False))]
    body = [" & ".join(row) + r" \\" for row in rows]
    head = r"\begin{table}" + "\n" + rf"\caption{{{text(caption)}}}" + "\n" + rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    return "\n".join([head, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def sections(runs, rows=None, folders=()):
    """[(title, DataFrame, digits)] of everything that the tables show."""
    cells = robustness_table(runs)
    found = []
    for name, network in cells[KEYS].drop_duplicates().itertuples(index=False):
        title = f"Empirical robustness in %, {network} on {name}: mean ± standard deviation over runs (the paper's mean)"
        found.append((title, shown(cells, name, network), 1))
    won, scenarios = wins(cells)
    baselines = "the paper's own figures: 22 of 36; 29 of 45 with bim" if scenarios else "run dare and at-<attack>"
    found.append((f"DARE has the highest mean in {won} of {scenarios} scenarios against adversarial training ({baselines})", None, 1))
    found.append(("Clean accuracy in %, beside the paper's", accuracy_table(runs), 1))
    if folders:
        found.append(("Trained networks, beside the seed's table", models_table(folders), 2))
        found.append(("Ablations: variants, per, layer and learning rate; mean over attacks, at their best epoch", ablation_table(rows), 4))
    tests = wilcoxon_table(runs)
    if len(tests) and tests["p_value"].isna().all():
        tests = pd.DataFrame()
        found.append((f"Wilcoxon signed-rank tests need {RUNS_NEEDED} runs or more of each cell; no cell has them, so there is no p-value", None, 1))
    if len(tests):
        found.append(("One-sided Wilcoxon signed-rank tests: is DARE more robust than the baseline?", tests, 5))
    return found


def main(argv=None):
    args = options(__doc__, argv, dataset=dataset, model=model, paper=paper)
    home = files.HOME / "models"
    if args.paper:
        target, folders = home / "paper", []
        runs, rows = paper_runs(), None
    else:
        pattern = f"{args.dataset or '*'}_{args.model or ''}*"
        folders = sorted(p.parent for p in home.glob(f"{pattern}/robustness.csv"))
        if not folders:
            raise UserError(f"{home}/{pattern}/robustness.csv is missing: score a model with `python dare/test.py` first.")
        single = args.dataset and args.model
        target = home / f"{args.dataset}_{args.model}" if single else home
        runs, rows = recorded_runs(folders)
    with stage(target / "tables.log", "tables", **vars(args)):
        adaptive = [pd.read_csv(f / "adaptive.csv") for f in folders if (f / "adaptive.csv").exists()]
        adaptive = pd.concat(adaptive) if adaptive else None
        found = sections(runs, rows, folders)
        text = verdict(runs, adaptive) if not args.paper else "These are the paper's own figures (dare/paper, doi 10.1145/3630011)."
        for title, table, digits in found:
            print(f"\n{title}\n" + ("" if table is None else "\n" + table.to_string(index=False, na_rep="", float_format=f"{{:.{digits}f}}".format)))
        print(f"\n{text}\n")
        write_text(target / "table.md", "\n\n".join([f"## {t}\n\n" + ("" if d is None else markdown(d, n)) for t, d, n in found] + [text]) + "\n")
        write_text(target / "table.tex", "\n\n".join(latex(d, t, n) for t, d, n in found if d is not None) + "\n")
        with whole(target / "table.csv") as temporary:
            robustness_table(runs).to_csv(temporary, index=False)
        command = "python " + " ".join(Path(a).as_posix() if i else "dare/tables.py" for i, a in enumerate(sys.argv))
        path = report.write(target, found, text, runs, rows, folders, adaptive, command)
        print(f"report: {path}", flush=True)


if __name__ == "__main__":
    run(main)
