"""Score the original and every tuned model of a network. Called by dare/test.py.

Every epoch is scored on the samples of the split "validation", for the rule `best`; the models that
a rule marks are scored on everything: all samples that they were not tuned on, held-out samples,
and the reporting half of the test images. All splits are of attacked images of x_train, which have
nothing to do with x_validation, the images that are mined.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.results import SPLITS
from dare.evaluation.scores import Scores
from dare.methods import METHODS, unseen_splits
from train.shared.artifacts import attributes, data_sha256, sha256
from train.shared.checkpoints import load_weights
from train.shared.flags import UserError
from train.shared.log import progress
from train.shared.paths import epochs_in, samples_path, tuned_name, weights_path
from train.utils import halves_of_test, predict

HELDOUT = "heldout"  # the split of samples that are made from test images

# One method with these settings is one row of the tables; its epochs and rates are what the rule
# `best` chooses from.
METHOD = ["method", "run", "per", "choose_layer", "batches"]
MODEL = ["dataset", "model", "source", "run", "seed", "method", "lr_rate", "epoch"]
MEASURED = ["attack", "split", "n", "empirical_robustness", "test_accuracy"]
# Of robustness.csv. A row of control-seed is another seed's final model; epoch holds that seed.
COLUMNS = [*MODEL, *MEASURED, "last", "best", "per", "choose_layer", "batches"]
COLUMNS += ["is_original", "sha256"]  # a control that cannot differ from it; of the weights


@dataclass
class Part:
    """Images that models are scored on.

    images: (n, h, w, c). labels: int (n,). index: int (n,), into x_train or x_test.
    sha256: of the file that they come from.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    sha256: str


def score_study(study):
    """Score all models of a study; returns robustness.csv as a DataFrame, and {SHA-256: path}."""
    parts = read_samples(study) | held_out_samples(study)
    attacks = [a for a in ATTACKS if f"{a} test" in parts]
    models = models_to_score(study, {a: parts[f"{a} test"].sha256 for a in attacks})
    parts["clean reporting"] = clean_part(study)
    scores_path = study.folder / "scores.h5"
    scores = Scores.read(scores_path)
    scores.keep(parts)
    for name, part in parts.items():
        scores.define(name, part.index, part.sha256)
    scores.save(scores_path)  # without those of samples that are gone
    validation = [f"{attack} validation" for attack in attacks]
    paths = dict(zip(models["sha256"], models["path"], strict=True))
    score_models(study, paths, dict.fromkeys(paths, validation), parts, scores, scores_path)
    models["robustness"] = [
        np.nanmean([scores.percent(m, part) for part in validation]) for m in models["sha256"]
    ]
    models = models.join(mark_last_and_best(models))
    marked = models[models["last"] | models["best"]]
    wanted = {
        row.sha256: [n for n in parts if n.split()[1] in splits_of(row.method)]
        for row in marked.itertuples()
    }
    score_models(study, paths, wanted, parts, scores, scores_path)
    return robustness_rows(marked, parts, scores), paths


def splits_of(method):
    """The splits on which a marked model is scored."""
    return (*unseen_splits(method), HELDOUT, "reporting")


def mark_last_and_best(models):
    """The columns `last` and `best` of robustness.csv, bool (models,).

    last: the last epoch of every method at every setting and rate, and every other training seed.
    The tables compare those that dare.evaluation.results.own_settings names.
    best: the epoch and rate with the highest mean over attacks on the validation samples.

    models: DataFrame with the columns METHOD, lr_rate, epoch and robustness.
    """
    epochs = models.groupby([*METHOD, "lr_rate"], dropna=False)["epoch"].transform("max")
    best = models.groupby(METHOD, dropna=False)["robustness"].idxmax()
    is_last = models["epoch"].eq(epochs) | models["method"].eq("control-seed")
    return pd.DataFrame({"last": is_last, "best": models.index.isin(best)})


def empirical_robustness(scores, model, attack, split):
    """The paper's metric: accuracy in % on an attack's adversarial examples for the original.

    scores: Scores of the samples in `read_samples`, which keeps the successful ones only.
    model: SHA-256 of its weights. split: one of SPLITS, or HELDOUT.
    """
    return scores.percent(model, f"{attack} {split}")


def robustness_rows(models, parts, scores):
    """robustness.csv as a DataFrame: a row for each marked model, attack and split."""
    rows = []
    for model in models.to_dict("records"):
        digest = model["sha256"]
        accuracy = scores.percent(digest, "clean reporting")
        for name, part in parts.items():
            attack, split = name.split()
            if attack != "clean" and split in splits_of(model["method"]):
                robustness = empirical_robustness(scores, digest, attack, split)
                measured = [attack, split, len(part.index), robustness, accuracy]
                rows.append(model | dict(zip(MEASURED, measured, strict=True)))
    return pd.DataFrame(rows)[COLUMNS].round({"empirical_robustness": 4, "test_accuracy": 4})


# -------------------------------------------------------------------------------- images to score


def read_samples(study):
    """{"<attack> <split>": Part} of the successful samples of all attacks, for SPLITS.

    Raises UserError if there are none, or if two attacks are not on the same images and splits.
    """
    parts, first = {}, None
    for attack in ATTACKS:
        path = samples_path(study.folder, attack)
        if not path.exists():
            continue
        step = study.command("adv/generate_adv.py", attack=attack)
        with study.open_checked(path, step) as file:
            index, split, success = (file[name][()] for name in ("index", "split", "success"))
            first = first or (path, index, split)
            if not (np.array_equal(index, first[1]) and np.array_equal(split, first[2])):
                raise UserError(
                    f"{path} ({len(index)} samples) and {first[0]} ({len(first[1])}) are samples "
                    f"of different images: make all attacks with the same --samples, and on one "
                    f"machine."
                )
            digest = sha256(path)
            for code, name in enumerate(SPLITS):
                parts[f"{attack} {name}"] = successful(file, digest, (split == code) & success)
    if not any(len(part.labels) for name, part in parts.items() if name.endswith("validation")):
        raise UserError(
            f"{study.folder}/adv has no successful sample in the split validation: make more "
            f"samples with `python adv/generate_adv.py`."
        )
    return parts


def held_out_samples(study):
    """{"<attack> heldout": Part} of the samples made from test images, if there are any."""
    parts = {}
    for attack in ATTACKS:
        path = samples_path(study.folder, attack, "test")
        if path.exists():
            step = study.command("adv/generate_adv.py", attack=attack, part="test")
            images = {"test_sha256": data_sha256(study.dataset, "test")}
            with study.open_checked(path, step, **images) as file:
                found = successful(file, sha256(path), file["success"][()])
                parts[f"{attack} {HELDOUT}"] = found
    return parts


def successful(file, digest, chosen):
    """The Part of the chosen samples, bool (n,), of an open samples file; digest: its SHA-256."""
    images, labels, index = (file[name][()][chosen] for name in ("image", "label", "index"))
    return Part(images, labels, index, digest)


def clean_part(study):
    """The reporting half of x_test as a Part."""
    x, y = study.data("test")
    _, rows = halves_of_test(study.dataset, len(y))
    return Part(x[rows], y[rows], rows, data_sha256(study.dataset, "test"))


# -------------------------------------------------------------------------------- models to score


def models_to_score(study, adv_sha256):
    """A row for each model: what identifies it in robustness.csv, its path and its SHA-256.

    adv_sha256: {attack: SHA-256 of its samples file}. Raises UserError if a model was tuned from
    another checkpoint than the study's, or on other samples of an attack.
    """
    final = epochs_in(study.folder / "checkpoints")[-1]
    rows = [{"method": "original", "epoch": final, "path": study.checkpoint}]
    for seed, path in study.other_seeds().items():
        rows.append({"method": "control-seed", "epoch": seed, "path": path})
    for folder in sorted(path for path in (study.folder / "tuned").glob("*") if path.is_dir()):
        for epoch in epochs_in(folder):
            rows.append(tuned_row(study, weights_path(folder, epoch), adv_sha256))
    columns = [*MODEL, "per", "choose_layer", "batches", "is_original", "path"]
    models = pd.DataFrame(rows).reindex(columns=columns)
    return models.assign(
        dataset=study.dataset,
        model=study.model,
        source=f"M{study.seed}",
        seed=study.seed,
        run=models["run"].fillna(0).astype(int),
        is_original=models["is_original"].eq(True),
        sha256=[sha256(path) for path in models["path"]],
    )


def tuned_row(study, path, adv_sha256):
    """The row of a tuned model, from the attributes of its weights file."""
    found = attributes(path)
    checkpoint = study.provenance["checkpoint_sha256"]
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
    is_original = found.get("is_original", False)
    return about | {"epoch": found["epoch"], "is_original": is_original, "path": path}


# --------------------------------------------------------------------------------------- scoring


def score_models(study, paths, wanted, parts, scores, scores_path):
    """Score models on the parts that `scores` lacks, and save it after each.

    paths: {SHA-256 of a model's weights: file}. wanted: {SHA-256: names of parts}.
    """
    todo = [model for model in wanted if not scores.has(model, wanted[model])]
    for model in progress(todo, desc="score", unit="model"):
        classifier = load_weights(study.classifier, paths[model])
        for name in wanted[model]:
            if not scores.has(model, [name]):
                scores.add(model, name, score(classifier, parts[name]))
        scores.save(scores_path)


def score(classifier, part):
    """Which images of a Part a model gets right, bool (n,)."""
    if not len(part.labels):  # an attack without success
        return np.zeros(0, bool)
    return predict(classifier, part.images).argmax(axis=1) == part.labels
