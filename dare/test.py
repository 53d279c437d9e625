"""Step 8: score. Clean accuracy and empirical robustness of the original and of every tuned model, every epoch of it.

    python dare/test.py --dataset digits --model alexnet
    python dare/test.py --dataset digits --model alexnet --adaptive

Reads data/<dataset>/ and, of models/<dataset>_<model>/, the checkpoint, adv/*.h5 and every folder of tuned models. Writes
robustness.csv there, one row per model, attack and split; `selected` marks the epoch that the selection rule chose. With
--adaptive it also attacks every selected model itself (dare/adaptive.py). Empirical robustness is the accuracy, in %, on the
samples that succeeded against the original. What has been scored is kept in scores.json, and not computed again.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from tqdm import tqdm

from dare.adaptive import evaluate
from train.files import (
    ATTACKS,
    UserError,
    artifact,
    attributes,
    checkpoint_path,
    data_folder,
    data_sha256,
    epochs_in,
    options,
    pixels,
    run,
    sha256,
    stage,
    weights_path,
    whole,
    write_text,
)
from train.utils import Batches, load_fitting_data, load_study, load_weights

dataset = "digits"
model = "alexnet"
seed = 0
adaptive = False  # attack every selected model itself, too

SPLITS = ("train", "validation", "test")
LOSS_ALLOWED = 1.0  # points of clean accuracy that a selected model may lose


def read_samples(folder, **same):
    """{attack: (images, labels, splits, SHA-256)} of the samples that succeeded; refused if made from another model."""
    samples = {}
    for name in ATTACKS:
        path = folder / "adv" / f"{name}.h5"
        if path.exists():
            with artifact(path, f"python adv/generate_adv.py --attack {name}", **same) as file:
                hit = file["success"][()]
                samples[name] = (file["image"][()][hit], file["label"][()][hit], file["split"][()][hit], sha256(path))
    if not samples:
        raise UserError(f"{folder}/adv holds no adversarial samples: make them with `python adv/generate_adv.py`.")
    return samples


def tuned_models(folder, digest):
    """[(weights file, attributes)] of every epoch of every tuned model in a model folder, finished runs only.

    Raises UserError if one was tuned from another checkpoint than `digest`.
    """
    found = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in ("checkpoints", "adv")):
        epochs = epochs_in(sub)
        paths = [weights_path(sub, epoch) for epoch in epochs]
        about = [attributes(path) for path in paths]
        if not paths:
            continue
        if about[-1].get("checkpoint_sha256") != digest:
            raise UserError(f"{sub} was tuned from checkpoint {str(about[-1].get('checkpoint_sha256'))[:12]}, not {digest[:12]}: tune it again or remove it.")
        if about[-1]["epochs"] == epochs[-1]:
            found += zip(paths, about, strict=True)
    return found


def score(classifier, parts):
    """{part: [images, right]} of one model in one pass, for {part: (images, labels)}."""
    starts = np.cumsum([0, *(len(y) for _, y in parts.values())])

    def make(rows, _):
        pieces = []
        for (x, _), start, end in zip(parts.values(), starts, starts[1:], strict=False):
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                pieces.append(pixels(x[inside[0] : inside[-1] + 1]))
        return (np.concatenate(pieces),)

    predicted = classifier.predict(Batches(starts[-1], make, 256), verbose=0).argmax(axis=1)
    return {name: [len(y), int((predicted[start : start + len(y)] == y).sum())] for (name, (_, y)), start in zip(parts.items(), starts, strict=False)}


def select(table):
    """The selection rule of design section 7, on robustness.csv as a DataFrame; returns its column `selected`.

    Of all epochs and learning rates of a method and run: the highest mean empirical robustness on the validation part among
    those that lose at most LOSS_ALLOWED points of clean accuracy; if none, the one that loses least. The test part of the
    samples is not looked at.
    """
    original = table.loc[table["method"] == "original", "test_accuracy"].iloc[0]
    validation = table[table["split"] == "validation"]
    keys = ["method", "run", "per", "choose_layer", "lr_rate", "epoch"]
    means = validation.groupby(keys, dropna=False, sort=False)
    means = means.agg(robustness=("empirical_robustness", "mean"), clean=("test_accuracy", "first")).reset_index()
    allowed = means["clean"] >= original - LOSS_ALLOWED - 1e-9
    means["rank"] = np.where(allowed, means["robustness"], -1000 + means["clean"])
    best = means.loc[means.groupby(["method", "run", "per", "choose_layer"], dropna=False)["rank"].idxmax()]
    chosen = {tuple("" if pd.isna(v) else v for v in row) for row in best[keys].itertuples(index=False)}
    return [tuple("" if pd.isna(v) else v for v in row) in chosen for row in table[keys].itertuples(index=False)]


def score_all(folder, args, classifier, digest):
    """robustness.csv of a model folder as a DataFrame, and {SHA-256: weights file} of the models in it."""
    samples = read_samples(folder, checkpoint_sha256=digest, data_sha256=data_sha256(args.dataset))
    x_test, y_test = load_fitting_data(args, "test", classifier)
    digest_of_test = sha256(data_folder(args.dataset) / "x_test.npy", data_folder(args.dataset) / "y_test.npy")
    clean, parts = f"clean {digest_of_test}", {}
    parts[clean] = x_test, y_test
    for attack, (images, labels, split, sample_digest) in samples.items():
        for code, title in enumerate(SPLITS):
            if code:  # the training part is what adversarial training was tuned on
                parts[f"{attack} {title} {sample_digest}"] = images[split == code], labels[split == code]
    final = epochs_in(folder / "checkpoints")[-1]
    original = {"method": "original", "epoch": final, "run": 0}
    models = [(checkpoint_path(folder, final), original), *tuned_models(folder, digest)]
    path = folder / "scores.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    rows, known, files = [], {}, {}
    for weights, about in tqdm(models, desc="score", unit="model", disable=None):
        key = sha256(weights)
        files[key] = weights
        scores = kept.get(key, {})
        wanted = parts.keys() - scores.keys()
        if wanted:
            scores |= score(load_weights(classifier, weights), {name: part for name, part in parts.items() if name in wanted})
        kept[key] = known[key] = {name: scores[name] for name in parts}
        if wanted:
            write_text(path, json.dumps(kept))
        count, right = scores[clean]
        for attack in samples:
            for split in SPLITS[1:]:
                n, survived = scores[f"{attack} {split} {samples[attack][3]}"]
                rows.append(
                    {
                        "dataset": args.dataset,
                        "model": args.model,
                        "source": f"M{args.seed}",
                        "run": about["run"],
                        "seed": args.seed,
                        "method": about["method"],
                        "lr_rate": about.get("lr_rate"),
                        "epoch": about["epoch"],
                        "attack": attack,
                        "split": split,
                        "n": n,
                        "empirical_robustness": round(100 * survived / n, 4) if n else float("nan"),
                        "test_accuracy": round(100 * right / count, 4),
                        "per": about.get("per"),
                        "choose_layer": about.get("choose_layer"),
                        "sha256": key,
                    }
                )
    write_text(path, json.dumps(known))
    table = pd.DataFrame(rows)
    table.insert(13, "selected", select(table))
    return table, files


def summary(table):
    """The table for the terminal: the selected models on the test part, a column per attack."""
    chosen = table[table["selected"] & (table["split"] == "test")]
    keys = ["method", "per", "choose_layer", "lr_rate", "run", "epoch", "test_accuracy"]
    wide = chosen.pivot_table(index=keys, columns="attack", values="empirical_robustness", sort=False, dropna=False)
    wide = wide.dropna(how="all")[[a for a in ATTACKS if a in wide.dropna(how="all").columns]]
    return wide.assign(mean=wide.mean(axis=1)).round(1).reset_index().rename(columns={"test_accuracy": "clean"})


def main(argv=None):
    args = options(__doc__, argv, dataset=dataset, model=model, seed=seed, adaptive=adaptive)
    folder, classifier, _, digest = load_study(args)
    with stage(folder / "test.log", "score", **vars(args)):
        table, files = score_all(folder, args, classifier, digest)
        with whole(folder / "robustness.csv") as temporary:
            table.to_csv(temporary, index=False)
        print(f"\nEmpirical robustness in % on the test part of the samples, and clean accuracy; {args.dataset} {args.model} M{args.seed}\n")
        print(summary(table).to_string(index=False, na_rep="", float_format=lambda v: f"{v:g}"))
        print(f"\n{folder / 'robustness.csv'}: {len(table)} rows", flush=True)
        if args.adaptive:
            found = evaluate(folder, table, files, classifier, *load_fitting_data(args, "test", classifier), args.seed)
            wide = found.pivot_table(index="method", columns=["attack", "epsilon"], values="value", sort=False)
            print(f"\nRobust accuracy in % of the selected models, each attacked itself, over epsilon\n\n{wide.round(1).to_string()}\n")


if __name__ == "__main__":
    run(main)
