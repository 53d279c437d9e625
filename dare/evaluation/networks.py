"""The tables of the networks: how they were trained, and their scores beside the paper's."""

import numpy as np
import pandas as pd

from dare.evaluation.claims import PAPER_CELLS
from dare.evaluation.comparisons import best_baseline
from dare.evaluation.facts import facts
from dare.evaluation.runs import NETWORK, PAPER, commands, of_network


def networks_table(recorded, cells, published):
    """Clean accuracy and mean robustness of every network, ours beside the paper's.

    Args:
        recorded: RecordedRuns. cells: of robustness_table, at the most robust epochs.
        published: of published_means.

    Returns:
        DataFrame with a row for each of the paper's networks, run or not, and for the others that
        were run. Its columns are dataset, model, clean (of the original), best_at (the best
        adversarial training; "" if none was run), at, dare, dare_clean and control_seed; and
        paper_clean, paper_at (the highest), paper_dare and paper_dare_clean. In %; NaN for what
        was not run.
    """
    others = [network for network in recorded.networks() if network not in PAPER_CELLS]
    return pd.DataFrame(
        {"dataset": network[0], "model": network[1]}
        | our_scores(recorded, cells, *network)
        | paper_scores(published, *network)
        for network in PAPER_CELLS + others
    )


def our_scores(recorded, cells, dataset, model):
    """The columns of networks_table from the recorded runs of a network."""
    rows = of_network(recorded.chosen["selected"], dataset, model)
    best_at = best_baseline(recorded, rows, is_fair=False)
    found = of_network(cells[cells["attack"] == "mean"], dataset, model).set_index("label")
    found = found.reindex(["original", "dare", best_at, "control-seed"])
    return {
        "clean": found["clean"]["original"],
        "best_at": best_at,
        "at": found["mean"][best_at],
        "dare": found["mean"]["dare"],
        "dare_clean": found["clean"]["dare"],
        "control_seed": found["mean"]["control-seed"],
    }


def paper_scores(published, dataset, model):
    """The same from the paper's published numbers."""

    def value(method, column):
        return published.get((dataset, model, method, column), np.nan)

    methods = {key[2] for key in published if key[:2] == (dataset, model)}
    baselines = [value(m, "mean") for m in methods if m.startswith("at-")]
    return {
        "paper_clean": value("original", "clean"),
        "paper_at": max(baselines, default=np.nan),
        "paper_dare": value("dare", "mean"),
        "paper_dare_clean": value("dare", "clean"),
    }


def models_table(recorded):
    """Sizes of training, parameters and accuracy of the networks, beside the authors' table."""
    theirs = pd.read_csv(PAPER / "models.csv").set_index(NETWORK)
    originals = recorded.rows[recorded.rows["method"] == "original"].drop_duplicates("folder")
    table = originals[[*NETWORK, "source", "epoch"]].rename(columns={"epoch": "epochs"})
    known = [facts(recorded.folders[name]) for name in originals["folder"]]
    authors = theirs.reindex(pd.MultiIndex.from_frame(originals[NETWORK]))
    table["images"] = [training_images(recorded.folders[name]) for name in originals["folder"]]
    table["parameters (M)"] = [(of_study["parameters"] or np.nan) / 1e6 for of_study in known]
    table["authors' parameters"] = authors["params_millions"].to_numpy()
    table["clean accuracy"] = originals["test_accuracy"]
    table["authors' accuracy"] = authors["test_accuracy_percent"].to_numpy()
    return table.dropna(axis=1, how="all")


def training_images(folder):
    """Number of training images, by the recorded training; NaN if it was not recorded."""
    recorded = commands(folder, versions=True)
    if not {"stage", "images"} <= set(recorded):
        return np.nan
    images = recorded.loc[recorded["stage"].str.startswith("train "), "images"].astype(float)
    return images.iloc[-1] if len(images) else np.nan
