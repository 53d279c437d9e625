"""The recorded runs that tables, verdict and report are made from, also image by image."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.scores import Scores
from train import params
from train.artifacts import data_info, require
from train.flags import UserError

PAPER = Path(__file__).resolve().parents[1] / "paper"
KEYS = ["dataset", "model"]
LOSS_ALLOWED = 1.0  # points of clean accuracy that a model of selected_within_1 may lose
RULES = {
    "selected_within_1": "the most robust epoch that loses at most 1 point of clean accuracy",
    "selected": "the most robust epoch, whatever clean accuracy it loses",
}
# What is one model for all runs: paired with every run of DARE.
WITHOUT_RUNS = ("original", "control-checkpoint", "control-swa", "control-seed")
FAMILIES = ("original", "dare", "ablations of dare", "adversarial training", "controls")


def family(method):
    """The family in FAMILIES of a method; another slice or layer of DARE is still `dare`."""
    if method.startswith("control-"):
        return "controls"
    if method.startswith("at-"):
        return "adversarial training"
    if method.startswith("dare-"):
        return "ablations of dare"
    return "dare" if method.startswith("dare") else "original"


def methods_in_order(names):
    return sorted(set(names), key=lambda name: (FAMILIES.index(family(name)), name))


def label_rows(rows):
    """Names of the methods of robustness.csv: "dare" is the default setting, others say theirs.

    The defaults are in train/params.py: "dare per 0.5", "control-self at conv2". dare-last has a
    layer of its own.
    """
    pairs = set(zip(rows["dataset"], rows["model"], strict=True))
    default = {pair: params.layer_of(pair[1], has_small_images(pair[0])) for pair in pairs}

    def name(dataset, model, method, per, layer, batches):
        usual, last = default[dataset, model], method == "dare-last"
        if not pd.isna(per) and not np.isclose(per, params.per):
            method += f" per {per:g}"
        if usual and isinstance(layer, str) and layer != usual and not last:
            method += f" at {layer}"
        return method if pd.isna(batches) or batches == 1 else f"{method} batches {batches:g}"

    columns = [*KEYS, "method", "per", "choose_layer", "batches"]
    return [name(*row) for row in rows[columns].itertuples(index=False)]


def has_small_images(dataset):
    """Whether a data set's images have less than 32 pixels, by its info.json or train/params.py."""
    shape = data_info(dataset).get("shape")
    return params.is_small_image(shape) if shape else dataset in params.small_images


class RecordedRuns:
    """What was recorded of the studies in some folders.

    rows: robustness.csv of all of them, with the columns `folder`, `label` (method and setting),
    `change` (clean accuracy minus the original's, points). chosen: {rule: the rows of the test
    part that the rule of this name selected}.
    """

    def __init__(self, folders):
        self.folders, self.read = {folder.name: folder for folder in folders}, {}
        tables = [
            pd.read_csv(f / "robustness.csv", dtype={"sha256": str}).assign(folder=f.name)
            for f in folders
        ]
        rows = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
        for column in ("per", "choose_layer", "batches", "lr_rate"):
            rows[column] = rows.get(column, np.nan)
        for rule in RULES:
            rows[rule] = rows[rule].fillna(False).astype(bool)
        original = rows[rows["method"] == "original"].groupby("folder")["test_accuracy"].first()
        rows["label"] = label_rows(rows)
        rows["change"] = rows["test_accuracy"] - rows["folder"].map(original)
        self.rows = rows
        tested = rows[rows["split"] == "test"]
        self.chosen = {rule: tested[tested[rule]] for rule in RULES}

    def compared(self):
        """The rows of the models that verdict and figures compare, one set for every run.

        Those within 1 point of clean accuracy, by the selection half; a run that has none is
        judged by its most robust epoch. Where DARE has none in any run, so are all others: both
        sides of a difference may lose as much.
        """
        within, highest = (self.chosen[rule] for rule in ("selected_within_1", "selected"))
        of_dare = [networks_of(table[table["label"] == "dare"]) for table in (highest, within)]
        for network in set(of_dare[0]) - set(of_dare[1]):
            within = within.drop(of_network(within, *network).index)
        has_one = set(within[["folder", "label", "run"]].itertuples(index=False, name=None))
        keys = highest[["folder", "label", "run"]].itertuples(index=False, name=None)
        return pd.concat([within, highest[[key not in has_one for key in keys]]])

    def networks(self):
        """[(dataset, model)] of the rows."""
        return networks_of(self.rows)

    def attacks(self, dataset, model):
        """The attacks whose samples all studies of a network share."""
        here = of_network(self.rows, dataset, model)
        here = here[(here["split"] == "test") & (here["n"] > 0)]
        found = here.groupby("attack")["folder"].nunique()
        return [a for a in ATTACKS if found.get(a, 0) == here["folder"].nunique()]

    def scores(self, folder):
        if folder not in self.read:
            path = require(self.folders[folder] / "scores.h5", "python dare/test.py")
            self.read[folder] = Scores(path)
        return self.read[folder]

    def right_on(self, folder, digest, part):
        """Right or wrong on one part of scores.h5, bool (n,)."""
        scores = self.scores(folder)
        if scores.missing(digest, [part]):
            raise UserError(
                f"{scores.path} lacks a model that {folder}/robustness.csv lists: score again "
                f"with `python dare/test.py`."
            )
        return scores.right(digest, part)

    def right(self, folder, digest, attacks):
        """Right (1) or wrong (0) on the test part of the samples, float (images, attacks).

        A row is an image that any of the attacks made a sample of; NaN where another did not.
        """
        parts = [f"{attack} test" for attack in attacks]
        index = [self.scores(folder).index[part] for part in parts]
        images = np.unique(np.concatenate(index))
        table = np.full((len(images), len(attacks)), np.nan)
        for column, (part, rows) in enumerate(zip(parts, index, strict=True)):
            where = np.searchsorted(images, rows)
            table[where, column] = self.right_on(folder, digest, part)
        return table

    def clean(self, folder, digest):
        """Right (1) or wrong (0) on the reporting half of the test images, float (images, 1)."""
        return self.right_on(folder, digest, "clean reporting")[:, None].astype(float)

    def reader(self, attacks):
        """`right` of these attacks, as `paired` calls it."""
        return lambda folder, digest: self.right(folder, digest, attacks)

    def adaptive(self, folder, digest):
        """Robust (1) or not against the worst of the Linf attacks, float (images, epsilons).

        Every epsilon above 0. An image on which no attack could start is not counted as robust.
        None where the model was not attacked itself.
        """
        path = self.folders[folder] / "adaptive.h5"
        if not path.exists():
            return None
        with h5py.File(path, "r") as file:
            if f"{digest}/linf/worst" not in file:
                return None
            worst = file[digest]["linf"]["worst"]
            sizes = sorted((name for name in worst if float(name) > 0), key=float)
            return np.stack([worst[name][()] == 1 for name in sizes], axis=1).astype(float)


def networks_of(rows):
    """[(dataset, model)] of some rows, each once."""
    return list(rows[KEYS].drop_duplicates().itertuples(index=False, name=None))


def of_network(rows, dataset, model):
    return rows[(rows["dataset"] == dataset) & (rows["model"] == model)]


def models_of(chosen, label):
    """{folder: {run: SHA-256 of the weights}} of a method's selected models."""
    models = chosen[chosen["label"] == label].drop_duplicates(["folder", "run"])
    found = {}
    for row in models.itertuples():
        found.setdefault(row.folder, {})[row.run] = row.sha256
    return found


def paired(first, second, read, shared=False):
    """Image by image results of two methods, run by run.

    first, second: of models_of. read: (folder, digest) -> (images, columns), or None. shared:
    the second has one model for all runs.

    Returns two lists of (runs, images, columns), one of each source model that has both.
    """
    results = [], []
    for folder, runs in first.items():
        others = second.get(folder, {})
        one = next(iter(others.values()), None) if shared else None
        pairs = [(digest, others.get(run, one)) for run, digest in runs.items()]
        read_pairs = [[read(folder, d) for d in pair] for pair in pairs if pair[1] is not None]
        whole = [pair for pair in read_pairs if pair[0] is not None and pair[1] is not None]
        if whole:
            for side, values in zip(results, zip(*whole, strict=True), strict=True):
                side.append(np.stack(values))
    return results


def paper_runs():
    """The nine runs of every cell of the TOSEM paper, with the columns of `RecordedRuns.chosen`."""
    runs = pd.read_csv(PAPER / "robustness.csv").rename(columns={"group": "source"})
    accuracy = paper_accuracy().rename("test_accuracy").reset_index()
    original = accuracy[accuracy["method"] == "original"].set_index(KEYS)["test_accuracy"]
    runs = runs.merge(accuracy, on=[*KEYS, "method"], how="left")
    of_original = pd.MultiIndex.from_frame(runs[KEYS]).map(original)
    return runs.assign(
        label=runs["method"], folder=runs["source"], change=runs["test_accuracy"] - of_original
    )


def paper_accuracy():
    """The paper's clean accuracy in %, by dataset, model and method."""
    table = pd.read_csv(PAPER / "accuracy.csv").set_index([*KEYS, "method"])
    return 100 * table["test_accuracy"]
