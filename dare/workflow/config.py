"""The configuration of the Snakefile: from text to values, checked by schema.yaml."""

import contextlib
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import yaml
from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError

from adv import ATTACKS
from dare.methods import CONTROLS, METHODS
from data.official import OFFICIAL
from train import params
from train.shared.artifacts import data_info
from train.shared.flags import FOLDER_NAME, PLAIN_NAME
from train.shared.paths import epochs_in, study_folder

SCHEMA = yaml.safe_load(Path(__file__).with_name("schema.yaml").read_text())
PROPERTIES = SCHEMA["properties"]
TUNED = [name for name, method in METHODS.items() if method.script]
METHOD_NAMES = [*TUNED, "controls", "at"]  # the last two stand for several
NAMES = {
    "attacks": ATTACKS,
    "heldout_attacks": ATTACKS,
    "methods": METHOD_NAMES,
    "adaptive_methods": list(METHODS),
}
for key, names in NAMES.items():
    PROPERTIES[key]["items"] = {"enum": list(names)}
    PROPERTIES[key]["description"] = f"{key} among {', '.join(names)}, each once"
FOLDERS = {
    "dataset": "names of data sets, each a",
    "model": "names of networks, each a",
    "record": "null, or a",
}
for key, wanted in FOLDERS.items():
    PROPERTIES[key].get("items", PROPERTIES[key])["pattern"] = rf"\A{FOLDER_NAME}\Z"
    PROPERTIES[key]["description"] = f"{wanted} {PLAIN_NAME}"


def checked(config):
    """The configuration with every value as the schema wants it.

    Raises WorkflowError, one sentence, for an unknown key, for a wrong value, for a network without
    a chosen layer, and for fewer epochs than a network was trained for.
    """
    if unknown := sorted(set(config) - set(PROPERTIES)):
        raise WorkflowError(
            f"--config {unknown[0]} is unknown: choose from {', '.join(PROPERTIES)}."
        )
    config = {key: typed(value, PROPERTIES[key]) for key, value in config.items()}
    for error in Draft202012Validator(SCHEMA).iter_errors(config):
        key = error.path[0]
        wanted = PROPERTIES[key]["description"]
        raise WorkflowError(f"--config {key} is {error.instance!r}, but it takes {wanted}.")
    refuse_unknown_layers(config)
    config["methods"] = methods_of(config)
    refuse_fewer_epochs(config)
    return config | {
        "source": config["source"] and str(Path(config["source"]).expanduser().absolute()),
        "per": config["per"] or typed(params.per, PROPERTIES["per"]),
    }


def refuse_unknown_layers(config):
    """Raise WorkflowError for a network whose chosen layer is not known before it is trained."""
    for dataset, model in product(config["dataset"], config["model"]):
        if model not in params.chosen_layer:
            raise WorkflowError(
                f"--config model={model} has no chosen layer: choose from "
                f"{', '.join(params.chosen_layer)}, or add yours to train/params.py."
            )
        has_size = dataset in OFFICIAL or dataset in params.small_images or data_info(dataset)
        if model in params.chosen_layer_of_small_images and not has_size:
            raise WorkflowError(
                f"--config model={model} has a layer that depends on the size of the images: "
                f"prepare {dataset} with data/prepare.py first."
            )


def refuse_fewer_epochs(config):
    """Raise WorkflowError if a network was trained or tuned for more epochs than are asked for.

    The weights of the smaller number exist, so the workflow would take them for the last ones.
    """
    keys = {name: METHODS[name].epochs for name in config["methods"]}
    for names in product(config["dataset"], config["model"], training_seeds(config)):
        folder = study_folder(*names)
        made = {folder / "checkpoints": "epochs"}
        made |= {path: keys.get(path.name.split("_")[0]) for path in folder.glob("tuned/*")}
        for path, key in made.items():
            wanted = config.get(key, np.inf)
            if (found := max(epochs_in(path), default=0)) > wanted:
                raise WorkflowError(
                    f"--config {key}={wanted}, but {path} has {found} epochs: ask for {found}, or "
                    f"move it away."
                )


def refuse_unwritable(home):
    """Raise WorkflowError if Snakemake and the steps cannot write to this folder."""
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    for folder in home, *home.glob(".snakemake"):
        if not os.access(folder, os.W_OK):
            raise WorkflowError(
                f"{folder} cannot be written: change its permissions, or set DARE_HOME to a folder "
                f"of your own."
            )


def training_seeds(config):
    """The seeds of all networks to train: those of the studies and those of control-seed."""
    return list(dict.fromkeys([*config["seeds"], *config["control_seeds"]]))


def methods_of(config):
    """Every method that the configuration asks for, each once."""
    groups = {
        "at": [f"at-{attack}" for attack in config["attacks"]],
        "controls": [f"control-{name}" for name in CONTROLS],
    }
    names = [name for asked in config["methods"] for name in groups.get(asked, [asked])]
    return list(dict.fromkeys(names))


def typed(value, schema):
    """A value in the type that its schema asks for, from text for a list, a number, true or null.

    Null in a list is dropped, so that a list of nothing else is empty; but "null" may be a name.
    """
    kinds = schema.get("type", ())
    if kinds == "array":
        value = value.split(",") if isinstance(value, str) else value
        values = value if isinstance(value, list) else [value]
        return [v for v in (typed(v, schema["items"]) for v in values) if v is not None]
    text = str(value)
    if value is None or (text.lower() == "null" and kinds != "string"):
        return None
    if "string" in kinds:
        return text
    try:
        return json.loads(text.lower())
    except ValueError:
        return value
