"""The configuration of the Snakefile: text of --config as values, and checked by the schema."""

import json
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError

from dare.workflow.methods import CONTROLS
from train import params

SCHEMA = yaml.safe_load(Path(__file__).with_name("schema.yaml").read_text())
KEYS = SCHEMA["properties"]


def checked(config):
    """The configuration with every value as the schema wants it.

    Raises WorkflowError, one sentence, for an unknown key, for a wrong value and for a network
    whose layer to tune at nobody named.
    """
    if unknown := sorted(set(config) - set(KEYS)):
        raise WorkflowError(f"--config {unknown[0]} is unknown: choose from {', '.join(KEYS)}.")
    config = {key: typed(value, KEYS[key]["type"]) for key, value in config.items()}
    for error in Draft202012Validator(SCHEMA).iter_errors(config):
        wanted = KEYS[error.path[0]]["description"]
        raise WorkflowError(
            f"--config {error.path[0]} is {error.instance!r}, but it takes {wanted}."
        )
    for model in config["model"]:
        if not config["choose_layer"] and not params.layer_of(model, small=False):
            raise WorkflowError(
                f"--config model={model} has no chosen layer: choose from "
                f"{', '.join(params.chosen_layer)}, or add yours to train/params.py."
            )
    source = config["source"] and str(Path(config["source"]).absolute())
    return config | {"methods": methods(config), "source": source}


def methods(config):
    """Every method that is asked for: `at` is one for each attack, `controls` are all controls."""
    groups = {
        "at": [f"at-{attack}" for attack in config["attacks"]],
        "controls": [f"control-{name}" for name in CONTROLS],
    }
    asked = (method for name in config["methods"] for method in groups.get(name, [name]))
    return list(dict.fromkeys(asked))


def typed(value, kind):
    """A value of the schema's type `kind`, where text stands for a list, a number, true or null.

    Null in a list is dropped: a list of nothing else is empty.
    """
    if kind == "array":
        value = value.split(",") if isinstance(value, str) else value
        values = value if isinstance(value, list) else [value]
        return [v for v in (typed(v, None) for v in values) if v is not None]
    try:
        return json.loads(str(value).lower())
    except ValueError:
        return value
