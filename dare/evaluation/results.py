"""The results of some networks as data frames, from models/ or as recorded in dare/results/.

A network with its training seed is a *study*, named as its folder: cifar10_vgg16_seed0. A
network, dataset and model, has all its training seeds.
"""

import contextlib
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.scores import Scores
from dare.methods import FAMILIES, METHODS, default_rate
from train import params
from train.shared.artifacts import attributes, open_hdf5, read_csv
from train.shared.flags import UserError
from train.shared.paths import checkpoint_path, epochs_in

PAPER = Path(__file__).resolve().parents[1] / "paper"
NETWORK = ["dataset", "model"]
SPLITS = ("training", "validation", "test")  # of the samples, by their code in adv/*.h5
SETTINGS = ["batches", "choose_layer", "per", "lr_rate"]
RATES = (*dict.fromkeys(method.rate for method in METHODS.values()),)  # kinds of learning rates

# The tables of a study: a data frame each, and a file of dare/results/<name>/.
TABLES = ("robustness", "adaptive", "networks", "training", "mined", "commands")


class Results:
    """What is known of some studies.

    folder: where the results come from. tables: {name of TABLES: DataFrame}, each with the columns
    study, dataset, model and seed; a table may be empty. scores: {study: Scores}.

    rows: robustness.csv, with the column `change` (clean accuracy minus the original's, in points).
    """

    def __init__(self, folder, tables, scores):
        self.folder = folder
        self.tables = {name: tables.get(name, pd.DataFrame()) for name in TABLES}
        self.scores = scores
        rows = self.tables["robustness"]
        originals = rows[rows["method"] == "original"].groupby("study")["test_accuracy"].first()
        self.rows = rows.assign(change=rows["test_accuracy"] - rows["study"].map(originals))

    @functools.cached_property
    def networks(self):
        """[(dataset, model)], in the paper's order, others after them."""
        found = {*self.rows[NETWORK].drop_duplicates().itertuples(index=False, name=None)}
        return [n for n in paper_networks() if n in found] + sorted(found - {*paper_networks()})

    @functools.cached_property
    def last(self):
        """The rows of the models that are compared: last epochs at their networks' settings."""
        return self.rows[self.rows["last"] & own_settings(self.rows)]

    @functools.cached_property
    def best(self):
        """The rows that stand beside the paper's: the most robust epochs and rates, test part."""
        rows = self.rows[self.rows["best"] & (self.rows["split"] == "test")]
        return rows[own_settings(rows, free=RATES)]

    @functools.cached_property
    def attacked(self):
        """The rows of the models that were attacked themselves."""
        return self.rows[self.rows["sha256"].isin(self.tables["adaptive"].get("sha256", ()))]

    def models(self, rows, method):
        """{study: [SHA-256 of the weights of each run]} of a method in some rows."""
        found = rows[rows["method"] == method].drop_duplicates(["study", "sha256"])
        return found.groupby("study")["sha256"].agg(list).to_dict()

    def right(self, study, models, parts):
        """Right (1) or wrong (0) image by image, the mean over models, as a DataFrame.

        parts: {column: [part, ...]}. A row is an image of any of the parts; NaN where it is in no
        part of a column. None if a model was not scored on all of the parts.
        """
        scores = self.scores.get(study, Scores())
        if not parts or not all(scores.has(m, names) for m in models for names in parts.values()):
            return None

        def of_parts(model, names):
            right = np.concatenate([scores.right(model, name) for name in names])
            return pd.Series(
                right.astype(float), np.concatenate([scores.index[name] for name in names])
            )

        frames = [pd.DataFrame({c: of_parts(m, parts[c]) for c in parts}) for m in models]
        return sum(frames) / len(frames)

    def parts(self, study, kind, splits=SPLITS):
        """The parts that a kind of score is the mean of, as `right` takes them.

        kind: "robustness" (the samples of every attack), "heldout" (those of test images), "clean"
        (the reporting half of the test images) or "adaptive" (the worst case over the attacks on
        each model itself, at every epsilon above 0).
        """
        known = self.scores[study].index if study in self.scores else {}
        if kind == "clean":
            return {"clean": ["clean reporting"]}
        if kind == "adaptive":
            worst = [name for name in known if name.startswith("adaptive worst")]
            return {name: [name] for name in worst if float(name.split()[2]) > 0}
        names = splits if kind == "robustness" else ("heldout",)
        return {a: [f"{a} {s}" for s in names] for a in ATTACKS if f"{a} {names[-1]}" in known}


def own_settings(rows, free=()):
    """Which rows are at the settings at which their network's methods are compared, bool (rows,).

    All methods are compared at one layer, one per and one learning rate: those of train/params.py
    or, if DARE was not run there, the nearest at which it was (of layers, the first by name). A
    method that was not run there is left out. Adversarial training and dare-released have rates of
    their own, chosen likewise. A DARE of single batches is left out, unless it is dare-released.

    rows: with the columns NETWORK, method and SETTINGS. free: names of the settings, of SETTINGS
    or RATES, that may have any value.
    """
    made = rows["method"].map(METHODS)
    values = {n: rows[n].where([n in m.settings for m in made]) for n in ("choose_layer", "per")}
    values |= {rate: rows["lr_rate"].where([m.rate == rate for m in made]) for rate in RATES}
    values = {name: value for name, value in values.items() if name not in free}
    is_own = rows["batches"].isna() | np.array(["batches" in (*m.fixed, *free) for m in made])
    for (dataset, model), index in rows.groupby(NETWORK).groups.items():
        defaults = {"choose_layer": params.default_layer(dataset, model), "per": params.per}
        defaults |= {made.rate: default_rate(name, model) for name, made in METHODS.items()}
        for name, value in values.items():  # NaN where a method does not have the setting
            run = value[index][is_own[index]].dropna()
            of_dare = run[rows.loc[run.index, "method"] == "dare"]
            if len(run):
                own = nearest(of_dare if len(of_dare) else run, defaults[name])
                is_own[index] &= value[index].isna() | (value[index] == own)
    return is_own.to_numpy()


def nearest(values, default):
    """The value of a setting nearest to its default; the smaller of two equally near."""

    def distance(value):
        is_number = not isinstance(value, str)
        return round(abs(np.log(value / default)), 9) if is_number else value != default

    return min(set(values), key=lambda value: (distance(value), value))


def in_order(methods):
    """Names of methods in the order of the tables: by family, then as in METHODS."""
    names = list(METHODS)
    return sorted(set(methods), key=lambda m: (FAMILIES.index(METHODS[m].family), names.index(m)))


def of_network(rows, network):
    """The rows of a network, (dataset, model)."""
    return rows[(rows["dataset"] == network[0]) & (rows["model"] == network[1])]


# ---------------------------------------------------------------------------------- where from


def scored_rows(folder):
    """robustness.csv of a study's folder as a DataFrame."""
    path = folder / "robustness.csv"
    rows = read_csv(path, "python dare/test.py", NETWORK)
    if rows.empty or not {"last", "best", "is_original"} <= set(rows):
        raise UserError(
            f"{path} is of an earlier version or has no rows: score again with "
            f"`python dare/test.py`."
        )
    return rows


def read_recorded(folder, datasets=None, models=None):
    """The results that are recorded in a folder of dare/results, of some data sets and networks."""
    tables, step = {}, f"python dare/tables.py --record {folder.name}"
    for name in TABLES:
        if (path := folder / f"{name}.csv").exists():
            table = read_csv(path, step, ["study", *NETWORK])
            for column, wanted in (("dataset", datasets), ("model", models)):
                table = table[table[column].isin(wanted)] if wanted else table
            tables[name] = table.reset_index(drop=True)
    scores = {}
    if (path := folder / "scores.h5").exists():
        with open_hdf5(path) as file:
            names = set(tables["robustness"]["study"]) & set(file)
            scores = {name: Scores.of_group(file[name]) for name in sorted(names)}
    return Results(folder, tables, scores)


def read_studies(folders):
    """The results of scored studies, {folder: training seed}, such as models/digits_lenet_seed0."""
    tables = {name: [] for name in TABLES}
    for folder, seed in folders.items():
        rows = scored_rows(folder)
        found = {
            "robustness": rows,
            "adaptive": table_of(folder / "adaptive.csv", "python dare/test.py --adaptive"),
            "training": table_of(folder / "log.csv", "python train/train.py"),
            "mined": (mined := mined_epochs(folder)),
            "commands": (commands := commands_of(folder)),
            "networks": network_of(folder, rows, commands, mined),
        }
        about = {"study": folder.name, **rows.iloc[0][NETWORK], "seed": seed}
        for name, table in found.items():
            if table is not None and len(table):
                others = table.drop(columns=[c for c in about if c in table])
                tables[name].append(pd.concat([pd.DataFrame(about, others.index), others], axis=1))
    tables = {
        name: pd.concat([t.dropna(axis=1, how="all") for t in found], ignore_index=True)
        for name, found in tables.items()
        if found
    }
    for column in SETTINGS:
        tables["robustness"][column] = tables["robustness"].get(column, np.nan)
    scores = {folder.name: Scores.read(folder / "scores.h5") for folder in folders}
    return Results(next(iter(folders)).parent, tables, scores)


def table_of(path, step):
    """A table that a study may lack, as read_csv gives it, or None."""
    return read_csv(path, step, ["epoch"]) if path.exists() else None


def network_of(folder, rows, commands, mined):
    """How a network was trained, one row: epochs, images, parameters and mined images, if known.

    commands, mined: of commands_of and mined_epochs.
    """
    row = {"epochs": rows.loc[rows["method"] == "original", "epoch"].max()}
    if {"images", "stage"} <= set(commands):
        images = commands.loc[commands["stage"].str.startswith("train"), "images"].dropna()
        row |= {"images": int(images.iloc[-1])} if len(images) else {}
    if epochs := epochs_in(folder / "checkpoints"):
        sizes = []
        with open_hdf5(checkpoint_path(folder, epochs[-1])) as file:
            file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
        row["parameters"] = int(sum(sizes))
    if mined is not None:
        row["mined"] = mined.groupby("layer")["images"].sum().min()
    return pd.DataFrame([row])


def mined_epochs(folder):
    """How many mined images take their target from each epoch: layer, epoch, images."""
    tables = []
    for path in sorted(folder.glob("ats_*.h5")):
        found = attributes(path)
        if "first" in found:  # not the targets of a control
            with open_hdf5(path) as file:
                epochs, images = np.unique(file["epoch"][()], return_counts=True)
            layer = found["choose_layer"]
            tables.append(pd.DataFrame({"layer": layer, "epoch": epochs, "images": images}))
    return pd.concat(tables) if tables else None


def commands_of(folder):
    """The recorded commands of a study: a row for each stage that had something to do.

    A tuning that was given more epochs has its last command and the sum of the seconds.
    """
    done = {}
    for path in sorted(folder.glob("**/*.log")):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a process was killed as it wrote
                entry = json.loads(line)
                if entry.get("ended") == "done":
                    settings = (entry["settings"].get(name) for name in ("choose_layer", "per"))
                    key = path, entry["stage"], *settings
                    # An attack that was interrupted knows the seconds of its earlier chunks.
                    seconds = max(entry["seconds"], entry.get("attack_seconds", 0))
                    if key in done and path.name == "tune.log":
                        seconds += done[key]["seconds"]
                    done[key] = entry | {"seconds": round(seconds, 1)}
    rows = []
    for entry in sorted(done.values(), key=lambda entry: entry["start"]):
        script, *flags = entry["command"]  # as folder/name, wherever the repository was
        command = " ".join(["python", "/".join(Path(script).parts[-2:]), *flags])
        row = {"stage": entry["stage"], "command": command, "start": entry["start"]}
        row |= {"seconds": entry["seconds"], "device": entry["device"]}
        rows.append(entry["settings"] | entry["packages"] | row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------- the paper's


def paper_networks():
    """[(dataset, model)] of the paper, as its table of networks has them."""
    return list(pd.read_csv(PAPER / "models.csv")[NETWORK].itertuples(index=False, name=None))


def paper_rows():
    """The TOSEM paper's results, nine runs each, with the columns of `Results.rows`."""
    rows = pd.read_csv(PAPER / "robustness.csv").rename(columns={"group": "source"})
    accuracy = pd.read_csv(PAPER / "accuracy.csv").set_index([*NETWORK, "method"])["test_accuracy"]
    clean, original = (
        100 * accuracy.reindex(pd.MultiIndex.from_frame(table)).to_numpy()
        for table in (rows[[*NETWORK, "method"]], rows[NETWORK].assign(method="original"))
    )
    rows = rows.assign(study=rows["source"], test_accuracy=clean, change=clean - original)
    return rows.assign(n=1, sha256="")  # how many samples there were is not known
