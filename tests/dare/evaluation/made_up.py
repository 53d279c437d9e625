"""Made-up studies for the tests of evaluation: scores of models that do not exist."""

import hashlib
import itertools
import json

import h5py
import numpy as np
import pandas as pd
from conftest import ROOT

from dare.evaluation import intervals
from dare.methods import METHODS

ATTACKS = ("fgsm", "pgd", "cw")
DEFAULTS = {"per": 0.95, "choose_layer": "conv3", "lr_rate": 1e-3}
SETTINGS = {
    "original": {},
    "dare-s": {"choose_layer": "conv3", "lr_rate": 1e-3},
    "control-finetune": {"choose_layer": "conv3", "lr_rate": 1e-3},
    "control-batchnorm": {"choose_layer": "conv3"},
    "control-checkpoint": {},
    "control-seed": {},
    "control-swa": {},
}
PLAIN = {  # method: (robustness, clean accuracy, robust accuracy under adaptive attack)
    "original": (0.0, 0.95, 0.3),
    "dare": (0.7, 0.95, 0.4),
    "dare-s": (0.7, 0.95, 0.4),
    "at-pgd": (0.5, 0.95, 0.5),
    "control-self": (0.6, 0.95, 0.3),
    "control-single": (0.6, 0.95, 0.3),
    "control-random": (0.6, 0.95, 0.3),
    "control-batchnorm": (0.5, 0.95, 0.3),
    "control-finetune": (0.6, 0.95, 0.3),
    "control-checkpoint": (0.5, 0.95, 0.3),
    "control-swa": (0.6, 0.95, 0.3),
    "control-noise": (0.4, 0.95, 0.3),
    "control-seed": (0.5, 0.95, 0.3),
}


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def exactly(share, n, order):
    """bool (n,): the share of images that come first in `order` are right."""
    right = np.zeros(n, bool)
    right[order[: round(share * n)]] = True
    return right


def made_up(
    home, methods=PLAIN, seed=0, run_count=1, n=300, model="lenet", more=(), dataset="digits",
    training=True,
):  # fmt: skip
    """A study's folder with robustness.csv, scores.h5, adaptive.h5 and .csv, log.csv and samples.

    Harder images are harder for all methods, but for a quarter of them that are a method's own
    luck, so that results are paired. more: rows like a method of `methods`, with settings.
    n: images of every part, but for 3 n in the training part of the samples; training: whether that
    was scored, except for adversarial training.
    """
    rng = np.random.default_rng([seed, 1])
    folder = home / "models" / f"{dataset}_{model}_seed{seed}"
    (folder / "adv").mkdir(parents=True)
    # Of twice as many images, so that some are a sample of one attack and not of another.
    images = {"validation": range(2 * n), "test": range(2 * n, 4 * n)}
    images |= {"training": range(4 * n, 10 * n)} if training else {}
    parts = {f"{a} {s}": np.sort(rng.choice(rows, len(rows) // 2, replace=False))
             for a in ATTACKS for s, rows in images.items()}  # fmt: skip
    parts |= {
        f"clean {half}": np.arange(n) + i * n for i, half in enumerate(("selection", "reporting"))
    }
    rows, adaptive, scores, robust = [], [], {}, {}
    difficulty = rng.random(10 * n)
    jobs = [(m, v, {}) for m, v in methods.items()] + list(more)
    for method, (robustness, clean, own), changed in jobs:
        single = not METHODS[method].has_runs
        for run in range(1 if single else run_count):
            digest = sha(len(scores))
            noise = np.random.default_rng([seed, len(scores), 2])
            of_image = difficulty + 0.25 * noise.random(10 * n)
            right = {
                part: exactly(clean if part.startswith("clean") else robustness, len(index),
                              np.argsort(of_image[index])) for part, index in parts.items()
                if not (METHODS[method].trains_on_samples and part.endswith("training"))
            }  # fmt: skip
            scores[digest] = right
            about = {"dataset": dataset, "model": model, "source": f"M{seed}", "run": run}
            about |= {"seed": seed, "method": method, "epoch": 3, "sha256": digest}
            about |= {"per": None, "choose_layer": None, "batches": None, "lr_rate": None}
            about |= SETTINGS.get(method, DEFAULTS) | changed
            original = scores[sha(0)]["clean selection"].mean()
            within = right["clean selection"].mean() >= original - 0.01 - 1e-9
            for attack, split in itertools.product(ATTACKS, ("validation", "test")):
                rows.append(
                    about
                    | {"attack": attack, "split": split, "n": n, "selected": True}
                    | {"last_epoch": True}
                    | {"empirical_robustness": 100 * right[f"{attack} {split}"].mean()}
                    | {"test_accuracy": 100 * right["clean reporting"].mean()}
                    | {"selection_accuracy": 100 * right["clean selection"].mean()}
                    | {"selected_within_1": within}
                )
            robust[digest] = {}
            for norm, sizes in {"linf": (0, 0.01, 0.0001), "l2": (0, 0.5)}.items():
                for size in sizes:
                    share = own if size else clean
                    still = exactly(share, n, np.argsort(of_image[:n])).astype("uint8")
                    robust[digest][f"{norm}/worst/{size:g}"] = still
                    low, high = (100 * v for v in intervals.wilson(still.sum(), n))
                    row = {"norm": norm, "attack": "worst", "epsilon": size, "n": n, "unknown": 0}
                    value = {"robust_accuracy": 100 * still.mean(), "low": low, "high": high}
                    adaptive.append(about | row | value)
    pd.DataFrame(rows).to_csv(folder / "robustness.csv", index=False)
    pd.DataFrame(adaptive).to_csv(folder / "adaptive.csv", index=False)
    with h5py.File(folder / "scores.h5", "w") as file:
        for part, index in parts.items():
            file[f"parts/{part}"] = index.astype("int64")
            file[f"parts/{part}"].attrs["made_from"] = "0" * 64
        for digest, of_model in scores.items():
            for part, right in of_model.items():
                file[f"models/{digest}/{part}"] = np.packbits(right)
    with h5py.File(folder / "adaptive.h5", "w") as file:
        file["index"] = np.arange(n)
        for digest, of_model in robust.items():
            for name, still in of_model.items():
                file[f"{digest}/{name}"] = still
    others(folder, n)
    return folder


def others(folder, n):
    """log.csv, samples, targets, slices and a log of a made-up study."""
    epoch = np.arange(1, 21)
    log = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
    log |= {"val_loss": 1 / epoch, "val_accuracy": 0.97 - 0.5 / epoch, "lr": 0.01, "seconds": 1.0}
    pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
    for attack in ATTACKS:
        with h5py.File(folder / f"adv/{attack}.h5", "w") as file:
            file["success"] = np.ones(n, bool)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "ats_conv3.h5", "w") as file:
        file["index"], file["epoch"] = np.arange(200), rng.integers(10, 20, 200)
        file.attrs["first"] = 10
    with h5py.File(folder / "slice_0.95.h5", "w") as file:
        for order, name in enumerate(("conv1", "conv2", "conv3", "dense1", "predictions")):
            group = file.create_group(name)
            group.attrs["order"] = order
            group["class_mask"] = rng.random((10, 20, 20)) < 0.9
            group["mask"] = rng.random((20, 20)) < 0.95
    entry = {"stage": "mine", "command": [str(ROOT / "dare/get_ats.py"), "--seed", "0"]}
    entry |= {"start": "2024-01-01 10:00:00", "peak_memory_gb": 1.0}
    entry |= {
        "settings": {"images": 9},
        "packages": {"tensorflow": "2.21"},
        "device": "a processor",
    }
    ends = [("done", 12.5), ("idle", 0.0), (None, None)]
    lines = [json.dumps(entry | {"ended": end, "seconds": seconds}) for end, seconds in ends]
    (folder / "get_ats.log").write_text("\n".join([*lines, '{"stage": "cut o']))
