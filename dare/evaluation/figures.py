"""The figures of the report. Every function returns a Matplotlib figure."""

import h5py
import matplotlib
import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from adv import ATTACKS
from dare.evaluation.claims import ALL
from dare.evaluation.runs import FAMILIES, family, methods_in_order

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams |= {"font.size": 9, "svg.hashsalt": "dare", "axes.grid": True, "grid.alpha": 0.3}

# A colour for each family (Okabe and Ito's, which the colour-blind can tell apart); within one,
# methods are told apart by their place and their label.
COLOURS = dict(zip(FAMILIES, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True))
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False}  # legends
NORMS = {"linf": "Linf", "l2": "L2"}
FARTHEST = 12  # points of clean accuracy below the best, where the trade-off picture ends


def dots(cells):
    """Robustness with its interval: a row a method, a panel an attack; hollow: loses 1 point."""
    cells = cells[cells["method"] != "original"]
    attacks = [a for a in (*ATTACKS, "mean") if a in set(cells["attack"])]
    names = methods_in_order(cells["method"])[::-1]
    figure, axes = plt.subplots(
        1, len(attacks), sharey=True, squeeze=False, layout="constrained",
        figsize=(1.5 + 1.6 * len(attacks), 0.9 + 0.23 * len(names)),
    )  # fmt: skip
    for axis, attack in zip(axes[0], attacks, strict=True):
        for row in cells[cells["attack"] == attack].itertuples():
            colour, y = COLOURS[family(row.method)], names.index(row.method)
            low, high = (row.low, row.high) if np.isfinite(row.low) else (
                row.mean - row.std, row.mean + row.std)  # fmt: skip
            axis.plot([low, high], [y, y], color=colour, lw=1.2)
            face = "white" if row.loses else colour
            axis.plot(row.mean, y, "o", color=colour, mfc=face, ms=5)
        axis.set(xlim=(-3, 103), xticks=(0, 50, 100), yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.set_title(attack, fontsize=9)
    figure.supxlabel("empirical robustness (%)", fontsize=9)
    present = [name for name in FAMILIES if name in set(map(family, names))]
    for name in present:
        axes[0, 0].plot([], [], "o", color=COLOURS[name], label=name)
    figure.legend(loc="outside upper right", ncols=len(present), frameon=False, fontsize=8)
    return figure


def claims(table):
    """A row a claim, by the rule that decides it: over all cells and, below, every cell.

    table: of claims_table. Hollow: a cell in which the two methods cannot be compared, at the edge
    where it lies outside. Dotted: what clean accuracy may be lost.
    """
    table = table[table["decides"] & table["difference"].notna()]
    names = list(dict.fromkeys(table["claim"]))[::-1]
    cells = sorted(set(zip(table["model"], table["dataset"], strict=True)) - {(ALL, ALL)})
    lines = [(ALL, ALL), *cells]  # of every claim, from above
    heights = dict(zip(lines, np.linspace(0.4, -0.3, len(lines)), strict=True))
    hues = dict(zip(cells, plt.colormaps["tab10"].colors * len(cells), strict=False))
    shown = table[table["why_not"].isna()] if table["why_not"].isna().any() else table
    edges = shown["low"].min() - 3, shown["high"].max() + 3
    figure, axis = plt.subplots(figsize=(10, 1 + 0.6 * len(names)), layout="constrained")
    for row in table.itertuples():
        cell, claim = (row.model, row.dataset), names.index(row.claim)
        y, colour = claim + heights[cell], hues.get(cell, "black")
        size, width, shape = (3.5, 0.9, "o") if cell in hues else (6, 2.2, "D")
        axis.plot(np.clip([row.low, row.high], *edges), [y, y], color=colour, lw=width)
        x, face = np.clip(row.difference, *edges), colour if pd.isna(row.why_not) else "white"
        axis.plot(x, y, shape, color=colour, mfc=face, ms=size, clip_on=False)
        if row.claim.startswith("clean"):
            axis.plot([-1, -1], [claim - 0.5, claim + 0.5], ":", color="#555555", lw=1)
    axis.axvline(0, color="#555555", lw=1)
    for between in range(1, len(names)):
        axis.axhline(between - 0.5, color="#cccccc", lw=0.8)
    for cell, colour in hues.items():
        axis.plot([], [], "o", color=colour, label=", ".join(cell))
    axis.plot([], [], "D", color="black", label="over all that compare")
    minus = table.drop_duplicates("claim").set_index("claim")["minus"]
    axis.set(xlim=edges, ylim=(-0.5, len(names) - 0.5), yticks=range(len(names)))
    axis.set_yticklabels([f"{name}\n(dare minus {minus[name]})" for name in names], fontsize=8)
    axis.set_xlabel("points")
    axis.grid(axis="y", visible=False)
    axis.legend(**BESIDE)
    return figure


def trade_off(cells):
    """Clean accuracy against mean robustness: a labelled point a method."""
    points = cells[cells["attack"] == "mean"].sort_values("mean")
    edge = max(points["clean"].max() - FARTHEST, points["clean"].min() - 1)
    height = max(3.6, 0.24 * len(points) + 0.8)
    bottom, top = -4, max(points["mean"].max() * 1.06, 10)
    figure, axis = plt.subplots(figsize=(8, height), layout="constrained")
    right = points["clean"].max() + 0.8
    outside = points["clean"] < edge
    line = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6, "relpos": (0, 0.5)}
    for side, x_of_labels in (points[outside], edge + 0.5), (points[~outside], right + 0.25):
        gap = 0.2 * (top - bottom) / (height - 0.8)  # a line of text
        places = spread(side["mean"].to_numpy(), gap, bottom, top)
        for row, place in zip(side.itertuples(), places, strict=True):
            colour, beyond = COLOURS[family(row.method)], row.clean < edge
            x = max(row.clean, edge)
            axis.plot(x, row.mean, "<" if beyond else "o", color=colour, ms=6)
            axis.annotate(
                row.method + (f" ({row.clean:.1f}% clean)" if beyond else ""), (x, row.mean),
                (x_of_labels, place), color=colour, va="center", fontsize=8,
                annotation_clip=False, arrowprops=line,
            )  # fmt: skip
    original = points.loc[points["method"] == "original", "clean"]
    if len(original):
        axis.axvline(original.iloc[0] - 1, color="#555555", ls=":", lw=1)
        axis.set_title("dotted: 1 point below the original", fontsize=8, loc="left")
    axis.set(xlim=(edge - 0.3, right), ylim=(bottom, top))
    axis.set(xlabel="clean accuracy (%)", ylabel="mean empirical robustness (%)")
    return figure


def spread(values, gap, low, high):
    """Ascending values moved apart to at least `gap`, as little as possible, in [low, high]."""
    steps = gap * np.arange(len(values))
    if not len(values):
        return steps
    # Least squares under the order: neighbours that are too close move together.
    places = isotonic_regression(values - steps).x
    return np.clip(places, low + gap / 2, max(high - steps[-1] - gap / 2, low + gap / 2)) + steps


def adaptive_curves(table):
    """Worst-case robust accuracy over epsilon of models attacked themselves, a panel a norm.

    table: label, norm, epsilon, robust_accuracy, low, high, of the worst case over the attacks.
    """
    norms = [norm for norm in NORMS if norm in set(table["norm"])]
    curves = table.groupby(["norm", "label", "epsilon"])[["robust_accuracy", "low", "high"]].mean()
    areas = curves["robust_accuracy"].groupby("label").mean()
    controls = [name for name in areas.index if family(name) == "controls"]
    best = [areas[controls].idxmax()] if controls else []
    named = [n for n in ("dare", "original", *best, "at-pgd") if n in areas.index]
    figure, axes = plt.subplots(
        1, len(norms), figsize=(3.6 * len(norms) + 2, 3.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, norm in zip(axes[0], norms, strict=True):
        sizes = np.unique(table.loc[table["norm"] == norm, "epsilon"])
        here = curves.loc[norm]
        for name in [n for n in areas.index if n in here.index.unique("label")]:
            line = here.loc[name].reindex(sizes)
            if name not in named:
                axis.plot(line["robust_accuracy"].to_numpy(), color="#cccccc", lw=0.8, zorder=1)
                continue
            colour, places = COLOURS[family(name)], range(len(sizes))
            axis.plot(line["robust_accuracy"].to_numpy(), "o-", ms=3, color=colour, label=name)
            axis.fill_between(places, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        # Epsilons stand at even distances, so that small ones can be told apart.
        axis.set(title=NORMS[norm], xlabel="epsilon", xticks=range(len(sizes)), ylim=(-2, 102))
        axis.set_xticklabels([f"{size:.3g}" for size in sizes])
    axes[0, 0].set_ylabel("robust accuracy, worst case (%)")
    axes[0, -1].plot([], [], color="#cccccc", label="other methods")
    axes[0, -1].legend(**BESIDE)
    return figure


def history(folder):
    """Training history, and below it how many mined images have their best epoch where."""
    log = pd.read_csv(folder / "log.csv")
    mined = sorted(folder.glob("ats_*.h5"))[:1]
    figure, axes = plt.subplots(
        1 + len(mined), 1, figsize=(8, 2.6 + 1.4 * len(mined)), sharex=True, squeeze=False,
        layout="constrained", height_ratios=[2, 1][: 1 + len(mined)],
    )  # fmt: skip
    top = axes[0, 0]
    top.plot(log["epoch"], 100 * log["accuracy"], color="#0072B2", label="training images")
    top.plot(
        log["epoch"], 100 * log["val_accuracy"], color="#D55E00", ls="--", label="selection images"
    )
    top.set_ylabel("accuracy (%)")
    top.legend(**BESIDE)
    for path in mined:
        with h5py.File(path, "r") as file:
            best, count = np.unique(file["epoch"][()], return_counts=True)
        axes[1, 0].bar(best, count, color="#009E73", label="best epoch of\nmined images")
        axes[1, 0].set_ylabel("images")
        axes[1, 0].legend(**BESIDE)
    axes[-1, 0].set_xlabel("epoch")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    return figure


def slice_shares(path):
    """Per layer: the share of synapses in the slices of all classes, the model's, of any class."""
    with h5py.File(path, "r") as file:
        names = sorted(file, key=lambda name: file[name].attrs["order"])
        shares = []
        for name in names:
            masks = file[name]["class_mask"]
            every, some = masks[0], masks[0]
            for c in range(1, len(masks)):  # one at a time: a dense layer of VGG has 16 M synapses
                every, some = every & masks[c], some | masks[c]
            shares.append([100 * m.mean() for m in (every, file[name]["mask"][()], some)])
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    titles = ("the slices of all classes", "the model's slice", "the slice of any class")
    for i, (title, colour) in enumerate(
        zip(titles, ("#E69F00", "#0072B2", "#56B4E9"), strict=True)
    ):
        places = np.arange(len(names)) + (i - 1) * 0.28
        axis.bar(places, [share[i] for share in shares], 0.28, label=title, color=colour)
    axis.set(ylabel="share of synapses (%)", xticks=range(len(names)))
    axis.set_xticklabels(names, rotation=45, ha="right")
    axis.legend(title="synapses in", **BESIDE)
    return figure
