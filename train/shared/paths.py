"""Where every artifact is: one folder for each data set and one for each trained network.

It imports no backend, so that the Snakefile can use it too. Settings that make a difference are in
the path of an artifact or in its attributes.
"""

import os
import re
from pathlib import Path

# The folder of data/ and models/.
HOME = Path(os.environ.get("DARE_HOME") or Path(__file__).parents[2]).expanduser().absolute()


def data_folder(dataset):
    return HOME / "data" / dataset


def study_folder(dataset, model, seed):
    return HOME / "models" / f"{dataset}_{model}_seed{seed}"


def study_folders(models, dataset, model):
    """{folder: its seed} of the studies in a folder of models; "*": of any data set or network.

    Folders with other names, such as one that was renamed to be kept, are left out.
    """
    names = "_".join(".+" if name == "*" else re.escape(name) for name in (dataset, model))
    found = {p: re.fullmatch(f"{names}_seed([0-9]+)", p.name) for p in Path(models).glob("*")}
    return {path: int(found[path][1]) for path in sorted(found) if found[path]}


def weights_path(folder, epoch):
    """The weights after an epoch, in a folder of checkpoints or of a tuned model."""
    return Path(folder) / f"model.{int(epoch):03d}.weights.h5"


def checkpoint_path(folder, epoch):
    return weights_path(Path(folder) / "checkpoints", epoch)


def epochs_in(folder):
    """The epochs whose weights are in a folder, ascending."""
    names = [path.name for path in Path(folder).glob("model.*.weights.h5")]
    found = [re.fullmatch(r"model\.([0-9]+)\.weights\.h5", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def slice_path(folder, per):
    return Path(folder) / f"slice_{path_text(per)}.h5"


def targets_path(folder, layer, name=None):
    """The targets of a layer; name: of a control that has targets of its own."""
    parts = ["ats", path_text(layer), *([name] if name else [])]
    return Path(folder) / f"{'_'.join(parts)}.h5"


def samples_path(folder, attack, part="train"):
    """The samples made from images of x_train or, part "test", from those of x_test."""
    return Path(folder) / "adv" / (f"{attack}.h5" if part == "train" else f"{attack}_{part}.h5")


def tuned_name(method, choose_layer=None, per=None, batches=None, lr_rate=None, run=None):
    """Name of a tuned model's folder: the method, and every setting that makes a difference.

    Numbers may be given as text, and any setting as a {wildcard} of the workflow.
    """
    settings = {"": choose_layer, "per": per, "batches": batches, "lr": lr_rate, "run": run}
    parts = [f"{key}{path_text(value)}" for key, value in settings.items() if value is not None]
    return "_".join([method, *parts])


def path_text(setting):
    """A number or the path of a layer as it stands in a file name: 0.5, 1e-05, backbone__conv3."""
    return f"{setting:g}" if isinstance(setting, float) else str(setting).replace("/", "__")


def tuned_folder(folder, method, **settings):
    return Path(folder) / "tuned" / tuned_name(method, **settings)
