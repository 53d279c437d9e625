"""Adaptive evaluation: attack every selected model itself. Called by `dare/test.py --adaptive`.

Empirical robustness asks how a model does on samples made against another one; here nothing is
transferred. The images are a fixed random part of the reporting half of x_test. The attacks, at
several epsilons of Linf and of L2: fgsm; pgd with random restarts, both on the log-odds; and rays
(Chen and Gu 2020), which sees decisions only, so that a model that hides its gradients shows.

An image is robust (1), broken (0) or unknown (2): an attack could not start, as all gradients were
zero or, for rays, no direction changed the decision. In the worst case over the attacks it is
broken where any of them broke it, unknown where none did and any could not start, and robust where
all tried and failed. Robust accuracy counts the robust alone. An image broken at one epsilon counts
as broken at all larger ones. At epsilon 0 robust accuracy is clean accuracy.

After every model it writes adaptive.h5, with the `index` of the images in x_test and, under the
SHA-256 of a model's weights, its uint8 <norm>/<attack>/<epsilon>; and adaptive.csv.

Why rays. Of 177 digits that lenet gets right, robust in % at Linf 0.01, 0.02, 0.05 and 0.1:

    fgsm                                  98 94 77 47       (Linf)     96 93 75 43       (L2)
    pgd, 3 restarts                       98 94 72 16                  96 90 64  5
    Foolbox's HopSkipJump, 3,700 decisions 98 92 71     99 99 99 95
"""

import json
import sys
import time

import eagerpy as ep
import foolbox
import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from adv.attacks import norms
from adv.model import Calls, foolbox_model, log_odds
from adv.rays import Rays
from dare.intervals import wilson
from train.artifacts import atomic_write, data_sha256, set_attributes
from train.utils import halves_of_test, load_weights, pixels, set_seed

# Sizes of perturbations, ascending, for images of one channel and of several.
GREY = {"linf": (0.01, 0.02, 0.05, 0.1), "l2": (0.25, 0.5, 1, 2)}
COLOUR = {"linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255), "l2": (0.1, 0.25, 0.5, 1)}

PGD_STEPS, REACH = 20, 2.5  # all steps together go 2.5 epsilon far (Madry et al. 2018)
DECISIONS = 1000  # of rays, an image
BROKEN, ROBUST, UNKNOWN = 0, 1, 2

# What adaptive.csv takes over from robustness.csv.
ABOUT = ["dataset", "model", "source", "run", "seed", "method", "lr_rate", "epoch"]
ABOUT += ["per", "choose_layer", "batches", "sha256"]


def evaluate(study, table, weights, images=500, restarts=3):
    """Attack all models of robustness.csv that are selected, by one rule or the other.

    What adaptive.h5 has already of the same weights, images and settings is kept; what was made
    with others is dropped.

    Args:
        study: a train.utils.Study. table: its robustness.csv as a DataFrame. weights: {SHA-256 of
            the weights: path}. images: of the reporting half, all if there are fewer. restarts: of
            pgd.

    Returns:
        adaptive.csv as a DataFrame, a row for each model, norm, attack and epsilon; in %.
    """
    index, x, y = attacked_images(study, images)
    epsilons = GREY if x.shape[-1] == 1 else COLOUR
    settings = {"epsilons": epsilons, "restarts": restarts, "pgd_steps": PGD_STEPS}
    settings |= {"decisions": DECISIONS, "seed": study.seed}
    settings |= {"data_sha256": data_sha256(study.dataset, "test")}
    kept = Results(study, index, json.dumps(settings, sort_keys=True))

    chosen = table[table["selected"] | table["selected_within_1"]][ABOUT].drop_duplicates()
    todo = [digest for digest in chosen["sha256"].unique() if digest not in kept.models]
    print(f"adaptive: {len(todo)} of {chosen['sha256'].nunique()} models to attack", flush=True)
    with progress_bar(len(todo) * ticks(epsilons, restarts)) as bar:
        begun = time.time()
        for count, digest in enumerate(todo, 1):
            classifier = load_weights(study.classifier, weights[digest])
            kept.models[digest] = attack_model(
                classifier, x, y, epsilons, restarts, study.seed, bar.update
            )
            kept.save(chosen)
            if count == 1 < len(todo):
                minutes = (time.time() - begun) * (len(todo) - 1) / 60
                bar.write(f"adaptive: the other {len(todo) - 1} take about {minutes:.1f} minutes")
    study.original()
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

    index: int64 (n,), into x_test. settings: JSON. models: {SHA-256: {"<norm>/<attack>/<epsilon>":
    uint8 (n,)}}, at first those of the file that were made with these images and settings.
    """

    def __init__(self, study, index, settings):
        self.study, self.index, self.settings, self.models = study, index, settings, {}
        self.path = study.folder / "adaptive.h5"
        if not self.path.exists():
            return
        with h5py.File(self.path, "r") as file:
            if np.array_equal(file["index"], index):
                made = [g for g in file.values() if g.attrs.get("settings") == settings]
                self.models = {group.name[1:]: arrays_in(group) for group in made}

    def save(self, chosen):
        """Write both; returns adaptive.csv of the `chosen` models that are there."""
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, **self.study.made_from)
            file["index"] = self.index
            for digest, results in self.models.items():
                group = file.create_group(digest)
                group.attrs["settings"] = self.settings
                for name, result in results.items():
                    group[name] = result
        table = summary(chosen, self.models)
        with atomic_write(self.path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False)
        return table


def arrays_in(group):
    """{path below the group: array} of all datasets of an HDF5 group."""
    found = {}
    group.visititems(
        lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {})
    )
    return found


def summary(chosen, models):
    """adaptive.csv as a DataFrame. chosen: the columns ABOUT; models: of Results."""
    rows = []
    for about in chosen[chosen["sha256"].isin(list(models))].to_dict("records"):
        for name, result in models[about["sha256"]].items():
            norm, attack, epsilon = name.split("/")
            n, unknown, robust = len(result), (result == UNKNOWN).sum(), (result == ROBUST).sum()
            low, high = (100 * share for share in wilson(robust, n))
            about |= {"norm": norm, "attack": attack, "epsilon": float(epsilon), "n": n}
            about |= {"unknown": unknown, "robust_accuracy": 100 * robust / n}
            rows.append(about | {"low": low, "high": high, "sha256": about["sha256"]})
    return pd.DataFrame(rows).round(6)


def progress_bar(total):
    """A bar on a terminal, elsewhere a line every half minute."""
    lines = {"mininterval": 30, "maxinterval": 30, "bar_format": "{desc}: {percentage:.0f}%\n"}
    return tqdm(total=total, desc="adaptive", **({} if sys.stderr.isatty() else lines))


# -------------------------------------------------------------------------------------- one model


def attack_model(classifier, x, y, epsilons, restarts, seed=0, tick=lambda: None):
    """Attack a Keras softmax classifier on pixels in [0, 1].

    Args:
        x: float32 (n, h, w, c) in [0, 1]. y: int labels (n,). epsilons: {norm: ascending sizes},
            of "linf" and "l2". restarts: of pgd. tick: called ticks(epsilons, restarts) times.

    Returns:
        {"<norm>/<attack>/<epsilon>": uint8 (n,)}, see the docstring of this file.
    """
    calls = Calls(foolbox_model(classifier))
    right = calls.logits(x).argmax(axis=1) == y
    x, y, found = x[right], y[right], {norm: {} for norm in epsilons}
    for norm, sizes in epsilons.items():
        for name, steps, starts in ("fgsm", 1, 1), ("pgd", PGD_STEPS, restarts):
            result = by_gradient(calls, norm, x, y, sizes, steps, starts, seed, tick)
            found[norm][name] = result
    left = worst_case(found["linf"].values()) != BROKEN
    for norm, result in by_decisions(calls, x, y, epsilons, left).items():
        found[norm]["rays"] = result
    tick()
    results = {}
    for norm, sizes in epsilons.items():
        for name, result in (found[norm] | {"worst": worst_case(found[norm].values())}).items():
            for epsilon, of_right in zip((0, *sizes), (ROBUST, *result), strict=True):
                results[f"{norm}/{name}/{epsilon:g}"] = of_all = np.zeros(len(right), "uint8")
                of_all[right] = of_right
    return results


def ticks(epsilons, restarts):
    return sum((1 + restarts) * len(sizes) for sizes in epsilons.values()) + 1


def worst_case(results):
    """Broken by any attack, else unknown to any, else robust; of arrays of one shape."""
    results = np.stack(list(results))
    return np.where((results == BROKEN).any(axis=0), BROKEN, results.max(axis=0))


def outcome(broken, started):
    return np.where(broken, BROKEN, np.where(started, ROBUST, UNKNOWN))


def by_gradient(calls, norm, x, y, sizes, steps, starts, seed, tick):
    """fgsm (one step) or pgd (several, from `starts` random starts): results (epsilons, n).

    pgd goes from the largest epsilon down, and attacks an image no further where it stands: the
    smaller balls lie inside. One step can overshoot, so that fgsm tries every epsilon.
    """
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]()
    broken, started = np.zeros((len(sizes), len(x)), bool), np.zeros(len(x), bool)
    within_reach = np.ones(len(x), bool)
    for level in reversed(range(len(sizes))):
        for number in range(starts):
            rows = np.flatnonzero(within_reach & ~broken[level])
            if len(rows):
                set_seed(seed, level, number)
                hit, moved = ascend(calls, attack, x[rows], y[rows], sizes[level], steps)
                broken[level, rows], started[rows] = hit, started[rows] | moved
            tick()
        if steps > 1:
            within_reach = broken[level].copy()
    return outcome(np.logical_or.accumulate(broken), started)


def ascend(calls, attack, x, y, epsilon, steps):
    """Steps up the log-odds, with a Foolbox attack's own steps, projections and random starts.

    An image leaves at its first success. Returns broken (n,) and whether any gradient moved it.
    """
    x0, rate = ep.astensor(x), epsilon * min(1, REACH / steps)
    start = attack.get_random_start(x0, epsilon) if steps > 1 else x0
    at = start.clip(0, 1).numpy().astype("float32")
    broken, moved, rows = np.zeros(len(x), bool), np.zeros(len(x), bool), np.arange(len(x))
    for _ in range(steps):
        z, gradient = calls.gradient(at[rows], y[rows], log_odds)
        hit = z.argmax(axis=1) != y[rows]
        broken[rows], moved[rows] = hit, moved[rows] | gradient.any(axis=(1, 2, 3))
        rows, gradient = rows[~hit], ep.astensor(gradient[~hit])
        if not len(rows):
            return broken, moved
        here = ep.astensor(at[rows])
        there = here + rate * attack.normalize(gradient, x=here, bounds=(0, 1))
        at[rows] = attack.project(there, ep.astensor(x[rows]), epsilon).clip(0, 1).numpy()
    broken[rows] = calls.logits(at[rows]).argmax(axis=1) != y[rows]
    return broken, moved


def by_decisions(calls, x, y, epsilons, left):
    """{norm: results (epsilons, n)} of rays. One search, in Linf; what it finds counts in L2, too.

    left: bool (Linf epsilons, n), what gradient attacks did not break. rays gives an image up when
    it will not get below the largest of these: there it would change nothing.
    """
    sizes = np.array(epsilons["linf"])
    wanted = np.where(left, sizes[:, None], sizes[0]).max(axis=0)
    found, started = Rays(calls, x, y, DECISIONS, enough=sizes[0], wanted=wanted).run()
    size = norms(found - x)
    within = {norm: np.array(sizes)[:, None] + 1e-6 for norm, sizes in epsilons.items()}
    return {norm: outcome(started & (size[norm] <= e), started) for norm, e in within.items()}
