"""Adaptive evaluation: attack every selected model itself. Called by `dare/test.py --adaptive`.

Empirical robustness is the accuracy on samples that were made against another model; here nothing
is transferred. adv/attacks/worst_case.py attacks a fixed random part of the reporting half of
x_test, at several epsilons in Linf and L2. This writes, after a model has been attacked (at most
every ten seconds) and at the end,

- adaptive.h5: `index` int64 (n,), the images in x_test, and for every model, under the SHA-256 of
  its weights, uint8 (n,) <norm>/<attack>/<epsilon>: 1 robust, 0 broken, 2 unknown;
- adaptive.csv: a row for each model, norm, attack and epsilon. robust_accuracy, of all n images,
  counts robust images only, not the `unknown`; low and high are its Wilson interval. At epsilon 0
  it is clean accuracy. The attack "worst" is the worst case over the attacks.
"""

import functools
import json
import time

import h5py
import numpy as np
import pandas as pd

from adv.attacks.classifier import BatchedModel, reads_weights_anew
from adv.attacks.losses import log_odds
from adv.attacks.worst_case import DECISIONS, PGD_STEPS, ROBUST, UNKNOWN, WorstCase, attack_model
from dare.evaluation.intervals import wilson
from dare.evaluation.scores import arrays_in
from dare.evaluation.selection import MODEL
from train.shared.artifacts import atomic_write, check, data_sha256, fingerprint, set_attributes
from train.shared.checkpoints import load_weights
from train.shared.log import progress
from train.utils import halves_of_test, pixels

# Epsilons, ascending, for images of one channel and of several.
GREY = {"linf": (0.01, 0.02, 0.05, 0.1), "l2": (0.25, 0.5, 1, 2)}
COLOUR = {"linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255), "l2": (0.1, 0.25, 0.5, 1)}

SAVE_EVERY = 10  # seconds; the files are written as a whole
IDENTITY = [*MODEL, "per", "choose_layer", "batches"]  # which model a row is about
COLUMNS = [*IDENTITY, "norm", "attack", "epsilon", "n", "unknown", "robust_accuracy", "low", "high"]


def evaluate(study, table, weights, images=500, restarts=3, methods=None):
    """Attack all models that are selected by robustness, with or without a loss of accuracy.

    Results that adaptive.h5 already holds are kept; a file made with other images or settings is
    refused.

    Args:
        study: train.shared.study.Study. table: its robustness.csv as a DataFrame.
        weights: {SHA-256 of the weights: path}.
        images: number of images of the reporting half. restarts: random starts of pgd.
        methods: names of the methods to attack; None: all.

    Returns:
        adaptive.csv as a DataFrame, in %.
    """
    index, x, y = attacked_images(study, images)
    epsilons = GREY if x.shape[-1] == 1 else COLOUR
    provenance = {
        "images": len(index),
        "restarts": restarts,
        "epsilons": json.dumps(epsilons),
        "pgd_steps": PGD_STEPS,
        "decisions": DECISIONS,
        "seed": study.seed,
        "test_sha256": data_sha256(study.dataset, "test"),
        "index_sha256": fingerprint(index),
    }
    results = Results(study, index, provenance)

    chosen = table[table["selected"] | table["selected_within_1"]][[*IDENTITY, "sha256"]]
    chosen = chosen.drop_duplicates()
    asked = chosen[chosen["method"].isin(methods)] if methods else chosen
    todo = [digest for digest in asked["sha256"].unique() if digest not in results.models]
    print(f"adaptive: {len(todo)} of {asked['sha256'].nunique()} models to attack", flush=True)
    batched_model_of = functools.cache(BatchedModel.of)  # one for each thread's classifier
    how = WorstCase(epsilons, restarts, study.seed)
    if todo:
        longest = len(todo) * longest_attack(study, x, y, how)
        print(f"adaptive: {f'{longest:.0f} s'} or less", flush=True)
    with progress(total=len(todo) * how.attempts, desc="adaptive", unit="attempt") as bar:
        how.tick = bar.update

        def attack(classifier, _):
            model = batched_model_of(classifier) if reads_weights_anew() else classifier
            return attack_model(model, x, y, how)

        paths = {digest: weights[digest] for digest in todo}
        try:
            for digest, path in paths.items():
                results.models[digest] = attack(load_weights(study.classifier, path), digest)
                results.save_sometimes(chosen)
        finally:
            written = results.save(chosen)
    return written


def longest_attack(study, x, y, how):
    """The longest time in seconds that attacking one model may take, from two timed passes.

    It is shorter where images are broken early.
    """
    model = BatchedModel.of(study.classifier)
    passes = [
        (how.gradients, lambda: model.gradient(x, y, log_odds)),
        (DECISIONS, lambda: model.logits(x)),
    ]
    seconds = 0.0
    for count, run in passes:
        run()  # compiles it
        start_time = time.perf_counter()
        run()
        seconds += count * (time.perf_counter() - start_time)
    return seconds


def attacked_images(study, images):
    """Sorted index into x_test, int64 (n,), float32 pixels (n, h, w, c) and labels (n,)."""
    x, y = study.data("test")
    _, reporting = halves_of_test(study.dataset, len(y))
    index = np.random.default_rng([study.seed, 5]).permutation(reporting)[:images]
    index = np.sort(index).astype("int64")
    return index, pixels(x[index]), y[index]


class Results:
    """adaptive.h5 and adaptive.csv of a study.

    index: int64 (n,), into x_test. provenance: settings of the attacks.
    models: {SHA-256: {"<norm>/<attack>/<epsilon>": uint8 (n,)}}, at first those of the file.
    """

    def __init__(self, study, index, provenance):
        self.study = study
        self.index = index
        self.provenance = provenance
        self.models = {}
        self.saved_at = -np.inf
        self.path = study.folder / "adaptive.h5"
        if check(self.path, provenance):
            with h5py.File(self.path, "r") as file:
                models = [group for group in file.values() if isinstance(group, h5py.Group)]
                self.models = {group.name[1:]: arrays_in(group) for group in models}

    def save_sometimes(self, chosen):
        """Save if the last time was SAVE_EVERY seconds ago."""
        if time.monotonic() > self.saved_at + SAVE_EVERY:
            self.save(chosen)
            self.saved_at = time.monotonic()

    def save(self, chosen):
        """Write both files; returns adaptive.csv of those `chosen` models that were attacked."""
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, self.study.provenance | self.provenance)
            file["index"] = self.index
            for digest, results in sorted(self.models.items()):
                group = file.create_group(digest)
                for name, result in results.items():
                    group[name] = result
        table = robust_accuracy_table(chosen, self.models)
        with atomic_write(self.path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False)
        return table


def robust_accuracy_table(chosen, models):
    """adaptive.csv as a DataFrame. chosen: the columns IDENTITY and sha256. models: of Results."""
    rows = []
    for identity in chosen[chosen["sha256"].isin(list(models))].to_dict("records"):
        for name, result in sorted(models[identity["sha256"]].items()):
            norm, attack, epsilon = name.split("/")
            result_of = {
                "norm": norm,
                "attack": attack,
                "epsilon": float(epsilon),
                "n": len(result),
                "unknown": (result == UNKNOWN).sum(),
                "robust": (result == ROBUST).sum(),
            }
            rows.append(identity | result_of)
    table = pd.DataFrame(rows, columns=[*COLUMNS, "sha256", "robust"])
    robust, n = table["robust"].astype(float), table["n"].astype(float)
    low, high = wilson(robust, n)
    table = table.assign(robust_accuracy=100 * robust / n, low=100 * low, high=100 * high)
    percent = ["robust_accuracy", "low", "high"]
    return table[[*COLUMNS, "sha256"]].round(dict.fromkeys(percent, 6))
