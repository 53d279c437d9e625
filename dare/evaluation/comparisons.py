"""DARE minus another method on the same images: what each component of DARE is worth.

COMPARISONS is the one table of what is compared. `verdict` is its view of one network, and
dare/evaluation/claims.py its view over all networks. Methods are compared at the same setting
(per, choose_layer), as far as they have it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dare.evaluation.intervals import paired_bootstrap, plain_means
from dare.evaluation.runs import dare_rows, paired
from dare.evaluation.scores import LOSS_ALLOWED, loses_too_much
from dare.methods import family
from train.shared.artifacts import data_info

BEST = "best at-*"  # the best adversarial training, by its mean over attacks on the validation part
MATTERS = 1.0  # points; if the interval lies below this gain, it counts as none
# The number of images at which sampling alone makes a difference vary as much as it varies from one
# training to the next. Measured with lenet on digits (five seeds, oneDNN's code for AVX512 and for
# AVX2, up to nine comparisons): three quarters of the differences vary less. For other networks it
# is an assumption.
TRAINING_AS_IMAGES = {"robustness": 50, "clean": 700, "adaptive": 100}
ENOUGH_TRAININGS = 5  # from which on their own spread says enough


@dataclass(frozen=True)
class Comparison:
    """A component of DARE, and the method that lacks it.

    other: the method that is subtracted from DARE.
    quantity: "robustness" (the paper's metric), "clean" (accuracy) or "adaptive" (robust accuracy
        under adaptive attack).
    rule: the epochs that decide over all networks: "compared" (within 1 point of clean accuracy
        where there are any), "selected" (the most robust, as in the paper's tables) or "last_epoch"
        (of every method, whatever it scores).
    """

    component: str
    other: str
    quantity: str = "robustness"
    rule: str = "compared"


COMPARISONS = (
    Comparison("DARE as a whole", BEST, rule="selected"),
    Comparison("clean accuracy is kept", "original", "clean", "selected"),
    Comparison("mined history", "control-self"),
    Comparison("choice of a checkpoint for each image", "control-single"),
    Comparison("choice of the best checkpoint", "control-random"),
    Comparison("regression instead of fine-tuning", "control-finetune"),
    Comparison("model transformation", "dare-sl"),
    Comparison("inner layer instead of the last", "dare-last"),
    Comparison("slicing", "dare-s"),
    Comparison("tuning, beyond batch normalisation", "control-batchnorm"),
    Comparison("tuning, beyond an earlier epoch", "control-checkpoint"),
    Comparison("tuning, beyond averaged epochs", "control-swa"),
    Comparison("direction of the change", "control-noise"),
    Comparison("advantage over another training seed", "control-seed"),
    Comparison("robustness under adaptive attack", "original", "adaptive"),
)
# {component: the method that lacks it}, of the comparisons by the paper's metric.
COMPONENTS = {c.component: c.other for c in COMPARISONS if c.quantity == "robustness"}


# -------------------------------------------------------------------------------- one difference


@dataclass
class Difference:
    """DARE minus another method, in points.

    value, low, high: the difference and its 95% interval.
    sources: number of source models. images: number of images, summed over these.
    same_images: all source models were scored on the same images, which are counted once.
    of_dare: DARE's own mean on the same images, in %.
    """

    value: float
    low: float
    high: float
    sources: int
    images: int
    same_images: bool = False
    of_dare: float = np.nan

    def over_trainings(self, quantity):
        """(low, high) of the difference in other training runs of the same network.

        A few runs say little about others, so the interval is widened by TRAINING_AS_IMAGES.
        """
        if self.sources >= ENOUGH_TRAININGS:
            return self.low, self.high
        images = self.images if self.same_images else self.images / self.sources
        wider = np.sqrt(1 + images / TRAINING_AS_IMAGES[quantity])
        below, above = self.value - self.low, self.high - self.value
        return self.value - wider * below, self.value + wider * above


def difference(dare, other, read, same_images=False):
    """The Difference of two methods, of the mean over the columns of `read`, or None.

    dare, other: rows of the models of each. read: as in `paired`. same_images: whether all source
    models were scored on the same images, as for clean accuracy.
    """
    first, second = paired(dare, other, read)
    if not first:
        return None
    estimate = paired_bootstrap(first, second, same_images=same_images)
    value, low, high = (100 * values[-1] for values in estimate)
    images = sum(values.shape[1] for values in (first[:1] if same_images else first))
    of_dare = 100 * plain_means(first).mean()
    return Difference(value, low, high, len(first), images, same_images, of_dare)


def as_columns(difference, prefix=""):
    """A Difference as the columns difference, low, high and n (images); NaN for None."""
    values = [np.nan] * 4
    if difference:
        values = [difference.value, difference.low, difference.high, difference.images]
    names = (f"{prefix}{name}" for name in ("difference", "low", "high", "n"))
    return dict(zip(names, values, strict=True))


def readers(recorded, dataset, model, methods):
    """{quantity: function (folder, digest) -> results image by image} of a network.

    methods: names of those that are compared, which decide which samples are unseen.
    """
    return {
        "robustness": recorded.right_under(recorded.attacks(dataset, model), *methods),
        "clean": recorded.clean,
        "adaptive": recorded.adaptive,
    }


# ------------------------------------------------------------------------------- the conclusion


def conclusion(difference, quantity="robustness"):
    """(conclusion, reason) of a Difference: yes, no or undecided.

    Yes if the whole interval is above 0, no if it is below MATTERS, otherwise undecided. For clean
    accuracy the threshold is a loss of LOSS_ALLOWED points. The interval over training runs must
    give the same answer.
    """
    answer = conclusion_of(difference.low, difference.high, quantity)
    if conclusion_of(*difference.over_trainings(quantity), quantity)[0] != answer[0]:
        count = (
            "one training is" if difference.sources == 1 else f"{difference.sources} trainings are"
        )
        return "undecided", f"{answer[1]}, but {count} not enough"
    return answer


def conclusion_of(low, high, quantity):
    """(conclusion, reason) of an interval, in points."""
    if quantity == "clean":
        if low > -LOSS_ALLOWED:
            return "yes", f"at most {LOSS_ALLOWED:g} point is lost"
        if high < -LOSS_ALLOWED:
            return "no", f"more than {LOSS_ALLOWED:g} point is lost"
        return "undecided", f"the interval includes a loss of {LOSS_ALLOWED:g} point"
    if low > 0:
        return "yes", "the interval is above 0"
    if high < 0:
        return "no", "the interval is below 0"
    if high < MATTERS:
        return "no", f"the gain is below {MATTERS:g} point"
    return "undecided", f"the interval includes 0 and gains above {MATTERS:g} point"


def why_not_comparable(dataset, methods, transferred):
    """Why two methods cannot be compared, or None.

    methods: {name: rows of its models}, DARE first. transferred: reader of robustness.
    """
    for name, rows in methods.items():
        models = rows.drop_duplicates(["folder", "run"])
        clean, change = models["test_accuracy"].mean(), models["selection_change"].mean()
        if clean < (lowest := lowest_accuracy(dataset)):
            return f"{name} has {clean:.1f}% clean accuracy, less than {lowest:g}%"
        if loses_too_much(change):
            return f"{name} loses {-change:.2f} points of clean accuracy in selection, more than 1"
    return why_unchanged(methods, transferred)


def why_unchanged(methods, transferred):
    """The reason if the second method did not change the network, or None.

    The original is wrong on every sample. A model that is right on none has not changed, such as
    control-self and control-batchnorm in a network without batch normalisation.
    """
    name, rows = list(methods.items())[-1]
    if name == "original":
        return None
    models = rows.drop_duplicates(["folder", "run"]).itertuples()
    if any(np.nansum(transferred(model.folder, model.sha256)) for model in models):
        return None
    if name in ("control-self", "control-batchnorm"):
        return f"{name} is the original: no batch normalisation up to the chosen layer"
    return f"{name} did not change this network"


def lowest_accuracy(dataset):
    """Clean accuracy in % below which a classifier is useless: twice chance.

    For two classes, where that would be 100, it is 75.
    """
    chance = 100 / data_info(dataset).get("classes", 10)
    return min(2 * chance, (chance + 100) / 2)


# ------------------------------------------------------------------------------------ the methods


def rows_to_compare(recorded, rows, other, is_fair):
    """{"dare": rows, the other's name: rows}, or None if one of them is missing.

    rows: of one network and setting. is_fair: choose the best baseline among those that keep clean
    accuracy, if there are any.
    """
    if other == BEST:
        other = best_baseline(recorded, rows, is_fair)
    methods = {"dare": dare_rows(rows), other: rows[rows["method"] == other]}
    return None if any(found.empty for found in methods.values()) else methods


def best_baseline(recorded, rows, is_fair):
    """The adversarial training with the highest mean over attacks, "" if there is none.

    It is chosen as epochs are, on the validation part, so that the reported part does not judge
    itself. is_fair: among those that lose at most LOSS_ALLOWED, if there are any.
    """
    is_baseline = rows["method"].map(family) == "adversarial training"
    baselines = rows[is_baseline]
    keeps = ~loses_too_much(baselines.groupby("method")["selection_change"].transform("mean"))
    if is_fair and keeps.any():
        baselines = baselines[keeps]
    seen = recorded.rows[recorded.rows["split"] == "validation"]
    seen = seen[seen["sha256"].isin(baselines["sha256"])]
    means = seen.groupby("method")["empirical_robustness"].mean()
    return means.idxmax() if len(means) else ""


# ------------------------------------------------------------------------ the view of one network


def verdict(recorded, dataset, model):
    """A row for every comparison whose two methods were run, at each setting of DARE.

    The difference by the paper's metric is of the mean over attacks, on the samples that neither
    method has seen: the test part and, without adversarial training, the training part too. The
    difference under adaptive attack is of the mean, over all Linf epsilons above 0, of the worst
    case over the attacks: at a single epsilon all models may be at 0 or at 100.

    Returns:
        DataFrame with the columns component, compared_with, setting, dare (its mean on the same
        images, in %), difference, low, high, n, adaptive_difference, adaptive_low, adaptive_high,
        adaptive_n, change_dare, change_other, conclusion, reason, adaptive_conclusion (None if not
        evaluated). In points.
    """
    rows = []
    for setting in recorded.settings(dataset, model):
        compared = recorded.compared(dataset, model, setting)
        for comparison in COMPARISONS:
            if comparison.quantity == "robustness":
                methods = rows_to_compare(recorded, compared, comparison.other, is_fair=True)
                row = methods and verdict_row(recorded, dataset, model, methods)
                if row:
                    about = {"component": comparison.component, "setting": setting.text}
                    rows.append(about | row)
    return pd.DataFrame(rows)


def verdict_row(recorded, dataset, model, methods):
    """One comparison in one network, or None; methods: {name: rows}, DARE first."""
    read = readers(recorded, dataset, model, methods)
    dare, other = methods.values()
    by_metric = difference(dare, other, read["robustness"])
    if by_metric is None:
        return None
    adaptive = difference(dare, other, read["adaptive"])
    row = {"compared_with": list(methods)[1], "dare": by_metric.of_dare}
    row |= as_columns(by_metric) | as_columns(adaptive, "adaptive_")
    for name, rows in ("dare", dare), ("other", other):
        row[f"change_{name}"] = rows.drop_duplicates(["folder", "run"])["change"].mean()
    obstacle = why_not_comparable(dataset, methods, read["robustness"])
    if obstacle:
        row |= {"conclusion": "not comparable", "reason": obstacle}
        return row | {"adaptive_conclusion": adaptive and "not comparable"}
    row["conclusion"], row["reason"] = conclusion(by_metric)
    row["adaptive_conclusion"] = adaptive and conclusion(adaptive, "adaptive")[0]
    return row


def verdict_sentences(rows):
    """The verdict of one network in short sentences, for each setting of DARE."""
    if rows.empty:
        return "DARE and the methods it is compared with have not all been run."
    texts = []
    for setting, of_setting in rows.groupby("setting", sort=False):
        name = f"DARE {setting}" if setting else "DARE"
        others = of_setting.groupby("conclusion", sort=False)["compared_with"].agg(", ".join)
        sentences = {
            "yes": f"{name} is more robust than {others.get('yes')}.",
            "no": f"It is not more robust than {others.get('no')}.",
            "undecided": f"Undecided: {others.get('undecided')}.",
            "not comparable": f"Not comparable: {obstacles_of(of_setting)}.",
        }
        if "yes" not in others:
            texts.append(f"{name} is not shown to be more robust than any other method.")
        texts += [text for key, text in sentences.items() if key in others]
        if not_run := sorted(set(COMPONENTS) - set(of_setting["component"])):
            texts.append(f"Not run: {', '.join(COMPONENTS[name] for name in not_run)}.")
        evaluated = of_setting[of_setting["adaptive_conclusion"].notna()]
        wins = evaluated[evaluated["adaptive_conclusion"] == "yes"]["compared_with"]
        if len(wins):
            texts.append(f"Under adaptive attack it is more robust than {', '.join(wins)}.")
        elif len(evaluated):
            texts.append("Under adaptive attack no advantage is shown.")
        else:
            texts.append("Adaptive attacks were not run.")
    return " ".join(texts)


def obstacles_of(rows):
    """The methods that are not comparable, and why: "control-swa (loses 1.3 points ...)"."""
    names = {}
    for row in rows[rows["conclusion"] == "not comparable"].itertuples():
        reason = row.reason.removeprefix(f"{row.compared_with} ")
        names.setdefault(reason, []).append(row.compared_with)
    return "; ".join(f"{', '.join(of_reason)} ({reason})" for reason, of_reason in names.items())
