"""The figures of the report. Every function returns a Matplotlib figure, or None without data."""

import numpy as np
from scipy.optimize import isotonic_regression

from dare.evaluation.compare import ALL, COMPARISONS
from dare.evaluation.results import NETWORK, in_order, of_network
from dare.evaluation.tables import AVERAGED, first_rows, name_of
from dare.methods import FAMILIES, METHODS
from train.shared.figures import plt

plt.rcParams |= {
    "font.size": 9, "svg.hashsalt": "dare", "axes.grid": True, "grid.alpha": 0.3,
    "axes.titlesize": 10, "figure.titlesize": 11, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip

# From the colour-blind safe palette of Okabe and Ito: a colour for each family, and for the methods
# in the figure of adaptive attacks.
COLOURS = dict(zip(FAMILIES, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True))
SHAPES = dict(zip(FAMILIES, "DosPX", strict=True))
CURVES = {
    "original": "#000000", "dare": "#0072B2", "control-finetune": "#009E73", "at-pgd": "#D55E00",
}  # fmt: skip
LOST = 20  # a method that loses more points of clean accuracy is not drawn, only named
METRIC = "empirical robustness (%)"
RULE = "last epochs"


def trade_off(cells, rule=RULE):
    """Clean accuracy change against robustness: a point a method, the mean over networks.

    Thin lines: the range over networks. A method that some networks lack says in how many it is;
    one that loses more than LOST points of clean accuracy is only named. cells: of
    robustness_table.
    """
    points = cells[(cells["attack"] == AVERAGED) & (cells["method"] != "original")]
    lost = points.groupby("method")["change"].mean() < -LOST
    left_out = list(lost.index[lost])
    points = points[~points["method"].isin(left_out)]
    if points.empty:
        return None
    networks = len(points[NETWORK].drop_duplicates())
    found = points.groupby("method")[["change", "robustness"]].agg(["mean", "min", "max"])
    found = found.sort_values(("robustness", "mean"))
    counts = points["method"].value_counts()
    figure, axis = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    for method, row in found.iterrows():
        colour, shape = style(method)
        x, y = row["change"], row["robustness"]
        axis.plot([x["min"], x["max"]], [y["mean"]] * 2, color=colour, lw=0.7, alpha=0.4)
        axis.plot([x["mean"]] * 2, [y["min"], y["max"]], color=colour, lw=0.7, alpha=0.4)
        axis.plot(x["mean"], y["mean"], shape, color=colour, ms=8, mec="white", mew=0.6,
                  zorder=zorder(method))  # fmt: skip
    low, high = points["robustness"].min(), points["robustness"].max()
    margin = 0.04 * (high - low) + 1
    axis.set(xlim=(max(points["change"].min(), -LOST) - 0.3, max(points["change"].max(), 0) + 0.3))
    axis.set(ylim=(low - margin, high + margin))
    axis.axvline(0, color="#555555", lw=0.8)
    arrow = {"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkB": 4}
    heights = spread(found["robustness", "mean"].to_numpy(), (high - low + 8) / 24)
    for (method, row), height in zip(found.iterrows(), heights, strict=True):
        at = row["change", "mean"], row["robustness", "mean"]
        label = method + (f" ({counts[method]})" if counts[method] < networks else "")
        axis.annotate(
            label, at, (1.03, height), textcoords=axis.get_yaxis_transform(), ha="left",
            color=style(method)[0], va="center", annotation_clip=False, arrowprops=arrow,
        )  # fmt: skip
    note = f"\nlost more than {LOST} points, not drawn: {', '.join(left_out)}" if left_out else ""
    label = f"change of clean accuracy (points){note}"
    axis.set(xlabel=label, ylabel=f"mean {METRIC} over attacks")
    spans = "mean, and thin lines the range, over" if networks > 1 else "one point a method in"
    title = f"Robustness and what it costs: {spans} {counted(networks, 'network')}\n{rule}"
    axis.set_title(title, loc="left")
    handles = family_handles(found.index)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def comparisons(table):
    """A row for each comparison: a dot a network, their mean a diamond, with their intervals."""
    rows = first_rows(table)
    cells = rows[rows["dataset"] != ALL]
    if cells.empty:
        return None
    named = [(c.component, c.other) for c in COMPARISONS]
    named = [n for n in named if ((rows["component"] == n[0]) & (rows["other"] == n[1])).any()]
    networks = list(cells[NETWORK].drop_duplicates().itertuples(index=False, name=None))
    models, datasets = (sorted({n[i] for n in networks}) for i in (1, 0))
    hues = dict(zip(models, plt.colormaps["Dark2"].colors * len(models), strict=False))
    shapes = dict(zip(datasets, "os^vPX*" * len(datasets), strict=False))
    offsets = np.linspace(0.4, -0.4, len(networks) + 3)[1:-1]  # the last one is that of the mean
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.48 * len(named)), layout="constrained")
    for row in rows.itertuples():
        if (row.component, row.other) not in named:
            continue
        y = len(named) - 1 - named.index((row.component, row.other))
        if row.dataset == ALL:
            axis.plot([row.low, row.high], [y + offsets[-1]] * 2, color="black", lw=1.2)
            axis.plot(row.difference, y + offsets[-1], "D", color="black", ms=5, mec="white")
        else:
            offset = offsets[networks.index((row.dataset, row.model))]
            colour = hues[row.model]
            fill = {"mfc": "none"} if row.originals else {"mec": "white", "mew": 0.4}
            axis.plot([row.low, row.high], [y + offset] * 2, color=colour, lw=0.7, alpha=0.6)
            axis.plot(row.difference, y + offset, shapes[row.dataset], color=colour, ms=5, **fill)
    for dataset, model in networks:
        axis.plot([], [], shapes[dataset], color=hues[model], label=f"{model} {dataset}")
    label = "thin: Student's 95%\ninterval over images"
    axis.plot([], [], color="#555555", lw=0.7, label=label)
    if len(over := rows[rows["dataset"] == ALL]):
        what = ",\nStudent's 95% interval" if over["low"].notna().any() else ""
        axis.plot([], [], "D-", color="black", label=f"mean over networks{what}")
    if cells["originals"].any():
        label = "hollow: the other model\nis the original itself"
        axis.plot([], [], "o", color="#555555", mfc="none", label=label)
    axis.axvline(0, color="#555555", lw=1)
    axis.set(yticks=range(len(named)), xlabel="DARE minus the other method (points)")
    axis.set_yticklabels([f"{c}: {other}" for c, other in reversed(named)])
    title = f"DARE minus other methods in {counted(len(networks), 'network')} ({RULE})"
    axis.set_title(title, loc="left", x=-0.3)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def adaptive(table, networks):
    """Robust accuracy against epsilon, the worst case over the attacks: a panel for each network.

    table: of adaptive_table.
    """
    networks = [n for n in networks if len(table) and len(of_network(table, n))]
    if not networks:
        return None
    figure, axes = panels(networks)
    for axis, network in zip(axes, networks, strict=False):
        here = of_network(table, network)
        sizes = sorted(here["epsilon"].unique())
        for method, rows in here.groupby("method"):
            if method in CURVES:
                rows = rows.set_index("epsilon")["robust_accuracy"].reindex(sizes)
                axis.plot(range(len(sizes)), rows, "o-", ms=3, color=CURVES[method])
        axis.set(xticks=range(len(sizes)), ylim=(-2, 102))
        axis.set_xticklabels([f"{size:.2g}" for size in sizes])
        axis.set_title(f"{name_of(network)}, n {here['n'].max():.0f}")
    figure.supxlabel("epsilon (Linf, pixels in [0, 1])")
    figure.supylabel("robust accuracy (%)")
    figure.suptitle("Every model attacked directly: worst case over the attacks (n images a seed)")
    present = [method for method in CURVES if method in set(table["method"])]
    handles = [plt.Line2D([], [], color=CURVES[m], marker="o", ms=3, label=m) for m in present]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def mined_epochs(table, networks):
    """How many of the mined images take their target from each epoch, a panel a network."""
    networks = [n for n in networks if len(table) and len(of_network(table, n))]
    if not networks:
        return None
    figure, axes = panels(networks)
    for axis, network in zip(axes, networks, strict=False):
        rows = of_network(table, network)
        rows = rows[rows["layer"] == rows["layer"].iloc[0]]  # every layer has the same images
        counts = rows.groupby("epoch")["images"].sum()
        axis.bar(counts.index, 100 * counts / counts.sum(), color=COLOURS["dare"])
        axis.set_title(f"{name_of(network)}, n {counts.sum()}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch of the original's training")
    figure.supylabel("share of the mined images (%)")
    figure.suptitle("The earlier epochs that mined images take their targets from (n images)")
    return figure


def sensitivity(table):
    """Robustness with its interval, a line a method; a panel for each study and setting."""
    if table.empty:
        return None
    kinds = list(table[["study", "setting"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = panels(kinds)
    methods = in_order(table["method"])
    colours = dict(zip(methods, plt.colormaps["tab20"].colors * len(methods), strict=False))
    for axis, (study, setting) in zip(axes, kinds, strict=False):
        rows = table[(table["study"] == study) & (table["setting"] == setting)]
        values = sorted(rows["value"].unique())
        for method, line in rows.groupby("method"):
            line = line.set_index("value").reindex(values)
            half = line["high"] - line["robustness"]
            axis.errorbar(range(len(values)), line["robustness"], half, fmt="o-", ms=4, capsize=2,
                          color=colours[method], zorder=zorder(method))  # fmt: skip
        axis.set(xticks=range(len(values)), ylim=(-2, 102), xlabel=setting)
        axis.set_xticklabels([v if isinstance(v, str) else f"{v:g}" for v in values])
        axis.set_title(f"{study}, n {rows['n'].max():.0f}", fontsize=8)
    figure.supylabel(f"mean {METRIC}")
    figure.suptitle("Influence of a setting (last epochs; n samples an attack)")
    handles = [plt.Line2D([], [], color=colours[m], marker="o", ms=4, label=m) for m in methods]
    figure.legend(handles=handles, loc="outside right center")
    return figure


# ------------------------------------------------------------------------------------------- parts


def style(method):
    """Colour and marker of a method: those of its family."""
    family = METHODS[method].family
    return COLOURS[family], SHAPES[family]


def zorder(method):
    """DARE is drawn over the other methods, some of which are hardly different."""
    return 3 if method == "dare" else 2  # 2 is Matplotlib's zorder of lines


def family_handles(methods):
    present = {METHODS[method].family for method in methods}
    return [
        plt.Line2D([], [], ls="", marker=SHAPES[f], color=COLOURS[f], label=f)
        for f in FAMILIES if f in present
    ]  # fmt: skip


def counted(count, noun):
    return f"{count} {noun}{'s' if count > 1 else ''}"


def panels(networks):
    """A figure with a panel for each network, three in a row; returns it and the axes."""
    columns = min(3, len(networks))
    rows = -(-len(networks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(3.2 * columns, 7), 2.4 * rows + 1.2), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(networks) :]:
        axis.set_axis_off()
    return figure, axes.flat


def spread(values, gap):
    """Ascending values moved apart to at least `gap`, as little as possible (least squares)."""
    steps = gap * np.arange(len(values))
    return isotonic_regression(np.asarray(values) - steps).x + steps
