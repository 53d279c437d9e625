"""Step 8: score the original and every tuned model, and select an epoch of each method.

    python dare/test.py --dataset digits --model lenet
    python dare/test.py --dataset digits --model lenet --adaptive

Reads data/<dataset>/ and, of models/<dataset>_<model>_seed<N>/, the checkpoints, adv/*.h5 and
tuned/. Writes robustness.csv there, one row per model, attack and split, and scores.h5, which
images each model gets right. Empirical robustness is the accuracy, in %, on the samples that
succeeded against the original. With --adaptive it also attacks every selected model itself.

Selection (the same for every method, over its epochs and learning rates) sees the validation part
of the samples and the selection half of x_test. What is reported, the test part and the reporting
half, is scored for selected models only, afterwards.
"""

import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.controls import mined_checkpoints, other_seeds
from dare.evaluation.adaptive import evaluate
from dare.evaluation.runs import LOSS_ALLOWED
from dare.evaluation.scores import Scores
from train.artifacts import (
    atomic_write,
    attributes,
    data_sha256,
    epochs_in,
    samples_path,
    sha256,
    weights_path,
)
from train.flags import UserError, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import Batches, Rows, halves_of_test, pixels, predict_batches, selection_images

dataset = "digits"
model = "lenet"
seed = 0
adaptive = False  # attack every selected model itself, too
adaptive_images = 500  # of the reporting half
restarts = 3  # of pgd, when it attacks a model itself

SAVED_EVERY = 25  # models: what an interruption can cost

# What makes a method one row of the tables; its epochs and learning rates are to be chosen from.
METHOD = ["method", "run", "per", "choose_layer", "batches"]


# ----------------------------------------------------------------------------- samples and models


def read_samples(study):
    """{part: (images, labels, index, SHA-256)} of the validation and test parts of all attacks.

    Only samples on which the attack succeeded. Raises UserError if there are none, or if two
    attacks attacked other images or split them otherwise, so that they share no test part.
    """
    parts, first = {}, None
    for attack in ATTACKS:
        path = samples_path(study.folder, attack)
        if not path.exists():
            continue
        with study.open_checked(path, study.command("adv/generate_adv.py", attack=attack)) as file:
            index, split, success = (file[k][()] for k in ("index", "split", "success"))
            first = first or (path, index, split)
            if not (np.array_equal(index, first[1]) and np.array_equal(split, first[2])):
                raise UserError(
                    f"{path} ({len(index)} samples) and {first[0]} ({len(first[1])}) are samples "
                    f"of different images: make all attacks with the same --samples."
                )
            for code, title in (1, "validation"), (2, "test"):
                rows = np.flatnonzero((split == code) & success)
                images, labels = file["image"][rows], file["label"][rows]
                parts[f"{attack} {title}"] = images, labels, index[rows], sha256(path)
    if not parts:
        raise UserError(
            f"{study.folder}/adv holds no adversarial samples: make them with "
            f"`{study.command('adv/generate_adv.py')}`."
        )
    if not any(len(part[1]) for name, part in parts.items() if name.endswith("validation")):
        raise UserError(
            f"{study.folder}/adv has no successful sample in its validation part, so that no "
            f"epoch can be selected: make more samples."
        )
    return parts


def clean_parts(study):
    """The same for the two halves of x_test; of the selection half, for its selection images."""
    x, y = study.data("test")
    selection = selection_images(study.dataset, len(y))
    _, reporting = halves_of_test(study.dataset, len(y))
    digest = data_sha256(study.dataset, "test")
    return {
        f"clean {half}": (Rows(x, rows), y[rows], rows, digest)
        for half, rows in (("selection", selection), ("reporting", reporting))
    }


def models_to_score(study, adv_sha256):
    """One row for each model: the columns of robustness.csv that say which it is, and `path`.

    adv_sha256: {attack: SHA-256 of its samples file}. Raises UserError if a model was tuned from
    another checkpoint than the study's, or on other samples of an attack.
    """
    final = epochs_in(study.folder / "checkpoints")[-1]
    rows = [{"method": "original", "epoch": final, "path": study.checkpoint}]
    if list(study.folder.glob("ats_*.h5")):
        for epoch, path in mined_checkpoints(study).items():
            rows.append({"method": "control-checkpoint", "epoch": epoch, "path": path})
    for other, path in other_seeds(study).items():
        rows.append({"method": "control-seed", "epoch": other, "path": path})
    for folder in sorted(p for p in (study.folder / "tuned").glob("*") if p.is_dir()):
        rows += [tuned_row(study, path, adv_sha256) for path in weights_in(folder)]
    names = {"dataset": study.dataset, "model": study.model, "source": f"M{study.seed}"}
    columns = ["run", "seed", "method", "lr_rate", "epoch", "per", "choose_layer", "batches"]
    models = pd.DataFrame(rows).reindex(columns=[*columns, "path"])
    models = models.assign(**names, seed=study.seed, run=models["run"].fillna(0).astype(int))
    return models.assign(sha256=[sha256(path) for path in models["path"]])


def weights_in(folder):
    return [weights_path(folder, epoch) for epoch in epochs_in(folder)]


def tuned_row(study, path, adv_sha256):
    about = attributes(path)
    found, wanted = about.get("checkpoint_sha256"), study.provenance["checkpoint_sha256"]
    if found != wanted:
        raise UserError(
            f"{path} was tuned from checkpoint {str(found)[:12]}, not {wanted[:12]}: move "
            f"{path.parent} away, or tune again."
        )
    attack = about["method"].removeprefix("at-")
    if about.get("adv_sha256") != adv_sha256.get(attack, about.get("adv_sha256")):
        raise UserError(
            f"{path} was trained on other samples than adv/{attack}.h5 holds, perhaps on those to "
            f"be reported: move {path.parent} away, or train it again."
        )
    columns = ("method", "epoch", "run", "lr_rate", "per", "batches", "choose_layer")
    return {k: about.get(k) for k in columns} | {"path": path}


# -------------------------------------------------------------------------------- score and select


def score(classifier, parts):
    """{part: right, bool (n,)} of one model in one pass, for {part: (images, labels, ...)}."""
    names, labels = list(parts), [part[1] for part in parts.values()]
    starts = np.cumsum([0, *(len(y) for y in labels)])

    def make(rows, _):
        pieces = []
        for name, begin, end in zip(names, starts, starts[1:], strict=False):
            inside = rows[(rows >= begin) & (rows < end)] - begin
            if len(inside):
                pieces.append(pixels(parts[name][0][inside]))
        return (np.concatenate(pieces),)

    predicted = predict_batches(classifier, Batches(starts[-1], make, 256)).argmax(axis=1)
    right = predicted == np.concatenate(labels)
    return dict(zip(names, np.split(right, starts[1:-1]), strict=True))


def score_models(study, models, parts, scores, title):
    """Score what `scores` lacks of the models (DataFrame) on the parts; saved now and then."""
    paths = dict(zip(models["sha256"], models["path"], strict=True))
    paths = {digest: path for digest, path in paths.items() if scores.missing(digest, parts)}

    def right(classifier, digest):
        return score(classifier, {part: parts[part] for part in scores.missing(digest, parts)})

    with closing(study.with_weights(paths, right)) as ready:
        bar = progress(ready, total=len(paths), desc=title, unit="model")
        for count, (digest, by_part) in enumerate(bar, 1):
            for part, of_part in by_part.items():
                scores.add(digest, part, of_part)
            if count % SAVED_EVERY == 0 or count == len(paths):
                scores.save()


def select(models):
    """The selection rule: which models are `selected` and `selected_within_1`, two bool arrays.

    Of all epochs and learning rates of a method (METHOD), the first mark goes to the highest
    `robustness`, the mean over attacks on the validation part. The second goes to the highest among
    those that lose at most LOSS_ALLOWED of `selection_accuracy`, and to none where none does. The
    authors' tables must have used the first: their adversarial training loses up to 13 points.

    models: DataFrame, a row a model, with the columns METHOD, robustness and selection_accuracy.
    """
    original = models.loc[models["method"] == "original", "selection_accuracy"].iloc[0]
    allowed = models["selection_accuracy"] >= original - LOSS_ALLOWED - 1e-9
    marks = []
    for candidates in models, models[allowed]:
        best = candidates.groupby(METHOD, dropna=False, sort=False)["robustness"].idxmax()
        marks.append(models.index.isin(best))
    return tuple(marks)


def robustness_table(study, models, attacks, scores):
    """robustness.csv as a DataFrame: a row for each model, attack and split."""
    rows = []
    for about in models.to_dict("records"):
        digest = about["sha256"]
        splits = ["validation"] + ["test"] * (about["selected"] or about["selected_within_1"])
        for attack in attacks:
            for split in splits:
                part = f"{attack} {split}"
                rows.append(
                    about
                    | {"attack": attack, "split": split, "n": len(scores.index[part])}
                    | {"empirical_robustness": scores.percent(digest, part)}
                    | {"test_accuracy": scores.percent(digest, "clean reporting")}
                )
    columns = "dataset model source run seed method lr_rate epoch attack split n "
    columns += "empirical_robustness test_accuracy selected selected_within_1 "
    columns += "per choose_layer batches selection_accuracy sha256"
    return pd.DataFrame(rows)[columns.split()].round(4)


def score_study(study):
    """(robustness.csv as a DataFrame, {SHA-256: weights file}) of a study; see the docstring."""
    samples, clean = read_samples(study), clean_parts(study)
    attacks = [a for a in ATTACKS if f"{a} test" in samples]
    models = models_to_score(study, {a: samples[f"{a} test"][-1] for a in attacks})
    parts, scores = samples | clean, Scores(study.folder / "scores.h5")
    for part, (_, _, index, provenance) in parts.items():
        scores.define(part, index, provenance)
    seen = {p: parts[p] for p in ("clean selection", *(f"{a} validation" for a in attacks))}
    score_models(study, models, seen, scores, "score all models")

    percent = scores.percent
    validation = [[percent(m, f"{a} validation") for a in attacks] for m in models["sha256"]]
    models["robustness"] = np.nanmean(validation, axis=1)
    models["selection_accuracy"] = [percent(m, "clean selection") for m in models["sha256"]]
    models["selected"], models["selected_within_1"] = select(models)

    chosen = models[models["selected"] | models["selected_within_1"]]
    reported = {p: parts[p] for p in ("clean reporting", *(f"{a} test" for a in attacks))}
    score_models(study, chosen, reported, scores, "score selected models")
    weights = dict(zip(models["sha256"], models["path"], strict=True))
    return robustness_table(study, models, attacks, scores), weights


def summary(table, mark):
    """What the terminal shows: the marked models on the test part, a column for each attack."""
    chosen = table[table[mark] & (table["split"] == "test")]
    keys = ["method", "per", "choose_layer", "lr_rate", "run", "epoch", "test_accuracy"]
    wide = chosen.groupby([*keys, "attack"], dropna=False, sort=False)["empirical_robustness"]
    wide = wide.first().unstack("attack")
    return wide.assign(mean=wide.mean(axis=1)).round(1).reset_index()


def main(argv=None):
    args = options(__doc__, argv, globals())
    study = Study.open(args)
    with stage(study.folder / "test.log", "score", vars(args)):
        table, weights = score_study(study)
        path = study.folder / "robustness.csv"
        with atomic_write(path) as temporary:
            table.to_csv(temporary, index=False)
        for mark, rule in (
            ("selected", "highest validation robustness"),
            ("selected_within_1", "the same, at most 1 point of clean accuracy lost"),
        ):
            print(f"\nEmpirical robustness in % and clean accuracy (test_accuracy): {rule}\n")
            print(
                summary(table, mark).to_string(index=False, na_rep="", float_format="{:g}".format)
            )
        print(f"\n{path}: {len(table)} rows", flush=True)
        if args.adaptive:
            evaluate(study, table, weights, args.adaptive_images, args.restarts)


if __name__ == "__main__":
    run_script(main)
