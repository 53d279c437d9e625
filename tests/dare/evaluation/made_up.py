"""Made-up studies for the tests of evaluation: scores of models that do not exist."""

import hashlib
import json

import h5py
import numpy as np
import pandas as pd
from conftest import ROOT

from dare.evaluation.results import SPLITS
from dare.evaluation.scores import Scores
from dare.evaluation.scoring import COLUMNS
from dare.methods import METHODS, unseen_splits

ATTACKS = ("fgsm", "pgd", "cw")
EPSILONS = (0, 0.01, 0.02)
PLAIN = {  # method: (robustness, clean accuracy, robust accuracy under adaptive attack)
    "original": (0.0, 0.95, 0.3),
    "dare": (0.7, 0.95, 0.4),
    "dare-s": (0.7, 0.95, 0.4),
    "at-fgsm": (0.6, 0.9, 0.5),
    "at-pgd": (0.5, 0.95, 0.5),
    "control-self": (0.6, 0.95, 0.3),
    "control-finetune": (0.6, 0.95, 0.3),
    "control-swa": (0.6, 0.95, 0.3),
    "control-seed": (0.8, 0.95, 0.3),
}


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def made_up(
    home, methods=PLAIN, seed=0, runs=1, n=60, model="lenet", dataset="digits", more=(),
    held_out=True,
):  # fmt: skip
    """A study's folder with robustness.csv, scores.h5, adaptive.csv, log.csv, targets and a log.

    Every image has a difficulty, and a model errs on the hardest, but for some noise of its own.
    n: images of every part. more: (method, shares as in PLAIN, settings) of further models.
    """
    folder = home / "models" / f"{dataset}_{model}_seed{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, 1])
    difficulty, scores, rows, adaptive = rng.random(1000), Scores(), [], []
    for attack in ATTACKS:
        index = rng.permutation(500)
        for i, split in enumerate(SPLITS):
            scores.define(f"{attack} {split}", np.sort(index[i * n : (i + 1) * n]), "samples")
        if held_out and attack != "cw":
            scores.define(f"{attack} heldout", np.arange(500, 500 + n), "held out")
    scores.define("clean reporting", np.arange(600, 600 + n), "test images")
    for epsilon in EPSILONS:
        scores.define(f"adaptive worst {epsilon}", np.arange(600, 600 + n), "attacked")
    jobs = [(method, shares, {}) for method, shares in methods.items()] + list(more)
    for method, (robustness, clean, own), changed in jobs:
        made = METHODS[method]
        usual = {"choose_layer": "conv3", "per": 0.95, "lr_rate": 1e-3} | made.fixed
        for run in range(runs if made.has_runs else 1):
            digest = sha((seed, len(rows), run))
            noisy = difficulty + 0.25 * np.random.default_rng([seed, len(rows)]).random(1000)
            about = {"dataset": dataset, "model": model, "source": f"M{seed}", "run": run}
            about |= {"seed": seed, "method": method, "epoch": 3, "sha256": digest}
            about |= {name: usual[name] for name in (*made.settings, *made.fixed) if name in usual}
            about |= {"lr_rate": 1e-4} if made.trains_on_samples else {}
            about |= {"last": True, "best": True, "is_original": False} | changed
            for part, index in scores.index.items():
                if made.trains_on_samples and part.endswith("training"):
                    continue
                share = {"clean": clean, "adaptive": own}.get(part.split()[0], robustness)
                share = clean if part.endswith(" 0") else share
                right = np.zeros(len(index), bool)
                right[np.argsort(noisy[index])[: round(share * len(index))]] = True
                scores.add(digest, part, right)
                if part.startswith("adaptive"):
                    row = {"attack": "worst", "epsilon": float(part.split()[2]), "n": n}
                    value = {"unknown": 0, "robust_accuracy": 100 * right.mean()}
                    adaptive.append(about | row | value)
            for attack in ATTACKS:
                for split in (*unseen_splits(method), "heldout"):
                    if f"{attack} {split}" in scores.index:
                        row = {"attack": attack, "split": split, "n": n}
                        percent = scores.percent(digest, f"{attack} {split}")
                        row |= {"empirical_robustness": percent}
                        row |= {"test_accuracy": scores.percent(digest, "clean reporting")}
                        rows.append(about | row)
    pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(folder / "robustness.csv", index=False)
    pd.DataFrame(adaptive).drop(columns=["last", "best", "is_original"]).to_csv(
        folder / "adaptive.csv", index=False
    )
    scores.save(folder / "scores.h5")
    epoch = np.arange(1, 21)
    pd.DataFrame({"epoch": epoch, "loss": 1 / epoch, "seconds": 2.0}).to_csv(
        folder / "log.csv", index=False
    )
    with h5py.File(folder / "ats_conv3.h5", "w") as file:
        file["index"], file["epoch"] = np.arange(90), rng.integers(10, 20, 90)
        file.attrs.update(first=10, last=19, choose_layer="conv3")
    log(folder / "train.log", f"train {model}", 40.0)
    # Mining a second layer takes the probabilities of the first; a tuning was extended.
    layers = {"choose_layer": "conv3"}, {"choose_layer": "predictions"}
    log(folder / "get_ats.log", "mine", 10.0, layers, 1.0)
    log(folder / "nnslicer.log", "slice", 3.0)
    log(folder / "tuned/dare/tune.log", "dare", 3.0, ({}, {"epochs": 10}), 4.0)
    log(folder / "tuned/control-random/tune.log", "control-random", 7.0)
    log(folder / "ats_conv3_random_run0.log", "targets random_run0", 5.0)
    log(folder / "tuned/at-pgd/tune.log", "at-pgd", 6.0)
    log(folder / "adv/pgd.log", "pgd", 20.0)
    log(folder / "adv/pgd_test.log", "pgd test", 2.0)
    return folder


def log(path, stage, seconds, settings=({}, {}), more=None):
    """A log with an entry of a stage that was run, of one that found it done, and a broken line.

    settings: of the run and of a second one, which took `more` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"stage": stage, "command": [str(ROOT / "dare/script.py"), "--seed", "0"]}
    entry |= {"start": "2024-01-01 10:00:00", "device": "a processor"}
    entry |= {"packages": {"tensorflow": "2.21"}}
    first, second = settings
    ends = [("done", seconds, first), ("idle", 0.0, {})] + (
        [("done", more, second)] if more else []
    )
    lines = [
        json.dumps(entry | {"ended": end, "seconds": spent, "settings": {"images": 718} | changed})
        for end, spent, changed in ends
    ]
    path.write_text("\n".join([*lines, '{"stage": "cut o']))
