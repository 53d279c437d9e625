"""Scores of the original and of every tuned model, and the selection of an epoch of each method.

Called by dare/test.py. Selection sees the validation part of the samples and the selection half of
x_test. What is reported is scored afterwards, for selected models only: the test part, the
reporting half and, for methods that see no samples, the training part of the samples too.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.scores import SELECTION_RULES, Scores, loses_too_much
from dare.methods import METHODS, default_rate, unseen_splits
from train.shared.artifacts import attributes, data_sha256, sha256
from train.shared.checkpoints import load_weights
from train.shared.flags import UserError
from train.shared.log import progress
from train.shared.paths import epochs_in, samples_path, tuned_name, weights_path
from train.utils import Batches, Rows, halves_of_test, pixels, predict_batches, selection_images

SPLITS = ("training", "validation", "test")  # of the samples, by their code in adv/*.h5
SAVE_INTERVAL = 25  # at most this many models are scored again after an interruption

# One method with these settings is one row of the tables. Its epochs and learning rates are the
# candidates of the selection.
METHOD = ["method", "run", "per", "choose_layer", "batches"]
# Columns of robustness.csv: which model, the results, and what selection saw.
MODEL = ["dataset", "model", "source", "run", "seed", "method", "lr_rate", "epoch"]
MEASURED = ["attack", "split", "n", "empirical_robustness", "test_accuracy"]
PERCENT = ["empirical_robustness", "test_accuracy", "selection_accuracy"]
COLUMNS = [*MODEL, *MEASURED, *SELECTION_RULES]
COLUMNS += ["per", "choose_layer", "batches", "selection_accuracy", "sha256"]


# -------------------------------------------------------------------------------- images to score


@dataclass
class Part:
    """Images that models are scored on.

    images: (n, h, w, c). labels: int (n,). index: int (n,), into x_train for samples and into
    x_test for clean images. sha256: of the file that they come from.
    """

    images: object
    labels: np.ndarray
    index: np.ndarray
    sha256: str


def read_samples(study):
    """{"<attack> <split>": Part} of the successful samples of all attacks, for SPLITS.

    Raises UserError if there are none, or if two attacks are not on the same images and splits.
    """
    parts = {}
    first = None
    for attack in ATTACKS:
        path = samples_path(study.folder, attack)
        if not path.exists():
            continue
        step = study.command("adv/generate_adv.py", attack=attack)
        with study.open_checked(path, step) as file:
            index, split, success = (file[name][()] for name in ("index", "split", "success"))
            digest = sha256(path)
            first = first or (path, index, split)
            if not (np.array_equal(index, first[1]) and np.array_equal(split, first[2])):
                raise UserError(
                    f"{path} ({len(index)} samples) and {first[0]} ({len(first[1])}) are samples "
                    f"of different images: make all attacks with the same --samples."
                )
            for code, name in enumerate(SPLITS):
                rows = np.flatnonzero((split == code) & success)
                parts[f"{attack} {name}"] = Part(
                    file["image"][rows], file["label"][rows], index[rows], digest
                )
    if not parts:
        raise UserError(
            f"{study.folder}/adv holds no adversarial samples: make them with "
            f"`{study.command('adv/generate_adv.py')}`."
        )
    if not any(len(part.labels) for name, part in parts.items() if name.endswith("validation")):
        raise UserError(
            f"{study.folder}/adv has no successful sample in its validation part, so no epoch can "
            f"be selected: make more samples."
        )
    return parts


def clean_parts(study):
    """{"clean selection" and "clean reporting": Part} of x_test."""
    x, y = study.data("test")
    _, reporting = halves_of_test(study.dataset, len(y))
    rows_of = {"selection": selection_images(study.dataset, len(y)), "reporting": reporting}
    digest = data_sha256(study.dataset, "test")
    return {
        f"clean {half}": Part(Rows(x, rows), y[rows], rows, digest)
        for half, rows in rows_of.items()
    }


# -------------------------------------------------------------------------------- models to score


def models_to_score(study, adv_sha256):
    """A row for each model: what identifies it in robustness.csv, its path and its SHA-256.

    adv_sha256: {attack: SHA-256 of its samples file}. Raises UserError if a model was tuned from
    another checkpoint than the study's, or on other samples of an attack.
    """
    final = epochs_in(study.folder / "checkpoints")[-1]
    rows = [{"method": "original", "epoch": final, "path": study.checkpoint}]
    if list(study.folder.glob("ats_*.h5")):
        for epoch, path in study.mined_checkpoints().items():
            rows.append({"method": "control-checkpoint", "epoch": epoch, "path": path})
    for seed, path in study.other_seeds().items():
        # The seed takes the column epoch: of several other seeds, the most robust is selected.
        rows.append({"method": "control-seed", "epoch": seed, "path": path})
    folders = sorted(path for path in (study.folder / "tuned").glob("*") if path.is_dir())
    for folder in folders:
        for epoch in epochs_in(folder):
            rows.append(tuned_row(study, weights_path(folder, epoch), adv_sha256))
    models = pd.DataFrame(rows).reindex(columns=[*MODEL, "per", "choose_layer", "batches", "path"])
    return models.assign(
        dataset=study.dataset,
        model=study.model,
        source=f"M{study.seed}",
        seed=study.seed,
        run=models["run"].fillna(0).astype(int),
        sha256=[sha256(path) for path in models["path"]],
    )


def tuned_row(study, path, adv_sha256):
    """The row of a tuned model, from the attributes of its weights file."""
    found = attributes(path)
    checkpoint = study.provenance["checkpoint_sha256"]
    if not found:
        raise UserError(f"{path} is corrupt: delete it and tune again.")
    method = found.get("method")
    if method not in METHODS:
        raise UserError(f"{path} is of an unknown method: move {path.parent} out of tuned/.")
    about = {name: found.get(name) for name in (*METHOD, "lr_rate")}
    in_name = about if METHODS[method].has_runs else about | {"run": None}
    if path.parent.name != (name := tuned_name(**in_name)):
        raise UserError(f"{path} belongs in a folder {name}: move {path.parent} out of tuned/.")
    if found.get("checkpoint_sha256") != checkpoint:
        raise UserError(
            f"{path} was tuned from checkpoint {str(found.get('checkpoint_sha256'))[:12]}, not "
            f"{checkpoint[:12]}: move {path.parent} out of tuned/, or tune again."
        )
    attack = method.removeprefix("at-")
    if found.get("adv_sha256") != adv_sha256.get(attack, found.get("adv_sha256")):
        raise UserError(
            f"{path} was trained on other samples than those in adv/{attack}.h5, perhaps on some "
            f"that are to be reported: move {path.parent} out of tuned/, or train it again."
        )
    return about | {"epoch": found["epoch"], "path": path}


# --------------------------------------------------------------------------------------- scoring


def score(classifier, parts):
    """Which images a model gets right: {name: bool (n,)} for {name: Part}, in one pass."""
    names = list(parts)
    labels = [part.labels for part in parts.values()]
    starts = np.cumsum([0, *(len(y) for y in labels)])
    if not starts[-1]:
        return {name: np.zeros(0, bool) for name in names}

    def make_batch(rows, _):
        pieces = []
        for name, begin, end in zip(names, starts, starts[1:], strict=False):
            inside = rows[(rows >= begin) & (rows < end)] - begin
            if len(inside):
                pieces.append(pixels(parts[name].images[inside]))
        return (np.concatenate(pieces),)

    predicted = predict_batches(classifier, Batches(starts[-1], make_batch, 256)).argmax(axis=1)
    is_right = predicted == np.concatenate(labels)
    return dict(zip(names, np.split(is_right, starts[1:-1]), strict=True))


def score_models(study, models, parts_of, scores, title):
    """Score models (DataFrame) on the parts that `scores` lacks, and save it now and then.

    parts_of: {SHA-256 of a model's weights: {name: Part}}.
    """
    paths = dict(zip(models["sha256"], models["path"], strict=True))
    paths = {m: path for m, path in paths.items() if scores.missing(m, parts_of[m])}

    def score_missing(classifier, model):
        missing = scores.missing(model, parts_of[model])
        return score(classifier, {name: parts_of[model][name] for name in missing})

    if paths:
        bar = progress(paths, desc=title, unit="model")
        for count, model in enumerate(bar, 1):
            results = score_missing(load_weights(study.classifier, paths[model]), model)
            for name, is_right in results.items():
                scores.add(model, name, is_right)
            if count % SAVE_INTERVAL == 0 or count == len(paths):
                scores.save()


def empirical_robustness(scores, model, attack, split):
    """The paper's metric: accuracy in % on an attack's adversarial examples for the original.

    scores: Scores of the samples in `read_samples`, which keeps the successful ones only.
    model: SHA-256 of its weights. split: "validation" or "test".
    """
    return scores.percent(model, f"{attack} {split}")


def select(models):
    """The selection rules: a bool column for each of SELECTION_RULES.

    `selected` is the most robust of all epochs and learning rates of a method (METHOD), by the mean
    over attacks on the validation part. `selected_within_1` is the most robust of those that lose
    at most LOSS_ALLOWED points of clean accuracy; a method may have none. The paper's tables
    presumably use the first rule, because its adversarial training loses up to 13 points.
    `last_epoch` looks at no sample, and so favours no method that has many candidates: the last
    epoch at the default learning rate (or the nearest to it).

    Args:
        models: DataFrame, one row for each model, with the columns METHOD, model, lr_rate, epoch,
            robustness and selection_accuracy.

    Returns:
        DataFrame, bool (models, rules).
    """
    original = models.loc[models["method"] == "original", "selection_accuracy"].iloc[0]
    within_1 = models[~loses_too_much(models["selection_accuracy"] - original)]
    defaults = [
        default_rate(*names) for names in zip(models["method"], models["model"], strict=True)
    ]
    distance = np.abs(np.log(models["lr_rate"].astype(float) / defaults)).fillna(0)
    nearest_last = models.assign(nearness=-distance).sort_values(["nearness", "epoch"])

    def by_method(candidates):
        return candidates.groupby(METHOD, dropna=False, sort=False)

    chosen = {
        "selected": by_method(models)["robustness"].idxmax(),
        "selected_within_1": by_method(within_1)["robustness"].idxmax(),
        "last_epoch": by_method(nearest_last).tail(1).index,
    }
    return pd.DataFrame({rule: models.index.isin(chosen[rule]) for rule in SELECTION_RULES})


def score_study(study):
    """Score and select all models of a study.

    Returns:
        robustness.csv as a DataFrame, and {SHA-256: weights file}.
    """
    samples = read_samples(study)
    attacks = [attack for attack in ATTACKS if f"{attack} test" in samples]
    models = models_to_score(study, {a: samples[f"{a} test"].sha256 for a in attacks})
    parts = samples | clean_parts(study)
    scores = Scores(study.folder / "scores.h5")
    for name, part in parts.items():
        scores.define(name, part.index, part.sha256)

    seen = {p: parts[p] for p in ("clean selection", *(f"{a} validation" for a in attacks))}
    score_models(study, models, dict.fromkeys(models["sha256"], seen), scores, "score all models")
    validation = [
        [empirical_robustness(scores, model, attack, "validation") for attack in attacks]
        for model in models["sha256"]
    ]
    models["robustness"] = np.nanmean(validation, axis=1)
    models["selection_accuracy"] = [scores.percent(m, "clean selection") for m in models["sha256"]]
    models[[*SELECTION_RULES]] = select(models)

    chosen = models[models[[*SELECTION_RULES]].any(axis=1)]
    reported = {
        digest: {"clean reporting": parts["clean reporting"]} for digest in chosen["sha256"]
    }
    for row in chosen.itertuples():
        names = [f"{attack} {split}" for attack in attacks for split in unseen_splits(row.method)]
        reported[row.sha256] |= {name: parts[name] for name in names}
    score_models(study, chosen, reported, scores, "score selected models")
    weights = dict(zip(models["sha256"], models["path"], strict=True))
    return robustness_rows(models, attacks, scores), weights


def robustness_rows(models, attacks, scores):
    """robustness.csv as a DataFrame: a row for each model, attack and split.

    The splits are "validation" and, for selected models, "test".
    """
    rows = []
    for model in models.to_dict("records"):
        digest = model["sha256"]
        is_reported = any(model[rule] for rule in SELECTION_RULES)
        for attack in attacks:
            for split in ["validation", "test"] if is_reported else ["validation"]:
                measured = {
                    "attack": attack,
                    "split": split,
                    "n": len(scores.index[f"{attack} {split}"]),
                    "empirical_robustness": empirical_robustness(scores, digest, attack, split),
                    # Only selected models are reported, even if others were once.
                    "test_accuracy": scores.percent(digest, "clean reporting")
                    if is_reported
                    else np.nan,
                }
                rows.append(model | measured)
    return pd.DataFrame(rows)[COLUMNS].round(dict.fromkeys(PERCENT, 4))


def selected_models(table, rule):
    """The models that a rule selected, as the terminal shows them: a column for each attack."""
    chosen = table[table[rule] & (table["split"] == "test")]
    keys = ["method", "per", "choose_layer", "batches", "lr_rate", "run", "epoch", "test_accuracy"]
    wide = chosen.groupby([*keys, "attack"], dropna=False, sort=False)["empirical_robustness"]
    wide = wide.first().unstack("attack")
    return wide.assign(mean=wide.mean(axis=1)).round(1).reset_index()
