"""Adaptive evaluation: attack every selected model itself. Called by `dare/test.py --adaptive`.

Empirical robustness asks how a model does on samples made against another one; here nothing is
transferred. The images are a fixed random subset of the reporting half of x_test. The attacks, at
the EPSILONS of Linf and of L2: fgsm; pgd with random restarts, both on the log-odds; and rays (Chen
and Gu 2020), which sees decisions only, so that a model that merely hides its gradients shows.

An image is robust (1), broken (0) or unknown (2): an attack could not start, as all gradients were
zero or, for rays, no direction changed the decision. In the worst case over the attacks it is
broken where any of them broke it, unknown where none did and any could not start, and robust where
all tried and failed. Robust accuracy counts the robust alone. An image broken at one epsilon counts
as broken at all larger ones; at epsilon 0 robust accuracy is clean accuracy.

Writes, after every model, adaptive.h5 (`index` into x_test; the results of a model, under the
SHA-256 of its weights, as uint8 <norm>/<attack>/<epsilon>) and adaptive.csv.

Why rays: of 177 digits that lenet gets right, in % robust at Linf 0.01, 0.02, 0.05 and 0.1, fgsm
leaves 98, 94, 77, 47 and pgd 98, 94, 72, 15. With decisions alone, Foolbox's HopSkipJump leaves 99,
99, 94, 81 after 1,600 an image, 99, 98, 92, 71 after 3,800 and 99, 98, 90, 66 after 7,000; rays 98,
94, 83, 45 after 580 and 98, 94, 77, 36 after 1,200. At L2 0.25, 0.5, 1 and 2, where fgsm leaves 96,
93, 75, 43, Foolbox's HopSkipJump leaves 99, 99, 99, 95 after 3,600 decisions, its BoundaryAttack
99, 99, 99, 99 after 1,200, and what rays finds for Linf RAYS_L2.
"""

import json
import sys
import time
from dataclasses import dataclass

import eagerpy as ep
import foolbox
import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from adv.attacks import norms
from adv.model import Calls, foolbox_model, in_full_batches, log_odds, per_image
from dare.intervals import wilson
from train.artifacts import atomic_write, data_sha256, set_attributes
from train.utils import halves_of_test, load_weights, pixels, set_seed

GREY = {"linf": (0.01, 0.02, 0.05, 0.1), "l2": (0.25, 0.5, 1, 2)}  # sizes by number of channels
COLOUR = {"linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255), "l2": (0.1, 0.25, 0.5, 1)}
PGD_STEPS = 20
STEP_SHARE = 2.5  # all steps of pgd together go so many epsilons far (Madry et al. 2018)
DECISIONS = 1000  # of rays, an image
ROBUST, UNKNOWN, BROKEN = 1, 2, 0

# ------------------------------------------------------------------------------ gradient attacks


def steepest_ascent(calls, attack, x, y, epsilon, steps, random_start):
    """Steps of a Foolbox attack up the log-odds; an image leaves at its first success.

    attack: LinfPGD or L2PGD, for their steps, projections and random starts. Returns broken and
    started, bool (n,): started is False where all gradients were zero.
    """
    x0, rate = ep.astensor(x), min(1, STEP_SHARE / steps) * epsilon
    start = attack.get_random_start(x0, epsilon).numpy() if random_start else x
    at = np.clip(start, 0, 1).astype("float32")
    broken, started = np.zeros(len(x), bool), np.zeros(len(x), bool)
    rows = np.arange(len(x))
    for _ in range(steps):
        z, gradient = calls.gradient(at[rows], y[rows], log_odds)
        broken[rows] = z.argmax(axis=1) != y[rows]
        started[rows] |= gradient.any(axis=(1, 2, 3))
        gradient, rows = gradient[~broken[rows]], rows[~broken[rows]]
        if not len(rows):
            return broken, started
        here, ascent = ep.astensor(at[rows]), ep.astensor(gradient)
        moved = here + rate * attack.normalize(ascent, x=here, bounds=(0, 1))
        at[rows] = attack.project(moved, ep.astensor(x[rows]), epsilon).clip(0, 1).numpy()
    broken[rows] = calls.logits(at[rows]).argmax(axis=1) != y[rows]
    return broken, started


def over_epsilons(calls, x, y, norm, epsilons, steps, starts, seed, tick):
    """Results uint8 (epsilons, n) of `starts` attempts, random ones with more than one step.

    Larger epsilons attack only what smaller ones left.
    """
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]()
    broken, started, results = np.zeros(len(x), bool), np.zeros(len(x), bool), []
    for epsilon in epsilons:
        for number in range(starts):
            rows = np.flatnonzero(~broken)
            if len(rows):
                set_seed(seed, number, len(results))
                found = steepest_ascent(calls, attack, x[rows], y[rows], epsilon, steps, steps > 1)
                broken[rows], started[rows] = found[0], started[rows] | found[1]
            tick()
        results.append(result_of(broken, started))
    return np.stack(results)


def result_of(broken, started):
    return np.where(broken, BROKEN, np.where(started, ROBUST, UNKNOWN)).astype("uint8")


# ------------------------------------------------------------------------------- decisions alone


class Rays:
    """The smallest Linf perturbation along directions of +1 and -1, from decisions alone.

    Every image begins with +1 everywhere. Halves of the direction, then quarters and so on, are
    flipped in turn; a flip that is adversarial at the present size stays, and the size is bisected
    (Chen and Gu 2020, "RayS"). The sizes wanted of an image are those at which gradient attacks
    left it robust: it leaves when its own is below the smallest of them, after DECISIONS, or after
    CHECKED when the largest of them is out of reach.

    size: float64 (n,), inf where no direction changed the decision yet.
    """

    CHECKED, REACH = 200, 1.5  # from 200 to 1,000 decisions sizes fall by REACH_FIGURE
    BISECTIONS = 7

    def __init__(self, calls, x, y, smallest, largest):
        self.calls, self.x, self.y = calls, x, y
        self.smallest, self.largest = smallest, largest  # sizes wanted: a number, and (n,)
        n = len(x)
        self.direction = np.ones(x.shape, "float32")
        self.size, self.decisions = np.full(n, np.inf), np.zeros(n, "int64")
        self.parts, self.part = np.ones(n, "int64"), np.zeros(n, "int64")  # the part flipped next

    def run(self):
        """Returns the adversarial images (the image itself where there is none), started (n,)."""
        self.try_direction(np.arange(len(self.x)), self.direction)
        in_full_batches(len(self.x), self.calls.batch, self.step)
        started = np.isfinite(self.size)
        return self.image(np.arange(len(self.x)), np.where(started, self.size, 0)), started

    def step(self, rows):
        """Flip the next part of the directions of some images; returns which are finished."""
        flat = self.direction[rows].reshape(len(rows), -1)
        features = flat.shape[1]
        length = -(-features // self.parts[rows])[:, None]
        flipped = np.arange(features) // length == self.part[rows, None]
        direction = np.where(flipped, -flat, flat).reshape(self.direction[rows].shape)
        self.try_direction(rows, direction)

        self.part[rows] += 1
        ended = self.part[rows] * length[:, 0] >= features
        self.part[rows[ended]] = 0
        again = 2 * self.parts[rows] >= 2 * features
        self.parts[rows] = np.where(
            ended, np.where(again, 1, 2 * self.parts[rows]), self.parts[rows]
        )
        far = self.size[rows] > self.REACH * self.largest[rows]
        finished = (self.decisions[rows] >= DECISIONS) | (self.size[rows] <= self.smallest)
        return finished | (far & (self.decisions[rows] >= self.CHECKED))

    def try_direction(self, rows, direction):
        """Where it is adversarial at the present size: keep it, and bisect the size."""
        high = np.minimum(self.size[rows], 1)
        hit = self.wrong(rows, high, direction)
        rows, high, low = rows[hit], high[hit], np.zeros(hit.sum())
        self.direction[rows] = direction[hit]
        for _ in range(self.BISECTIONS if len(rows) else 0):
            middle = (low + high) / 2
            wrong = self.wrong(rows, middle)
            low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
        self.size[rows] = high

    def wrong(self, rows, size, direction=None):
        self.decisions[rows] += 1
        image = self.image(rows, size, direction)
        return self.calls.logits(image).argmax(axis=1) != self.y[rows]

    def image(self, rows, size, direction=None):
        direction = self.direction[rows] if direction is None else direction
        change = per_image(size.astype("float32")) * direction
        return np.clip(self.x[rows] + change, 0, 1)


# ------------------------------------------------------------------------------------- one model


def attack_model(classifier, x, y, epsilons, restarts, seed=0, tick=lambda: None):
    """{"<norm>/<attack>/<epsilon>": uint8 (n,)}, as in the docstring, of a Keras classifier.

    x: float32 (n, h, w, c) in [0, 1]; y: int (n,). epsilons: {"linf": ascending sizes, "l2": ...}.
    restarts: of pgd. tick: called now and then, ticks(...) times.
    """
    calls = Calls(foolbox_model(classifier))
    right = calls.logits(x).argmax(axis=1) == y
    x, y, results = x[right], y[right], {}
    for norm, sizes in epsilons.items():
        at = calls, x, y, norm, sizes
        fgsm = over_epsilons(*at, 1, 1, seed, tick)
        results[norm] = {"fgsm": fgsm, "pgd": over_epsilons(*at, PGD_STEPS, restarts, seed, tick)}
    for norm, result in under_rays(calls, x, y, epsilons, results["linf"]).items():
        results[norm]["rays"] = result
    tick()
    named = {}
    for norm, by_attack in results.items():
        by_attack["worst"] = worst(list(by_attack.values()))
        for attack, result in by_attack.items():
            for epsilon, of_right in zip((0, *epsilons[norm]), (1, *result), strict=True):
                named[f"{norm}/{attack}/{epsilon:g}"] = whole = np.zeros(len(right), "uint8")
                whole[right] = of_right
    return named


def ticks(epsilons, restarts):
    return sum((1 + restarts) * len(sizes) for sizes in epsilons.values()) + 1


def under_rays(calls, x, y, epsilons, by_gradient):
    """{norm: results (epsilons, n)}: one search for Linf, whose images count for every norm."""
    sizes = np.array(epsilons["linf"])
    left = worst(list(by_gradient.values())) != BROKEN
    largest = np.where(left, sizes[:, None], sizes[0]).max(axis=0)
    adversarial, started = Rays(calls, x, y, sizes[0], largest).run() if len(x) else (x, left[0])
    found = norms(adversarial - x)
    return {
        norm: np.stack([result_of(started & (found[norm] <= e + 1e-6), started) for e in sizes])
        for norm, sizes in epsilons.items()
    }


def worst(results):
    """The worst case over attacks: broken by any, else unknown to any, else robust."""
    results = np.stack(results)
    return np.where((results == BROKEN).any(axis=0), BROKEN, results.max(axis=0)).astype("uint8")


# ------------------------------------------------------------------------------------- all models


@dataclass
class Results:
    """adaptive.h5. Models that were attacked with other settings are not kept.

    index: int64 (n,), into x_test. settings: JSON. models: {SHA-256: {name: uint8 (n,)}}.
    """

    path: object
    index: np.ndarray
    settings: str

    def __post_init__(self):
        self.models = {}
        if not self.path.exists():
            return
        with h5py.File(self.path, "r") as file:
            same = np.array_equal(file["index"], self.index)
            for model, group in file.items():
                if same and model != "index" and group.attrs.get("settings") == self.settings:
                    names = []
                    group.visit(names.append)
                    read = {name: group[name] for name in names}
                    self.models[model] = {
                        k: v[()] for k, v in read.items() if isinstance(v, h5py.Dataset)
                    }

    def save(self, **made_from):
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, **made_from)
            file["index"] = self.index
            for model, results in self.models.items():
                group = file.create_group(model)
                group.attrs["settings"] = self.settings
                for name, values in results.items():
                    group[name] = values


def evaluate(study, table, weights, images=500, restarts=3):
    """Attack the selected models of a study (train.utils.Study); see the docstring above.

    Args:
        table: robustness.csv as a DataFrame. weights: {SHA-256: path}. images: of the reporting
            half, all if it has fewer. restarts: of pgd.

    Returns:
        adaptive.csv as a DataFrame: a row a model, norm, attack and epsilon.
    """
    x_test, y_test = study.data("test")
    half = halves_of_test(study.dataset, len(y_test))[1]
    index = np.sort(np.random.default_rng([study.seed, 5]).permutation(half)[:images])
    x, y = pixels(x_test[index]), y_test[index]
    epsilons = GREY if x.shape[-1] == 1 else COLOUR
    settings = {"epsilons": epsilons, "restarts": restarts, "seed": study.seed}
    settings |= {"pgd_steps": PGD_STEPS, "decisions": DECISIONS}
    settings["data_sha256"] = data_sha256(study.dataset, "test")
    path = study.folder / "adaptive.h5"
    results = Results(path, index.astype("int64"), json.dumps(settings, sort_keys=True))

    chosen = table[table["selected"] | table["selected_within_1"]]
    chosen = chosen[[*ABOUT, "sha256"]].drop_duplicates()
    todo = [digest for digest in chosen["sha256"].unique() if digest not in results.models]
    print(f"adaptive: {len(todo)} of {chosen['sha256'].nunique()} models to attack.", flush=True)
    with bar(len(todo) * ticks(epsilons, restarts)) as shown:
        begun = time.time()
        for count, digest in enumerate(todo):
            classifier = load_weights(study.classifier, weights[digest])
            results.models[digest] = attack_model(
                classifier, x, y, epsilons, restarts, study.seed, shown.update
            )
            results.save(**study.made_from)
            if not count and len(todo) > 1:
                minutes = (time.time() - begun) * (len(todo) - 1) / 60
                shown.write(f"adaptive: about {minutes:.1f} minutes to go.")
    study.original()
    found = summary(chosen, results.models)
    with atomic_write(study.folder / "adaptive.csv") as temporary:
        found.to_csv(temporary, index=False)
    return found


ABOUT = ["dataset", "model", "source", "run", "seed", "method", "lr_rate", "epoch"]
ABOUT += ["per", "choose_layer", "batches"]


def bar(total):
    """A bar on a terminal, elsewhere a line every half minute."""
    elsewhere = {"mininterval": 30, "maxinterval": 30, "file": sys.stdout}
    elsewhere["bar_format"] = "{desc}: {percentage:.0f}%, {remaining} to go\n"
    return tqdm(total=total, desc="adaptive", **({} if sys.stderr.isatty() else elsewhere))


def summary(chosen, models):
    """adaptive.csv as a DataFrame; chosen: the columns ABOUT and sha256, a row a model."""
    rows = []
    for about in chosen.to_dict("records"):
        for name, result in models[about["sha256"]].items():
            norm, attack, epsilon = name.split("/")
            robust, n = (result == ROBUST).sum(), len(result)
            shares = dict(zip(("low", "high"), wilson(robust, n), strict=True))
            rows.append(
                about
                | {"norm": norm, "attack": attack, "epsilon": float(epsilon), "n": n}
                | {"unknown": (result == UNKNOWN).sum(), "robust_accuracy": 100 * robust / n}
                | {name: 100 * share for name, share in shares.items()}
            )
    columns = [*ABOUT, "norm", "attack", "epsilon", "n", "unknown", "robust_accuracy"]
    return pd.DataFrame(rows)[[*columns, "low", "high", "sha256"]].round(4)
