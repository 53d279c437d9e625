"""Adaptive evaluation: attack every compared model itself. Called by `dare/test.py --adaptive`.

Empirical robustness is the accuracy on samples that were made against another model; here nothing
is transferred. adv/attacks/worst_case.py attacks a fixed random part of the reporting half of
x_test in Linf, at several epsilons: pgd with restarts and fgsm on the log-odds, and rays, which
sees decisions only. This writes

- scores.h5: for every model and the part "adaptive <attack> <epsilon>", robust (1) or not (0); the
  attack "worst" is the worst case over all;
- adaptive.csv: a row for each model, attack and epsilon. robust_accuracy, of all n images in %,
  counts robust images only; unknown are those on which an attack could not start, and none
  succeeded. At epsilon 0 it is clean accuracy.
"""

import itertools
import json

import numpy as np
import pandas as pd

from adv.attacks.classifier import BatchedModel, reads_weights_anew
from adv.attacks.worst_case import DECISIONS, PGD_STEPS, ROBUST, UNKNOWN, attack_model
from dare.evaluation.results import own_settings
from dare.evaluation.scores import Scores
from dare.evaluation.scoring import MODEL
from dare.methods import METHODS
from train.shared.artifacts import atomic_write, data_sha256
from train.shared.checkpoints import load_weights
from train.shared.log import progress
from train.utils import halves_of_test, pixels

# Epsilons, ascending, for images of one channel and of several.
GREY = (0.01, 0.02, 0.05, 0.1)
COLOUR = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
OUTCOMES = ("fgsm", "pgd", "rays", "worst")
IDENTITY = [*MODEL, "per", "choose_layer", "batches", "sha256"]  # which model a row is about
MEASURED = ["attack", "epsilon", "n", "unknown", "robust_accuracy"]


def evaluate(study, table, paths, images=500, restarts=3, methods=None):
    """Attack the models that are compared: last epochs, at their network's settings.

    What scores.h5 already holds of these images and settings is kept.

    Args:
        study: train.shared.study.Study. table: its robustness.csv as a DataFrame.
        paths: {SHA-256 of the weights: file}.
        images: number of images of the reporting half. restarts: random starts of pgd.
        methods: names of the methods to attack; None: all.

    Returns:
        adaptive.csv as a DataFrame, with all compared models that have been attacked.
    """
    index, x, y = attacked_images(study, images)
    epsilons = GREY if x.shape[-1] == 1 else COLOUR
    settings = {"restarts": restarts, "pgd_steps": PGD_STEPS, "decisions": DECISIONS}
    settings |= {"seed": study.seed, "test_sha256": data_sha256(study.dataset, "test")}
    scores_path = study.folder / "scores.h5"
    scores = Scores.read(scores_path)
    kinds = itertools.product(OUTCOMES, (0, *epsilons))
    parts = [name for kind in kinds for name in part_names(*kind)]
    scores.keep(parts, adaptive=True)
    for name in parts:
        scores.define(name, index, json.dumps(settings))
    scores.save(scores_path)

    compared = table[table["last"] & own_settings(table)][IDENTITY].drop_duplicates()
    models = list(dict.fromkeys(compared["sha256"][compared["method"].isin(methods or METHODS)]))
    todo = [model for model in models if not scores.has(model, parts)]
    print(f"adaptive: {len(todo)} of {len(models)} models to attack", flush=True)
    batched_model = BatchedModel.of(study.classifier)
    for model in progress(todo, desc="adaptive", unit="model"):
        load_weights(study.classifier, paths[model])
        if not reads_weights_anew():
            batched_model = BatchedModel.of(study.classifier)
        results = attack_model(batched_model, x, y, epsilons, restarts, study.seed)
        for (attack, epsilon), result in results.items():
            robust, unknown = part_names(attack, epsilon)
            scores.add(model, robust, result == ROBUST)
            scores.add(model, unknown, result == UNKNOWN)
        scores.save(scores_path)
    is_attacked = [scores.has(model, parts) for model in compared["sha256"]]
    found = robust_accuracy_table(compared[is_attacked], scores, epsilons)
    with atomic_write(study.folder / "adaptive.csv") as temporary:
        found.to_csv(temporary, index=False)
    return found


def part_names(attack, epsilon):
    """The parts of scores.h5 that say which images are robust, and which are unknown."""
    name = f"adaptive {attack} {epsilon:g}"
    return name, f"unknown to {name}"


def attacked_images(study, images):
    """Sorted index into x_test, int64 (n,), float32 pixels (n, h, w, c) and labels (n,)."""
    x, y = study.data("test")
    _, reporting = halves_of_test(study.dataset, len(y))
    index = np.random.default_rng([study.seed, 5]).permutation(reporting)[:images]
    index = np.sort(index).astype("int64")
    return index, pixels(x[index]), y[index]


def robust_accuracy_table(attacked, scores, epsilons):
    """adaptive.csv as a DataFrame. attacked: the columns IDENTITY."""
    rows = []
    for identity in attacked.to_dict("records"):
        for attack, epsilon in itertools.product(OUTCOMES, (0, *epsilons)):
            robust, unknown = part_names(attack, epsilon)
            is_unknown = scores.right(identity["sha256"], unknown)
            accuracy = scores.percent(identity["sha256"], robust)
            measured = attack, epsilon, len(is_unknown), int(is_unknown.sum()), accuracy
            rows.append(identity | dict(zip(MEASURED, measured, strict=True)))
    table = pd.DataFrame(rows, columns=[*IDENTITY, *MEASURED])
    return table.round({"epsilon": 6, "robust_accuracy": 4})
