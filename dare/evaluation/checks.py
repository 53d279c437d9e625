"""Warnings about unreliable recorded runs."""

import pandas as pd

from adv import SUCCESS_NEEDED
from dare.evaluation.comparisons import lowest_accuracy
from dare.evaluation.facts import facts
from dare.evaluation.runs import NETWORK, PAPER
from dare.methods import METHODS

POINTS_BELOW_PAPER = 20
MINED_NEEDED = 100
SAMPLES_NEEDED = 50


def warnings(recorded):
    """One sentence for every problem of a study, for the terminal and the top of the report."""
    paper = pd.read_csv(PAPER / "models.csv").set_index(NETWORK)["test_accuracy_percent"]
    texts = []
    for name, folder in recorded.folders.items():
        rows = recorded.rows[recorded.rows["folder"] == name]
        known = facts(folder)
        problems = [
            *problems_of_accuracy(rows, paper),
            *problems_of_samples(known, rows),
            *problems_of_mining(known),
            *problems_of_candidates(rows),
            *problems_of_selection(rows),
        ]
        texts += [f"{name}: {problem}." for problem in problems]
    return texts


def problems_of_accuracy(rows, paper):
    original = rows[rows["method"] == "original"].iloc[0]
    clean = original["test_accuracy"]
    lowest = lowest_accuracy(original["dataset"])
    published = paper.get((original["dataset"], original["model"]), 0)
    if clean < lowest:
        yield f"the network has {clean:.1f}% clean accuracy, less than {lowest:g}%"
    elif clean < published - POINTS_BELOW_PAPER:
        yield (
            f"the network has {clean:.1f}% clean accuracy, over {POINTS_BELOW_PAPER} points below "
            f"the paper's {published:g}%"
        )


def problems_of_samples(known, rows):
    for attack, success in known["success"].items():
        if success < SUCCESS_NEEDED:
            yield f"{attack} succeeds on {100 * success:.0f}% of the images, less than half"
    tested = rows[(rows["split"] == "test") & (rows["method"] == "original")]
    too_few = tested[tested["n"] < SAMPLES_NEEDED]
    if len(too_few):
        attacks = ", ".join(f"{row.attack} ({row.n})" for row in too_few.itertuples())
        yield f"fewer than {SAMPLES_NEEDED} reported samples of {attacks}"


def problems_of_mining(known):
    for name, mined in known["mined"].items():
        if mined < MINED_NEEDED:
            yield f"{name} has {mined} mined images, fewer than {MINED_NEEDED}"


def problems_of_candidates(rows):
    """Methods among which selection is unfair: some had more epochs or rates to choose from."""
    tuned = rows[[METHODS[method].script is not None for method in rows["method"]]]
    methods = tuned.groupby("method")
    numbers = {"epochs": methods["epoch"].max(), "rate": methods["lr_rate"].nunique()}
    for key, what in {"epochs": "epochs", "rate": "learning rates"}.items():
        of_method = numbers[key][numbers[key] > 0]  # some have no learning rate
        kinds = [getattr(METHODS[method], key) for method in of_method.index]
        for _, group in of_method.groupby(kinds, sort=False):
            if group.nunique() > 1:
                shown = ", ".join(f"{method} {number:g}" for method, number in group.items())
                yield f"methods had different numbers of {what} to choose from ({shown})"


def problems_of_selection(rows):
    validated = rows[(rows["split"] == "validation") & (rows["n"] > 0)]
    labels = sorted(set(rows["label"]))
    unselected = [label for label in labels if label not in set(validated["label"])]
    if unselected:
        yield (
            f"{', '.join(unselected)}: no validation sample, so no epoch could be selected; make "
            f"more samples with adv/generate_adv.py --samples"
        )
    within = set(rows.loc[rows["selected_within_1"], "label"])
    lossy = [label for label in labels if label not in within and label not in unselected]
    if lossy:
        yield f"no epoch within 1 point of the original's clean accuracy: {', '.join(lossy)}"
