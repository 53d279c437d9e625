"""The recorded runs of some studies, from which all tables and figures are made.

Methods are compared by their settings. Their labels, such as "dare per 0.5", are for display.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.scores import SELECTION_RULES, Scores
from dare.methods import FAMILIES, METHODS, family, unseen_splits
from train import params
from train.shared.artifacts import open_artifact, require
from train.shared.flags import UserError, command_of

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "dare" / "paper"
NETWORK = ["dataset", "model"]
TEXTS = dict.fromkeys((*NETWORK, "sha256"), str)  # for read_csv: a data set may be named "2024"
CHANGES = {"change": "test_accuracy", "selection_change": "selection_accuracy"}
SETTING = ("per", "choose_layer")  # the settings in which two methods must agree
TABLE_RULES = {
    "selected_within_1": "the most robust epoch that loses at most 1 point of clean accuracy",
    "selected": "the most robust epoch, whatever clean accuracy it loses",
}

# ----------------------------------------------------------------------------- settings and labels


def setting_text(row):
    """What a row's per and choose_layer are, if not the defaults: "per 0.5 at conv4".

    Settings that the method does not have, or decides itself, are left out. The default layer of
    each network counts as the same setting.
    """
    parts = []
    settings = METHODS[row.method].settings
    if "per" in settings and not pd.isna(row.per) and not np.isclose(row.per, params.per):
        parts.append(f"per {row.per:g}")
    if "choose_layer" in settings and isinstance(row.choose_layer, str):
        default = params.choose_layer or params.default_layer(row.dataset, row.model)
        if default and row.choose_layer != default:
            parts.append(f"at {row.choose_layer}")
    return " ".join(parts)


def label(row):
    """The name of a method in tables and figures: "dare", "dare per 0.5", "dare batches 5"."""
    parts = [row.method, setting_text(row)]
    if not pd.isna(row.batches) and "batches" not in METHODS[row.method].fixed:
        parts.append(f"batches {row.batches:g}")
    return " ".join(part for part in parts if part)


def with_labels(rows):
    """Rows of robustness.csv or adaptive.csv with the columns `label` and `setting`."""
    columns = [*NETWORK, "method", *SETTING, "batches"]
    named = list(rows[columns].itertuples(index=False))
    texts = {row: (label(row), setting_text(row)) for row in set(named)}
    return rows.assign(
        label=[texts[row][0] for row in named], setting=[texts[row][1] for row in named]
    )


def labels_in_order(rows):
    """The labels of some rows, in the order of the tables: by family, then by name."""
    methods = rows.drop_duplicates("label").set_index("label")["method"]
    return sorted(methods.index, key=lambda name: (FAMILIES.index(family(methods[name])), name))


@dataclass(frozen=True)
class DareSetting:
    """A setting at which DARE was run in a network; `text` is the same in all networks."""

    text: str
    per: float
    choose_layer: str

    def matches(self, rows):
        """Which rows match this setting, ignoring settings that their method does not have."""
        is_match = pd.Series(True, rows.index)
        for column in SETTING:
            with_column = [name for name, m in METHODS.items() if column in m.settings]
            is_equal = rows[column] == getattr(self, column)
            is_match &= is_equal | ~rows["method"].isin(with_column)
        return is_match


# ------------------------------------------------------------------------------------ the records


class RecordedRuns:
    """What was recorded of the studies in some folders.

    rows: robustness.csv of all of them, with the columns `folder`, `label`, `setting`, and `change`
        (clean accuracy minus the original's, in points) and `selection_change` (the same on the
        selection half).
    chosen: {rule: the rows of the test part that the rule selected}.
    """

    def __init__(self, folders):
        self.folders = {folder.name: folder for folder in folders}
        self.scores_of = {}
        tables = [
            pd.read_csv(f / "robustness.csv", converters=TEXTS).assign(folder=f.name)
            for f in folders
        ]
        rows = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
        for column in ("per", "choose_layer", "batches", "lr_rate"):
            rows[column] = rows.get(column, np.nan)
        for rule in SELECTION_RULES:  # earlier versions had no last_epoch
            rows[rule] = rows.get(rule, pd.Series(False, rows.index)).fillna(False).astype(bool)
        original = rows[rows["method"] == "original"].groupby("folder").first()
        for change, accuracy in CHANGES.items():
            rows[change] = rows[accuracy] - rows["folder"].map(original[accuracy])
        self.rows = with_labels(rows)
        tested = self.rows[self.rows["split"] == "test"]
        self.chosen = {rule: tested[tested[rule]] for rule in SELECTION_RULES}

    def networks(self):
        """[(dataset, model)] of the rows."""
        return list(self.rows[NETWORK].drop_duplicates().itertuples(index=False, name=None))

    def settings(self, dataset, model):
        """The DareSettings at which DARE was run in a network, the default first."""
        rows = dare_rows(of_network(self.chosen["selected"], dataset, model))
        rows = rows.drop_duplicates("setting").sort_values("setting")
        return [DareSetting(row.setting, row.per, row.choose_layer) for row in rows.itertuples()]

    def compared(self, dataset, model, setting=None):
        """The rows of a network's models that are compared, one set for every run.

        The selected ones that lose at most 1 point of clean accuracy. A run that has none is
        compared at its most robust epoch. If DARE has none in any run, every method is compared at
        its most robust epoch, so that none is held to a stricter limit.

        setting: DareSetting of all methods; None: all settings.
        """
        within, highest = (of_network(self.chosen[rule], dataset, model) for rule in TABLE_RULES)
        if setting is not None:
            within = within[setting.matches(within)]
            highest = highest[setting.matches(highest)]
            if dare_rows(within).empty:
                within = within[:0]
        run = ["folder", "label", "run"]
        has_one = set(within[run].itertuples(index=False, name=None))
        is_other = [key not in has_one for key in highest[run].itertuples(index=False, name=None)]
        return pd.concat([within, highest[is_other]])

    @functools.cached_property
    def all_compared(self):
        """The compared rows of all networks and settings."""
        tables = [
            self.compared(*network, setting)
            for network in self.networks()
            for setting in [*self.settings(*network), None]
        ]
        # A method that lacks a setting is compared at each of them. The last table of a network
        # adds the models at whose setting DARE was not run.
        return pd.concat(tables).drop_duplicates(["folder", "label", "run", "attack"])

    def attacks(self, dataset, model):
        """The attacks whose samples all studies of a network have."""
        rows = of_network(self.rows, dataset, model)
        tested = rows[(rows["split"] == "test") & (rows["n"] > 0)]
        studies = tested.groupby("attack")["folder"].nunique()
        return [a for a in ATTACKS if studies.get(a, 0) == rows["folder"].nunique()]

    # ------------------------------------------------------------------------- image by image

    def scores(self, folder):
        if folder not in self.scores_of:
            path = require(self.folders[folder] / "scores.h5", command_of("dare/test.py"))
            self.scores_of[folder] = Scores(path)
        return self.scores_of[folder]

    def share_test_images(self, dataset, model):
        """Whether all studies of a network were scored on the same clean images."""
        part = "clean reporting"
        folders = of_network(self.rows, dataset, model)["folder"].unique()
        scores = [self.scores(folder) for folder in folders]
        return len({(s.made_from.get(part), s.index[part].tobytes()) for s in scores}) == 1

    def right_on(self, folder, digest, part):
        """Which images of a part a model gets right, bool (n,)."""
        scores = self.scores(folder)
        if scores.missing(digest, [part]):
            raise UserError(
                f"{scores.path} lacks a model that {folder}/robustness.csv lists: score again "
                f"with `{command_of('dare/test.py')}`."
            )
        return scores.right(digest, part)

    def right(self, folder, digest, attacks, splits=("test",)):
        """Right (1) or wrong (0) on some splits of the samples, float (images, attacks).

        A row is an image of which any of the attacks made a sample; NaN where another did not.
        """
        index_of, columns = self.scores(folder).index, []
        for attack in attacks:
            parts = [f"{attack} {split}" for split in splits]
            index = np.concatenate([index_of[part] for part in parts])
            right = np.concatenate([self.right_on(folder, digest, part) for part in parts])
            columns.append(pd.Series(right.astype(float), index))
        return pd.concat(columns, axis=1).sort_index().to_numpy()

    def clean(self, folder, digest):
        """Right (1) or wrong (0) on the reporting half of the test images, float (images, 1)."""
        return self.right_on(folder, digest, "clean reporting")[:, None].astype(float)

    def right_under(self, attacks, *methods):
        """`right` on all samples that the methods have not seen, as `paired` calls it.

        Results of earlier versions have scores on the test part only.
        """

        def read(folder, digest):
            if not attacks:
                return None
            parts = self.scores(folder).index
            splits = [s for s in unseen_splits(*methods) if f"{attacks[0]} {s}" in parts]
            return self.right(folder, digest, attacks, splits)

        return read

    def adaptive(self, folder, digest):
        """Robust (1) or not against the worst of the Linf attacks, float (images, epsilons).

        For every epsilon above 0. An image on which an attack could not start, and none
        succeeded, does not count as robust. None if the model was not attacked itself.
        """
        path = self.folders[folder] / "adaptive.h5"
        if not path.exists():
            return None
        with open_artifact(path, command_of("dare/test.py --adaptive")) as file:
            if f"{digest}/linf/worst" not in file:
                return None
            worst = file[digest]["linf"]["worst"]
            sizes = sorted((name for name in worst if float(name) > 0), key=float)
            return np.stack([worst[name][()] == 1 for name in sizes], axis=1).astype(float)


def of_network(rows, dataset, model):
    return rows[(rows["dataset"] == dataset) & (rows["model"] == model)]


def dare_rows(rows):
    """The rows of DARE as it is compared. With `batches` it counts as another method."""
    return rows[(rows["method"] == "dare") & rows["batches"].isna()]


def models_of(rows):
    """{folder: {run: SHA-256 of the weights}} of the models in some rows."""
    models = {}
    for row in rows.drop_duplicates(["folder", "run"]).itertuples():
        models.setdefault(row.folder, {})[row.run] = row.sha256
    return models


def paired(first, second, read):
    """Results of two methods image by image, run by run.

    Args:
        first, second: rows of each method. If the second has no runs, its one model of a source
            model is paired with every run of the first.
        read: function (folder, digest) -> (images, columns), or None.

    Returns:
        Two lists of (runs, images, columns), one array for each source model that has both.
    """
    has_runs = second.empty or METHODS[second["method"].iloc[0]].has_runs
    firsts, seconds = [], []
    second_models = models_of(second)
    for folder, runs in models_of(first).items():
        others = second_models.get(folder, {})
        if not has_runs:
            others = dict.fromkeys(runs, next(iter(others.values()), None))
        pairs = [(read(folder, runs[r]), read(folder, others[r])) for r in runs if others.get(r)]
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        if pairs:
            firsts.append(np.stack([a for a, _ in pairs]))
            seconds.append(np.stack([b for _, b in pairs]))
    return firsts, seconds


# ------------------------------------------------------------------------------ the paper, the logs


def paper_runs():
    """All runs of the TOSEM paper, nine per table entry, with RecordedRuns.chosen's columns."""
    runs = pd.read_csv(PAPER / "robustness.csv").rename(columns={"group": "source"})
    accuracy = paper_accuracy().rename("test_accuracy").reset_index()
    original = accuracy[accuracy["method"] == "original"].set_index(NETWORK)["test_accuracy"]
    runs = runs.merge(accuracy, on=[*NETWORK, "method"], how="left")
    of_original = pd.MultiIndex.from_frame(runs[NETWORK]).map(original)
    return runs.assign(
        label=runs["method"],
        setting="",
        batches=np.nan,
        folder=runs["source"],
        change=runs["test_accuracy"] - of_original,
    )


def paper_accuracy():
    """The paper's clean accuracy in %, by dataset, model and method."""
    table = pd.read_csv(PAPER / "accuracy.csv").set_index([*NETWORK, "method"])
    return 100 * table["test_accuracy"]


def commands(folder, versions=False):
    """The recorded commands of a study: the last run of each stage that had something to do.

    versions: also settings, package versions and device.
    """
    if (folder / "commands.csv").exists():  # in dare/results
        table = pd.read_csv(folder / "commands.csv", dtype=str)
        return table if versions else table[["stage", "command", "start", "seconds", "memory (GB)"]]
    last = {}
    for path in sorted(folder.glob("**/*.log")):
        done = [
            entry
            for entry in map(json.loads, path.read_text().splitlines())
            if entry.get("ended") == "done"
        ]
        last |= {(path, entry["stage"]): entry for entry in done}
    rows = []
    for entry in sorted(last.values(), key=lambda entry: entry["start"]):
        row = {"stage": entry["stage"], "command": command_line(entry), "start": entry["start"]}
        row["seconds"] = f"{entry['seconds']:g}"
        memory = entry.get("peak_memory_gb")  # null where the system does not say
        row["memory (GB)"] = "" if memory is None else f"{memory:g}"
        if versions:
            row |= entry["settings"] | entry["packages"] | {"device": entry["device"]}
        rows.append(row)
    return pd.DataFrame(rows)


def command_line(entry):
    """The command of a log entry, with its script as folder/name, wherever the repository was."""
    script, *flags = entry["command"]
    return " ".join(["python", "/".join(Path(script).parts[-2:]), *flags])
