"""The figures, and the report that holds them and the tables in a single file. Called by tables.py."""

import base64
import html
import io
import json

import h5py
import matplotlib
import numpy as np
import pandas as pd

from train.files import ATTACKS, attributes, whole, write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which the colour-blind can tell apart; hatches and markers tell them apart in print.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**")
MARKERS = "os^Dv<>Pp*X"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #111 }
table { border-collapse: collapse; margin: .5em 0 } th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 2px solid #333 } tr.control td { background: #f3f3f3 }
figure { margin: 1em 0 } img { max-width: 100% } .from, figcaption { color: #555; font-size: 85% } h2 { margin-top: 2em; font-size: 120% }
"""


def methods_in_order(names):
    """original, dare and its variants, adversarial training, and the controls in a block of their own."""
    order = ("original", "dare", "dare ", "dare-s", "dare-sl", "dare-last", "at-", "control-")
    return sorted(set(names), key=lambda name: (max(i for i, prefix in enumerate(order) if name.startswith(prefix)), name))


def look(i):
    return COLOURS[i % len(COLOURS)], HATCHES[(i + i // len(COLOURS)) % len(HATCHES)], MARKERS[i % len(MARKERS)]


def bars(runs):
    """Empirical robustness of every method under every attack, mean over runs."""
    wide = runs[runs["method"] != "original"].groupby(["attack", "method"], sort=False)["empirical_robustness"].mean().unstack()
    wide = wide.loc[[a for a in ATTACKS if a in wide.index], methods_in_order(wide.columns)]
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    width = 0.85 / wide.shape[1]
    for i, name in enumerate(wide.columns):
        colour, hatch, _ = look(i)
        at = np.arange(len(wide)) + (i - wide.shape[1] / 2 + 0.5) * width
        axis.bar(at, wide[name], width, label=name, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
    axis.set(xticks=range(len(wide)), xticklabels=wide.index, ylabel="empirical robustness (%)", ylim=(0, 100))
    axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def epochs(rows):
    """Robustness (validation part) against clean accuracy over the epochs of tuning; a ring marks the selected one."""
    mean = rows[rows["split"] == "validation"].groupby(["method", "lr_rate", "run", "epoch"], sort=False, dropna=False)
    mean = mean.agg(robustness=("empirical_robustness", "mean"), clean=("test_accuracy", "first"), selected=("selected", "first")).reset_index()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (name, line) in enumerate(mean.groupby(["method", "lr_rate"], sort=False, dropna=False)):
        colour, _, marker = look(i)
        label = name[0] if pd.isna(name[1]) else f"{name[0]} ({name[1]:g})"
        axis.plot(line["clean"], line["robustness"], marker=marker, color=colour, ms=4, lw=0.8, label=label)
        chosen = line[line["selected"]]
        axis.plot(chosen["clean"], chosen["robustness"], "o", ms=11, mfc="none", mec=colour, mew=1.5)
    original = mean.loc[mean["method"] == "original", "clean"].mean()
    axis.axvline(original - 1, color="#555", ls=":", lw=1)
    axis.annotate("1 point lost", (original - 1, 2), fontsize=7, rotation=90, ha="right")
    axis.set(xlabel="clean accuracy (%)", ylabel="mean empirical robustness, validation part (%)")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves(adaptive):
    """Robust accuracy over epsilon of every selected model, attacked itself, with 95% bootstrap intervals."""
    names = adaptive.loc[adaptive["epsilon"].notna(), "attack"].unique()
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names) + 1.5, 4), squeeze=False, sharey=True, layout="constrained")
    for axis, attack in zip(axes[0], names, strict=True):
        for i, (name, line) in enumerate(adaptive[(adaptive["attack"] == attack) & adaptive["epsilon"].notna()].groupby("method", sort=False)):
            line = line.groupby("epsilon")[["value", "low", "high"]].mean().reset_index()
            colour, _, marker = look(i)
            axis.plot(line["epsilon"], line["value"], marker=marker, color=colour, label=name, ms=4)
            axis.fill_between(line["epsilon"], line["low"], line["high"], color=colour, alpha=0.12, lw=0)
        axis.set(title=attack, xlabel="epsilon (Linf)", ylim=(0, 100))
    axes[0, 0].set_ylabel("robust accuracy (%)")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def history(folder):
    """Training history, with the share of mined images whose best epoch each one was."""
    log = pd.read_csv(folder / "log.csv")
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axis.plot(log["epoch"], 100 * log["accuracy"], color=COLOURS[5], label="training accuracy")
    axis.plot(log["epoch"], 100 * log["val_accuracy"], color=COLOURS[6], ls="--", label="test accuracy")
    axis.set(xlabel="epoch", ylabel="accuracy (%)")
    for path in sorted(folder.glob("ats_*.h5"))[:1]:
        with h5py.File(path) as file:
            best, count = np.unique(file["epoch"][()], return_counts=True)
        right = axis.twinx()
        right.bar(best, 100 * count / count.sum(), color=COLOURS[8], alpha=0.5, label="best epoch of")
        right.set_ylabel("share of modified images (%)")
    axis.legend(fontsize=8, loc="lower right")
    return figure


def slices(folder):
    """Per layer: share of synapses that all classes' slices have in common, that any has, and that the model's slice has."""
    paths = sorted(folder.glob("slice_*.h5"))
    with h5py.File(paths[-1]) as file:
        names = sorted(file, key=lambda n: file[n].attrs["order"])
        shares = []
        for name in names:
            masks = file[name]["class_mask"]
            every, some = np.ones(masks.shape[1:], bool), np.zeros(masks.shape[1:], bool)
            for c in range(len(masks)):
                every, some = every & masks[c], some | masks[c]
            shares.append([100 * m.mean() for m in (every, file[name]["mask"][()], some)])
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for i, label in enumerate(("in the slices of all classes", "in the model's slice", "in the slice of any class")):
        axis.bar(np.arange(len(names)) + (i - 1) * 0.28, [s[i] for s in shares], 0.28, label=label, color=COLOURS[(5, 1, 3)[i]], hatch=HATCHES[i])
    axis.set(xticks=range(len(names)), xticklabels=names, ylabel="share of synapses (%)", title=paths[-1].name)
    axis.tick_params(axis="x", rotation=30)
    axis.legend(fontsize=8, loc="lower left")
    return figure


def table_html(table, digits, about):
    """A DataFrame as HTML; `about(row, column)` is the tooltip of a cell, where its number comes from."""
    lines = ["<table><thead><tr>" + "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns) + "</tr></thead><tbody>"]
    for row in table.to_dict("records"):
        control = ' class="control"' if str(row.get("method", "")).startswith("control-") else ""
        cells = []
        for column, value in row.items():
            text = "" if pd.isna(value) else f"{value:.{digits}f}" if isinstance(value, float) else str(value)
            text = html.escape(text).replace("**", "<b>", 1).replace("**", "</b>", 1)
            cells.append(f'<td title="{html.escape(about(row, column))}">{text}</td>')
        lines.append(f"<tr{control}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def commands(folder):
    """The commands recorded in a model folder's logs, the last of each stage: [(stage, command, when, seconds)]."""
    found = {}
    for path in sorted(folder.glob("**/*.log")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["ended"] == "done" and entry["stage"] != "tables":
                found[path, entry["stage"]] = (entry["stage"], "python " + " ".join(entry["command"]), entry["start"], entry["seconds"])
    return list(found.values())


def write(target, sections, text, runs, rows, folders, adaptive, command):
    """Write figures/ and report.html into `target`; returns the report's path."""
    parts = [f"<h1>DARE: {html.escape(target.name)}</h1>", f"<p>{html.escape(text)}</p>", f'<p class="from">Made by <code>{html.escape(command)}</code>.</p>']
    where = {str(f.name): f"models/{f.name}/robustness.csv" for f in folders} or {"paper": "dare/paper/robustness.csv"}

    def about(row, column):
        here = runs[(runs["method"] == row.get("method")) & (runs["attack"] == column)] if "method" in row else runs.iloc[:0]
        if here.empty or "folder" not in here:
            return "from " + ", ".join(where.values())
        return "; ".join(
            f"models/{r.folder}/robustness.csv: {r.source} run {r.run} epoch {r.epoch}, {r.empirical_robustness:.2f}% of {r.n}" for r in here.itertuples()
        )

    for title, table, digits in sections:
        parts.append(f"<h2>{html.escape(title)}</h2>")
        if table is not None:
            parts.append(table_html(table, digits, about))
            parts.append(f'<p class="from">From {html.escape(", ".join(where.values()))}. Point at a number to see its runs.</p>')

    def add(name, figure, source):
        folder = target / "figures"
        for kind in "png", "svg":
            with whole(folder / f"{name}.{kind}", f".{kind}") as temporary:
                figure.savefig(temporary, dpi=150)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110)
        plt.close(figure)
        data = base64.b64encode(image.getvalue()).decode()
        parts.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{html.escape(name)}: from {html.escape(source)}</figcaption></figure>'
        )

    parts.append("<h2>Figures</h2>")
    for folder in folders:
        own = rows[rows["folder"] == folder.name]
        source = f"models/{folder.name}/robustness.csv"
        add(f"robustness_{folder.name}", bars(own[own["selected"] & (own["split"] == "test")]), source)
        add(f"epochs_{folder.name}", epochs(own), source)
        if (folder / "log.csv").exists():
            add(f"history_{folder.name}", history(folder), f"models/{folder.name}/log.csv and ats_*.h5")
        if list(folder.glob("slice_*.h5")):
            add(f"slice_{folder.name}", slices(folder), f"models/{folder.name}/slice_*.h5")
        if (folder / "adaptive.csv").exists():
            add(f"adaptive_{folder.name}", curves(pd.read_csv(folder / "adaptive.csv")), f"models/{folder.name}/adaptive.csv")
    if not folders:
        for name, network in runs[["dataset", "model"]].drop_duplicates().itertuples(index=False):
            here = runs[(runs["dataset"] == name) & (runs["model"] == network) & (runs["attack"] != "clean")]
            add(f"robustness_{name}_{network}", bars(here), "dare/paper/robustness.csv")
    if adaptive is not None:
        parts.append("<h2>Every selected model attacked itself, with 95% bootstrap intervals over images</h2>")
        parts.append(table_html(adaptive, 3, lambda row, column: "from adaptive.csv"))
    for folder in folders:
        parts.append(f"<h2>Adversarial examples and recorded commands: {html.escape(folder.name)}</h2>")
        for path in sorted((folder / "adv").glob("*.png")):
            settings = {k: v for k, v in attributes(path.with_suffix(".h5")).items() if k in ("samples", "mode", "epsilon", "steps")}
            data = base64.b64encode(path.read_bytes()).decode()
            caption = html.escape(f"{path.stem}: models/{folder.name}/adv/{path.stem}.h5, {settings}")
            parts.append(f'<figure><img alt="{path.stem}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')
        log = pd.DataFrame(commands(folder), columns=["stage", "command", "start", "seconds"])
        parts.append(table_html(log, 1, lambda row, column: "from the .log files"))
    path = target / "report.html"
    body = "\n".join(parts)
    write_text(
        path, f'<!doctype html><html lang="en"><meta charset="utf-8"><title>DARE: {target.name}</title><style>{STYLE}</style><body>{body}</body></html>\n'
    )
    return path
