"""Adaptive evaluation: attack every selected model itself. Called by `dare/test.py --adaptive`.

Empirical robustness asks how a model does on samples made against another one; here nothing is
transferred. adv/worst_case.py attacks a fixed random part of the reporting half of x_test, at
several epsilons of Linf and of L2. After every model this writes

- adaptive.h5: `index` int64 (n,), the images in x_test, and for every model, under the SHA-256 of
  its weights, uint8 (n,) <norm>/<attack>/<epsilon>: 1 robust, 0 broken, 2 unknown;
- adaptive.csv: a row for each model, norm, attack and epsilon. robust_accuracy, of all n images,
  counts the robust alone, not the `unknown`; low and high are its Wilson interval. At epsilon 0 it
  is clean accuracy; attack "worst" is the worst case over the attacks.
"""

import functools
import json
from contextlib import closing

import h5py
import numpy as np
import pandas as pd

from adv.attacks.classifier import BatchedModel, reads_weights_anew
from adv.attacks.worst_case import DECISIONS, PGD_STEPS, ROBUST, UNKNOWN, attack_model, ticks
from dare.evaluation.intervals import wilson
from dare.evaluation.scores import arrays_in
from train.artifacts import already_made, atomic_write, data_sha256, fingerprint, set_attributes
from train.log import progress
from train.utils import halves_of_test, pixels

# Sizes of perturbations, ascending, for images of one channel and of several.
GREY = {"linf": (0.01, 0.02, 0.05, 0.1), "l2": (0.25, 0.5, 1, 2)}
COLOUR = {"linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255), "l2": (0.1, 0.25, 0.5, 1)}

# Of adaptive.csv; ABOUT are those of robustness.csv that say which model it is.
ABOUT = ["dataset", "model", "source", "run", "seed", "method", "lr_rate", "epoch"]
ABOUT += ["per", "choose_layer", "batches"]
COLUMNS = [*ABOUT, "norm", "attack", "epsilon", "n", "unknown", "robust_accuracy", "low", "high"]


def evaluate(study, table, weights, images=500, restarts=3):
    """Attack all models of robustness.csv that are selected, by one rule or the other.

    What adaptive.h5 has already is kept; one of other images or settings is refused.

    Args:
        study: a train.study.Study. table: its robustness.csv as a DataFrame. weights: {SHA-256 of
            the weights: path}. images: of the reporting half, all if there are fewer. restarts: of
            pgd.

    Returns:
        adaptive.csv as a DataFrame, a row for each model, norm, attack and epsilon; in %.
    """
    index, x, y = attacked_images(study, images)
    epsilons = GREY if x.shape[-1] == 1 else COLOUR
    settings = {"images": len(index), "restarts": restarts, "epsilons": json.dumps(epsilons)}
    settings |= {"pgd_steps": PGD_STEPS, "decisions": DECISIONS, "seed": study.seed}
    settings |= {"test_sha256": data_sha256(study.dataset, "test")}
    kept = Results(study, index, settings | {"index_sha256": fingerprint(index)})

    chosen = table[table["selected"] | table["selected_within_1"]][[*ABOUT, "sha256"]]
    chosen = chosen.drop_duplicates()
    todo = [digest for digest in chosen["sha256"].unique() if digest not in kept.models]
    print(f"adaptive: {len(todo)} of {chosen['sha256'].nunique()} models to attack", flush=True)
    attempts = len(todo) * ticks(epsilons, restarts)
    calls_of = functools.cache(BatchedModel.of)
    with progress(total=attempts, desc="adaptive", unit="attempt") as bar:

        def attack(classifier, _):
            calls = calls_of(classifier) if reads_weights_anew() else None
            return attack_model(classifier, x, y, epsilons, restarts, study.seed, bar.update, calls)

        with closing(study.with_weights({d: weights[d] for d in todo}, attack)) as ready:
            for digest, results in ready:
                kept.models[digest] = results
                kept.save(chosen)
    return kept.save(chosen)


def attacked_images(study, images):
    """(index into x_test int64 (n,), sorted; float32 pixels (n, h, w, c); labels (n,))."""
    x, y = study.data("test")
    reporting = halves_of_test(study.dataset, len(y))[1]
    index = np.random.default_rng([study.seed, 5]).permutation(reporting)[:images]
    index = np.sort(index).astype("int64")
    return index, pixels(x[index]), y[index]


class Results:
    """adaptive.h5 and adaptive.csv of a study.

    index: int64 (n,), into x_test. settings: {name: value}. models: {SHA-256:
    {"<norm>/<attack>/<epsilon>": uint8 (n,)}}, at first those of the file.
    """

    def __init__(self, study, index, settings):
        self.study, self.index, self.settings, self.models = study, index, settings, {}
        self.path = study.folder / "adaptive.h5"
        if already_made(self.path, settings):
            with h5py.File(self.path, "r") as file:
                models = [group for group in file.values() if isinstance(group, h5py.Group)]
                self.models = {group.name[1:]: arrays_in(group) for group in models}

    def save(self, chosen):
        """Write both; returns adaptive.csv of the `chosen` models that are there."""
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, self.study.provenance | self.settings)
            file["index"] = self.index
            for digest, results in sorted(self.models.items()):
                group = file.create_group(digest)
                for name, result in results.items():
                    group[name] = result
        table = summary(chosen, self.models)
        with atomic_write(self.path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False)
        return table


def summary(chosen, models):
    """adaptive.csv as a DataFrame. chosen: the columns ABOUT and sha256; models: of Results."""
    rows = []
    for about in chosen[chosen["sha256"].isin(list(models))].to_dict("records"):
        for name, result in sorted(models[about["sha256"]].items()):
            norm, attack, epsilon = name.split("/")
            n, unknown, robust = len(result), (result == UNKNOWN).sum(), (result == ROBUST).sum()
            low, high = (100 * share for share in wilson(robust, n))
            row = {"norm": norm, "attack": attack, "epsilon": float(epsilon), "n": n}
            row |= {"unknown": unknown, "robust_accuracy": 100 * robust / n}
            rows.append(about | row | {"low": low, "high": high})
    return pd.DataFrame(rows, columns=[*COLUMNS, "sha256"]).round(6)
