"""The figures of the report. Every function returns a Matplotlib figure."""

import matplotlib
import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from adv import ATTACKS
from dare.evaluation.claims import ALL, OTHERS
from dare.evaluation.comparisons import COMPARISONS
from dare.evaluation.runs import labels_in_order
from dare.evaluation.scores import LOSS_ALLOWED
from dare.methods import FAMILIES, family
from train.shared.artifacts import open_artifact
from train.shared.flags import command_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams |= {"font.size": 9, "svg.hashsalt": "dare", "axes.grid": True, "grid.alpha": 0.3}

# A colour for each family, from the colour-blind safe palette of Okabe and Ito. Within a family
# methods are told apart by their place and their label.
COLOURS = dict(zip(FAMILIES, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True))
CURVES = ("dare", "control-finetune")  # of accuracy_curves
LEGEND_BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False}
NORMS = {"linf": "Linf", "l2": "L2"}
MAY_LOSE = {c.component for c in COMPARISONS if c.quantity == "clean"}  # LOSS_ALLOWED
MAX_DISTANCE = 12  # points of clean accuracy below the best, where the trade-off picture ends


def robustness(cells):
    """Robustness with its interval: a row for each method, a panel for each attack.

    cells: of robustness_table. Hollow: loses more than 1 point of clean accuracy.
    """
    cells = cells[cells["method"] != "original"]
    attacks = [attack for attack in (*ATTACKS, "mean") if attack in set(cells["attack"])]
    labels = labels_in_order(cells)[::-1]
    figure, axes = plt.subplots(
        1, len(attacks), sharey=True, squeeze=False, layout="constrained",
        figsize=(1.5 + 1.6 * len(attacks), 0.9 + 0.23 * len(labels)),
    )  # fmt: skip
    for axis, attack in zip(axes[0], attacks, strict=True):
        for row in cells[cells["attack"] == attack].itertuples():
            colour = COLOURS[family(row.method)]
            y = labels.index(row.label)
            low, high = row.low, row.high
            if not np.isfinite(low):
                low, high = row.mean - row.std, row.mean + row.std
            axis.plot([low, high], [y, y], color=colour, lw=1.2)
            axis.plot(row.mean, y, "o", color=colour, mfc="white" if row.loses else colour, ms=5)
        axis.set(xlim=(-3, 103), xticks=(0, 50, 100), yticks=range(len(labels)))
        axis.set_yticklabels(labels)
        axis.set_title(attack, fontsize=9)
    figure.supxlabel("empirical robustness (%)", fontsize=9)
    present = set(map(family, cells["method"]))
    for name in [name for name in FAMILIES if name in present]:
        axes[0, 0].plot([], [], "o", color=COLOURS[name], label=name)
    figure.legend(loc="outside upper right", ncols=len(present), frameon=False, fontsize=8)
    return figure


def claims(table):
    """A row for each comparison, by the rule that decides: over the paper's cells, and every cell.

    table: of claims_table. A cell has the colour of its network and the shape of its data set.
    Hollow: the two methods cannot be compared in it; outside the axes it is drawn at the edge.
    Dotted: the clean accuracy that may be lost.
    """
    table = table[table["decides"] & table["difference"].notna() & (table["model"] != OTHERS)]
    rows = [*dict.fromkeys(zip(table["component"], table["setting"], strict=True))][::-1]
    cells = sorted(set(zip(table["model"], table["dataset"], strict=True)) - {(ALL, ALL)})
    lines = [(ALL, ALL), *cells]  # of every comparison, from above
    heights = dict(zip(lines, np.linspace(0.38, -0.38, len(lines)), strict=True))
    models, datasets = (sorted(set(names)) for names in zip(*cells, strict=True))
    hues = dict(zip(models, plt.colormaps["tab10"].colors * len(models), strict=False))
    shapes = dict(zip(datasets, "os^vPX*" * len(datasets), strict=False))
    is_comparable = table["conclusion"] != "not comparable"
    visible = table[is_comparable] if is_comparable.any() else table
    edges = visible["low"].min() - 3, visible["high"].max() + 3
    height = max(0.5, 0.06 * len(lines))  # of a comparison, in inches
    figure, axis = plt.subplots(figsize=(10, 1 + height * len(rows)), layout="constrained")
    for row in table.itertuples():
        number = rows.index((row.component, row.setting))
        y = number + heights[row.model, row.dataset]
        colour, shape = hues.get(row.model, "black"), shapes.get(row.dataset, "D")
        size, width = (6, 2.2) if row.model == ALL else (3.8, 0.9)
        axis.plot(np.clip([row.low, row.high], *edges), [y, y], color=colour, lw=width)
        face = "white" if row.conclusion == "not comparable" else colour
        x = np.clip(row.difference, *edges)
        axis.plot(x, y, shape, color=colour, mfc=face, ms=size, clip_on=False)
        if row.component in MAY_LOSE:
            loss = [-LOSS_ALLOWED, -LOSS_ALLOWED]
            axis.plot(loss, [number - 0.5, number + 0.5], ":", color="#555555", lw=1)
    axis.axvline(0, color="#555555", lw=1)
    for number in range(1, len(rows)):
        axis.axhline(number - 0.5, color="#cccccc", lw=0.8)
    for model, dataset in cells:
        shape, colour = shapes[dataset], hues[model]
        axis.plot([], [], shape, color=colour, label=f"{model}, {dataset}", ms=4.5)
    axis.plot([], [], "D", color="black", label="over the paper's cells")
    others = table.drop_duplicates("component").set_index("component")["compared_with"]

    def label(component, setting):
        title = f"{component}, {setting}" if setting else component
        return f"{title}\n(DARE minus {others[component]})"

    axis.set(xlim=edges, ylim=(-0.5, len(rows) - 0.5), yticks=range(len(rows)))
    axis.set_yticklabels([label(*row) for row in rows], fontsize=8)
    axis.set_xlabel("points")
    axis.grid(axis="y", visible=False)
    axis.legend(**LEGEND_BESIDE)
    return figure


def trade_off(cells):
    """Clean accuracy against mean robustness: a labelled point for each method."""
    points = cells[cells["attack"] == "mean"].sort_values("mean")
    left = max(points["clean"].max() - MAX_DISTANCE, points["clean"].min() - 1)
    right = points["clean"].max() + 0.8
    bottom = -4
    top = max(points["mean"].max() * 1.06, 10)
    height = max(3.6, 0.24 * len(points) + 0.8)
    line_height = 0.2 * (top - bottom) / (height - 0.8)  # of a line of text
    figure, axis = plt.subplots(figsize=(8, height), layout="constrained")
    arrow = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6, "relpos": (0, 0.5)}
    is_outside = points["clean"] < left
    # Points outside get their labels at the left edge, the others at the right.
    for side, label_x in (points[is_outside], left + 0.5), (points[~is_outside], right + 0.25):
        label_y = spread(side["mean"].to_numpy(), line_height, bottom, top)
        for row, y in zip(side.itertuples(), label_y, strict=True):
            colour = COLOURS[family(row.method)]
            x = max(row.clean, left)
            marker, note = ("<", f" ({row.clean:.1f}% clean)") if row.clean < left else ("o", "")
            axis.plot(x, row.mean, marker, color=colour, ms=6)
            axis.annotate(
                row.label + note, (x, row.mean), (label_x, y), color=colour, va="center",
                fontsize=8, annotation_clip=False, arrowprops=arrow,
            )  # fmt: skip
    original = points.loc[points["method"] == "original", "clean"]
    if len(original):
        axis.axvline(original.iloc[0] - LOSS_ALLOWED, color="#555555", ls=":", lw=1)
        axis.set_title("dotted: 1 point below the original", fontsize=8, loc="left")
    axis.set(xlim=(left - 0.3, right), ylim=(bottom, top))
    axis.set(xlabel="clean accuracy (%)", ylabel="mean empirical robustness (%)")
    return figure


def accuracy_curves(rows):
    """Robustness against clean accuracy, epoch by epoch, of DARE and of fine-tuning.

    rows: of RecordedRuns.rows, of one network; both axes are what selection saw. A line for each
    learning rate, run and source model. Filled circles: selected; squares: selected within 1 point
    of clean accuracy. Returns None if either method was not run.
    """
    keys = ["label", "method", "lr_rate", "folder", "run", "epoch"]
    seen = rows[(rows["split"] == "validation") & rows["method"].isin((*CURVES, "original"))]
    marks = ["selection_accuracy", "selected", "selected_within_1"]
    points = seen.groupby([*keys, *marks], dropna=False)["empirical_robustness"].mean()
    points = points.reset_index().sort_values("epoch")
    if not set(CURVES) <= set(points["method"]):
        return None
    originals = points[points["method"] == "original"].set_index("folder")["selection_accuracy"]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    lines = points[points["method"] != "original"].groupby(["method", "label", "lr_rate"])
    styles = {method: iter(("-", "--", ":", "-.") * len(lines)) for method in CURVES}
    for (method, label, rate), of_rate in lines:
        colour, style = COLOURS[family(method)], next(styles[method])
        axis.plot([], [], style, color=colour, label=f"{label}, rate {rate:g}")
        for (folder, _), line in of_rate.groupby(["folder", "run"]):
            line = line.assign(change=line["selection_accuracy"] - originals[folder])
            at = line["change"], line["empirical_robustness"]
            axis.plot(*at, style, marker="o", color=colour, lw=1, ms=3, mfc="white")
            for mark, shape, size in ("selected_within_1", "s", 8), ("selected", "o", 5):
                best = line[line[mark]]
                at = best["change"], best["empirical_robustness"]
                axis.plot(*at, shape, color=colour, ms=size, mec="white", mew=0.5)
    axis.axvline(-LOSS_ALLOWED, color="#555555", ls=":", lw=1)
    axis.set(xlabel="change of clean accuracy, selection half (points)")
    axis.set(ylabel="mean empirical robustness, validation part (%)")
    axis.legend(**LEGEND_BESIDE)
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
    """Worst-case robust accuracy over epsilon under adaptive attack, a panel for each norm.

    table: of adaptive_table. Named are DARE, the original, the best control and at-pgd.
    """
    norms = [norm for norm in NORMS if norm in set(table["norm"])]
    curves = table.groupby(["norm", "label", "epsilon"])[["robust_accuracy", "low", "high"]].mean()
    areas = curves["robust_accuracy"].groupby("label").mean()
    families = {
        row.label: family(row.method) for row in table.drop_duplicates("label").itertuples()
    }
    controls = [label for label in areas.index if families[label] == "controls"]
    best_control = [areas[controls].idxmax()] if controls else []
    dare = [label for label in labels_in_order(table) if families[label] == "dare"][:1]
    named = [name for name in (*dare, "original", *best_control, "at-pgd") if name in areas.index]
    figure, axes = plt.subplots(
        1, len(norms), figsize=(3.6 * len(norms) + 2, 3.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, norm in zip(axes[0], norms, strict=True):
        sizes = np.unique(table.loc[table["norm"] == norm, "epsilon"])
        places = range(len(sizes))  # at even distances, so that small epsilons can be told apart
        of_norm = curves.loc[norm]
        for label in [label for label in areas.index if label in of_norm.index.unique("label")]:
            curve = of_norm.loc[label].reindex(sizes)
            values = curve["robust_accuracy"].to_numpy()
            if label not in named:
                axis.plot(values, color="#cccccc", lw=0.8, zorder=1)
                continue
            colour = COLOURS[families[label]]
            axis.plot(values, "o-", ms=3, color=colour, label=label)
            axis.fill_between(places, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)
        axis.set(title=NORMS[norm], xlabel="epsilon", xticks=places, ylim=(-2, 102))
        axis.set_xticklabels([f"{size:.3g}" for size in sizes])
    axes[0, 0].set_ylabel("robust accuracy, worst case (%)")
    axes[0, -1].plot([], [], color="#cccccc", label="other methods")
    axes[0, -1].legend(**LEGEND_BESIDE)
    return figure


def history(folder):
    """Training history, and below it how many mined images take their target from each epoch."""
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
    top.legend(**LEGEND_BESIDE)
    for path in mined:
        with open_artifact(path, command_of("dare/get_ats.py")) as file:
            epochs, counts = np.unique(file["epoch"][()], return_counts=True)
        axes[1, 0].bar(epochs, counts, color="#009E73", label="targets of\nmined images")
        axes[1, 0].set_ylabel("images")
        axes[1, 0].legend(**LEGEND_BESIDE)
    axes[-1, 0].set_xlabel("epoch")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    return figure


def slice_shares(path):
    """For every layer, the share of synapses in all class slices, in the model's, and in any."""
    with open_artifact(path, command_of("dare/nnslicer.py")) as file:
        layers = sorted(file, key=lambda name: file[name].attrs["order"])
        shares = [layer_shares(file[name]) for name in layers]
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    bars = {
        "the slices of all classes": "#E69F00",
        "the model's slice": "#0072B2",
        "the slice of any class": "#56B4E9",
    }
    for i, (title, colour) in enumerate(bars.items()):
        places = np.arange(len(layers)) + (i - 1) * 0.28
        axis.bar(places, [share[i] for share in shares], 0.28, label=title, color=colour)
    axis.set(ylabel="share of synapses (%)", xticks=range(len(layers)))
    axis.set_xticklabels(layers, rotation=45, ha="right")
    axis.legend(title="synapses in", **LEGEND_BESIDE)
    return figure


def layer_shares(group):
    """Shares in % of a layer's synapses in all class slices, in the model's slice and in any."""
    class_masks = group["class_mask"]
    in_all = in_any = class_masks[0]
    for c in range(1, len(class_masks)):  # one at a time: a layer of VGG has 16 million synapses
        in_all = in_all & class_masks[c]
        in_any = in_any | class_masks[c]
    return [100 * mask.mean() for mask in (in_all, group["mask"][()], in_any)]
