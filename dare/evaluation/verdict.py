"""The verdict, what each piece of DARE is worth, and warnings where a run means nothing."""

from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd

from dare.evaluation.intervals import bootstrap
from dare.evaluation.runs import (
    KEYS,
    LOSS_ALLOWED,
    PAPER,
    WITHOUT_RUNS,
    models_of,
    of_network,
    paired,
)
from train.artifacts import data_info

MATTERS = 1.0  # a gain that is surely smaller, in points, is called none
POINTS_BELOW_PAPER = 20
MINED_NEEDED, SAMPLES_NEEDED, SUCCESS_NEEDED = 100, 50, 0.5


@dataclass
class Question:
    """A row of the verdict: what `dare` minus `control` tells, in the words of its sentence."""

    title: str
    control: str
    piece: str
    own: bool = True  # DARE's own merit needs a yes here


QUESTIONS = (
    Question("the history", "control-self", "the mined history"),
    Question(
        "the choice per image", "control-single", "choosing a checkpoint for each image", False
    ),
    Question("tuning", "control-batchnorm", "tuning, beyond batch normalisation's drift,"),
    Question(
        "tuning, against an untouched checkpoint",
        "control-checkpoint",
        "tuning, beyond an earlier epoch,",
    ),
    Question("regression", "control-finetune", "regression, beyond the labels of the same images,"),
    Question("slicing", "dare-s", "the slice", False),
    Question("any other model", "control-seed", "DARE, beyond any other training of the network,"),
    Question("its direction", "control-noise", "the direction of tuning, beyond its length,"),
    Question("averaging", "control-swa", "DARE, beyond the mean of the mined checkpoints,", False),
)


def answer_of(low, high):
    """ "yes": surely better; "no": surely not by as much as MATTERS points; else "undecided"."""
    if low > 0:
        return "yes"
    return "no" if high < MATTERS else "undecided"


@dataclass
class Judged:
    """Models of a method that are compared (of models_of); clean accuracy in %, its change."""

    models: dict
    clean: float
    change: float


def judged_models(rows, label):
    """Judged of a method's models among the rows of a network, or None where it was not run."""
    rows = rows[rows["label"] == label]
    if rows.empty:
        return None
    models = rows.drop_duplicates(["folder", "run"])
    clean, change = models["test_accuracy"].mean(), models["change"].mean()
    return Judged(models_of(rows, label), clean, change)


def lowest_accuracy(dataset):
    """Clean accuracy in % under which a classifier is hardly one: twice chance.

    Of less than four classes, where twice chance is too much, halfway from chance to 100.
    """
    chance = 100 / data_info(dataset).get("classes", 10)
    return min(2 * chance, (chance + 100) / 2)


def verdict(recorded, dataset, model, seed=0):
    """One row a question whose two methods were run; differences in points, DARE minus the other.

    The difference under the paper's metric is that of the mean over attacks, on the test part.
    Under adaptive attack it is that of the mean over all Linf epsilons above 0 of the worst case
    over the attacks: at a single epsilon all models may be at 0 or at 100.

    Returns a DataFrame with the columns question, control, difference, low, high,
    adaptive_difference, adaptive_low, adaptive_high, change_dare, change_other, answer,
    adaptive_answer (None where not evaluated), own, why_not (undecided without a look), sentence.
    """
    compared = of_network(recorded.compared(), dataset, model)
    dare = judged_models(compared, "dare")
    transferred, rows = recorded.reader(recorded.attacks(dataset, model)), []
    for question in QUESTIONS if dare else ():
        other = judged_models(compared, question.control)
        paper_metric = other and difference(dare, other, transferred, question.control, seed)
        if not paper_metric:
            continue
        adaptive = difference(dare, other, recorded.adaptive, question.control, seed)
        judged = {"dare": dare, question.control: other}
        why_not = reason(lowest_accuracy(dataset), judged, is_unmoved(other, transferred))
        row = {"question": question.title, "control": question.control}
        row |= measured("", paper_metric, why_not) | measured("adaptive_", adaptive, why_not)
        row |= {"change_dare": dare.change, "change_other": other.change, "own": question.own}
        row |= {"why_not": why_not}
        rows.append(row | {"sentence": sentence(question.piece, row, why_not)})
    return pd.DataFrame(rows)


def difference(dare, other, read, control, seed):
    """(difference, low, high) in points, of the mean over the columns of `read`, or None."""
    differences = paired_differences(dare, other, read, control)
    if not differences:
        return None
    return [100 * float(values[-1]) for values in bootstrap(differences, seed=seed)]


def paired_differences(dare, other, read, control):
    """DARE minus another method (Judged) on the same images: of every source model an array
    (runs, images, columns of `read`); none where no source model has both.
    """
    sides = paired(dare.models, other.models, read, shared=control in WITHOUT_RUNS)
    return [first - second for first, second in zip(*sides, strict=True)]


def measured(prefix, values, why_not):
    """The columns of one difference, with its answer; where not evaluated, NaN and None."""
    answer = values and ("undecided" if why_not else answer_of(*values[1:]))
    columns = dict(zip(("difference", "low", "high"), values or [np.nan] * 3, strict=True))
    return {prefix + name: value for name, value in (columns | {"answer": answer}).items()}


def reason(lowest, judged, unmoved):
    """Why two methods, {name: Judged}, cannot be compared; None where they can.

    unmoved: the second is the original as it was, wrong on every sample.
    """
    for name, models in judged.items():
        if models.clean < lowest:
            return f"{name} has {models.clean:.1f}% clean accuracy, under twice chance"
        if models.change < -LOSS_ALLOWED - 1e-9:
            return f"{name} loses {-models.change:.1f} points of clean accuracy, more than 1"
    if unmoved:
        return f"{name} changed nothing in this network"
    return None


def is_unmoved(models, read):
    """Whether models (Judged) are wrong on every sample, as only the original is.

    Without batch normalisation control-batchnorm and control-self cannot but stay it.
    """
    found = [read(folder, digest) for folder, of in models.models.items() for digest in of.values()]
    return not any(np.nansum(right) for right in found)


def sentence(piece, row, why_not):
    """The plain sentence of a verdict row."""
    if why_not:
        return f"Undecided: {why_not}, so no merit is given."

    points = f"{row['difference']:+.1f} points"
    harm = row["high"] < 0
    text = {
        "yes": f"Yes: {piece} is worth {points}.",
        "no": f"No: {piece} {'does harm' if harm else 'is worth nothing that matters'} ({points}).",
        "undecided": f"Undecided: what {piece} is worth ({points}) may be chance.",
    }[row["answer"]]
    if row["adaptive_answer"]:
        points = f"{row['adaptive_difference']:+.1f} points"
        text += f" Attacked itself: {row['adaptive_answer']} ({points})."
    return text


def summary(rows):
    """One sentence: whether the robustness is DARE's own, which needs a yes to every `own` row."""
    if rows.empty:
        return "DARE and its controls have not both been run, so nothing can be said about it."
    needed = {q.title: q.control for q in QUESTIONS if q.own}
    own = rows[rows["own"]].set_index("question")
    against = own[own["answer"] != "yes"]["answer"]
    if len(against):
        why_not = own.loc[against.index, "why_not"].dropna()
        names = ", ".join(f"{needed[title]} ({answer})" for title, answer in against.items())
        because = "".join(f"; {text}" for text in dict.fromkeys(why_not))
        return f"DARE's own merit is not shown; it has no sure advantage over {names}{because}."
    if missing := [control for title, control in needed.items() if title not in own.index]:
        return f"DARE's own merit is not known before these are run: {', '.join(missing)}."
    text = "DARE is more robust than every control under the paper's metric"
    if own["adaptive_answer"].isna().any():
        return f"{text}; attacked itself, it was not evaluated."
    won = (own["adaptive_answer"] == "yes").sum()
    return f"{text}; attacked itself, it is surely more robust than {won} of {len(own)}."


# --------------------------------------------------------------------------------------- warnings


def warnings(recorded):
    """Plain sentences about runs that mean little, for the terminal and the top of the report."""
    paper = pd.read_csv(PAPER / "models.csv").set_index(KEYS)["test_accuracy_percent"]
    found = []
    for name, folder in recorded.folders.items():
        rows = recorded.rows[recorded.rows["folder"] == name]
        about = [
            *about_accuracy(rows, paper),
            *about_samples(folder, rows),
            *about_mining(folder),
            *about_selection(rows),
        ]
        found += [f"{name}: {text}." for text in about]
    return found


def about_accuracy(rows, paper):
    row = rows[rows["method"] == "original"].iloc[0]
    clean, lowest = row["test_accuracy"], lowest_accuracy(row["dataset"])
    published = paper.get((row["dataset"], row["model"]), 0)
    if clean < lowest:
        yield f"the network has {clean:.1f}% clean accuracy, under twice chance ({lowest:.1f}%)"
    elif clean < published - POINTS_BELOW_PAPER:
        yield (
            f"the network has {clean:.1f}% clean accuracy, over {POINTS_BELOW_PAPER} points below "
            f"the paper's {published:g}%"
        )


def about_samples(folder, rows):
    for path in sorted((folder / "adv").glob("*.h5")):
        with h5py.File(path, "r") as file:
            success = file["success"][()].mean()
        if success < SUCCESS_NEEDED:
            yield f"{path.stem} succeeds on {100 * success:.0f}% of the images, less than half"
    tested = rows[(rows["split"] == "test") & (rows["method"] == "original")]
    few = tested[tested["n"] < SAMPLES_NEEDED]
    if len(few):
        text = ", ".join(f"{row.attack} ({row.n})" for row in few.itertuples())
        yield f"fewer than {SAMPLES_NEEDED} reported samples of {text}"


def about_mining(folder):
    for path in sorted(folder.glob("ats_*.h5")):
        with h5py.File(path, "r") as file:
            mined = len(file["index"]) if "first" in file.attrs else MINED_NEEDED  # of a control
        if mined < MINED_NEEDED:
            yield f"{path.name} has {mined} mined images, fewer than {MINED_NEEDED}"


def about_selection(rows):
    validated = rows[(rows["split"] == "validation") & (rows["n"] > 0)]
    labels = sorted(set(rows["label"]))
    if without := [label for label in labels if label not in set(validated["label"])]:
        yield (
            f"{', '.join(without)}: no validation sample, so that no epoch could be selected; make "
            f"more samples with adv/generate_adv.py --samples"
        )
    within = set(rows.loc[rows["selected_within_1"], "label"])
    if lost := [label for label in labels if label not in within and label not in without]:
        yield f"no epoch within 1 point of the original's clean accuracy: {', '.join(lost)}"
