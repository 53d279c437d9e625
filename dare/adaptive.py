"""Adaptive evaluation: attack every selected model itself, on x_test. Called by test.py --adaptive.

Empirical robustness asks how a model does on samples made against another one. Here nothing is transferred: robust accuracy over
epsilon under fgsm, pgd with random restarts and HopSkipJump, which sees decisions only, so that a model that merely hides its
gradients shows; and the mean minimal perturbation under pgd. 95% bootstrap intervals over images.
"""

import eagerpy as ep
import foolbox
import numpy as np
import pandas as pd
from tqdm import tqdm

from adv.adapter import Calls, foolbox_model
from adv.attacks import attack, norms
from train.files import pixels, whole
from train.utils import load_weights, set_seed

EPSILONS = (0.01, 0.02, 0.05)  # Linf
IMAGES = 200
IMAGES_WITHOUT_GRADIENTS = 50  # HopSkipJump takes thousands of decisions an image
RESTARTS = 2
RESAMPLES = 2000


def bootstrap(values, seed=0):
    """95% interval of the mean of values (n,), by resampling images."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    return np.percentile(means, [2.5, 97.5])


def robust(calls, x, y, seed):
    """{attack: {epsilon: still right, bool (n,)}} and the minimal perturbations under pgd (n,), inf where it failed."""
    clean = calls.logits(x).argmax(axis=1) == y
    found = {"fgsm": {}, "pgd": {}, "hopskipjump": {}}
    for epsilon in EPSILONS:
        for name, restarts in (("fgsm", 1), ("pgd", RESTARTS)):
            still = clean.copy()
            for restart in range(restarts):
                if still.any():
                    _, hit = attack(name, None, x[still], y[still], "fixed", epsilon, seed + restart, calls=calls)
                    still[still] = ~hit
            found[name][epsilon] = still
    few = slice(IMAGES_WITHOUT_GRADIENTS)
    set_seed(seed, 7)
    decide = foolbox.attacks.HopSkipJumpAttack(steps=10, initial_gradient_eval_steps=50, max_gradient_eval_steps=200, constraint="linf")
    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
    right = np.flatnonzero(clean[few])
    size = np.where(clean[few], np.inf, 0.0)
    if len(right):
        inputs, labels = (ep.from_numpy(calls.like, a) for a in (x[right], y[right]))
        starting = start.run(calls.fmodel, inputs, foolbox.criteria.Misclassification(labels))
        begun = calls.logits(starting.numpy()).argmax(axis=1) != y[right]
        if begun.any():
            rows = right[begun]
            inputs, labels = (ep.from_numpy(calls.like, a) for a in (x[rows], y[rows]))
            points = ep.from_numpy(calls.like, starting.numpy()[begun])
            adversarial = decide.run(calls.fmodel, inputs, foolbox.criteria.Misclassification(labels), starting_points=points).numpy()
            hit = calls.logits(adversarial).argmax(axis=1) != y[rows]
            size[rows[hit]] = norms(adversarial - x[rows])["linf"][hit]
    found["hopskipjump"] = {epsilon: size > epsilon for epsilon in EPSILONS}
    adversarial, hit = attack("pgd", None, x[clean], y[clean], calls=calls)
    return found, np.where(hit, norms(adversarial - x[clean])["linf"], np.inf)


def evaluate(folder, table, files, classifier, x_test, y_test, seed):
    """adaptive.csv of a model folder: every selected model of robustness.csv (table and files: score_all's) attacked itself.

    A row an attack and epsilon: `value` is robust accuracy in %, between `low` and `high`, on n images; with epsilon empty,
    `value` is the mean minimal Linf perturbation, over the images where the attack succeeded. Models already there are kept.
    """
    path = folder / "adaptive.csv"
    known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["sha256"])
    rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(x_test))[:IMAGES])
    x, y = pixels(x_test[rows]), y_test[rows]
    chosen = table[table["selected"]].drop_duplicates(["method", "run", "per", "choose_layer", "lr_rate", "epoch"])
    results = []
    for row in tqdm(chosen.to_dict("records"), desc="adaptive", unit="model", disable=None):
        digest = row["sha256"]
        old = known[known["sha256"] == digest]
        if len(old):
            results += old.to_dict("records")
            continue
        load_weights(classifier, files[digest])
        found, sizes = robust(Calls(foolbox_model(classifier)), x, y, seed)
        about = {k: row[k] for k in ("dataset", "model", "source", "run", "method", "lr_rate", "epoch")}
        for name, at in found.items():
            for epsilon, still in at.items():
                low, high = bootstrap(still)
                values = {"value": 100 * still.mean(), "low": 100 * low, "high": 100 * high, "n": len(still)}
                results.append(about | {"attack": name, "epsilon": epsilon} | values | {"sha256": digest})
        finite = sizes[np.isfinite(sizes)]
        if len(finite):
            low, high = bootstrap(finite)
            results.append(
                about | {"attack": "pgd minimal", "epsilon": None, "value": finite.mean(), "low": low, "high": high, "n": len(finite), "sha256": digest}
            )
        with whole(path) as temporary:
            pd.DataFrame(results).to_csv(temporary, index=False)
    return pd.DataFrame(results)
