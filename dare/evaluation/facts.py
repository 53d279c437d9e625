"""What the warnings and the table of networks need of a study's large files."""

import json

from train.shared.artifacts import open_artifact
from train.shared.flags import command_of
from train.shared.paths import checkpoint_path, epochs_in

FACTS_FILE = "facts.json"  # in dare/results, where the large files are not kept


def facts(folder):
    """Facts of a study, from its recorded facts.json or else from its files.

    Returns {"parameters": number of weights, or None without a checkpoint; "success": {attack:
    share of the images}; "mined": {file of targets: number of mined images}}.
    """
    if (folder / FACTS_FILE).exists():
        return json.loads((folder / FACTS_FILE).read_text())
    return {
        "parameters": parameters(folder),
        "success": {path.stem: success(path) for path in sorted(folder.glob("adv/*.h5"))},
        "mined": dict(filter(None, map(mined, sorted(folder.glob("ats_*.h5"))))),
    }


def parameters(folder):
    """Number of weights of the final checkpoint, or None."""
    epochs = epochs_in(folder / "checkpoints")
    if not epochs:
        return None
    sizes = []
    path = checkpoint_path(folder, epochs[-1])
    with open_artifact(path, command_of("train/train.py")) as file:
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
    return int(sum(sizes))


def success(path):
    """Share of the images on which an attack succeeded, by its samples file."""
    with open_artifact(path, command_of("adv/generate_adv.py")) as file:
        return float(file["success"][()].mean())


def mined(path):
    """(name of a file of targets, number of mined images), or None for a control's targets."""
    with open_artifact(path, command_of("dare/get_ats.py")) as file:
        return (path.name, len(file["index"])) if "first" in file.attrs else None
