"""scores.h5: which images every scored model gets right.

robustness.csv, paired differences and their intervals are all made from it. The file holds

- /parts/<part>: int64 (n,), the images of a part, as indices into x_train for samples,
  into x_test for "clean selection" and "clean reporting". Its attribute made_from is the SHA-256 of
  the file that the images come from.
- /models/<SHA-256 of the weights>/<part>: uint8, the packed bits of right (1) or wrong (0).
"""

import h5py
import numpy as np

from train.shared.artifacts import atomic_write, open_artifact, set_attributes
from train.shared.flags import command_of

# The rules by which an epoch of every method is chosen: columns of robustness.csv, set by
# dare.evaluation.selection.select.
SELECTION_RULES = ("selected", "selected_within_1", "last_epoch")
LOSS_ALLOWED = 1.0  # points of clean accuracy that a model of selected_within_1 may lose


def loses_too_much(change):
    """Whether a change of clean accuracy, in points, is a loss of more than LOSS_ALLOWED."""
    return change < -LOSS_ALLOWED - 1e-9  # accuracies are rounded sums


class Scores:
    """The scores of one study, in memory; `save` writes them, whole or not at all.

    index: {part: int64 (n,)}. made_from: {part: SHA-256 of the file its images come from}.
    packed: {SHA-256 of a model's weights: {part: packed bits}}.
    """

    def __init__(self, path):
        self.path = path
        self.index = {}
        self.made_from = {}
        self.packed = {}
        if path.exists():
            with open_artifact(path, command_of("dare/test.py")) as file:
                for part, data in file["parts"].items():
                    self.index[part] = data[()]
                    self.made_from[part] = data.attrs["made_from"]
                for model, group in file["models"].items():
                    self.packed[model] = {part: bits[()] for part, bits in group.items()}

    def define(self, part, index, made_from):
        """Define a part; scores on another part of the same name are dropped."""
        same = self.made_from.get(part) == made_from and np.array_equal(self.index[part], index)
        if not same:
            for scored in self.packed.values():
                scored.pop(part, None)
        self.index[part] = np.asarray(index, "int64")
        self.made_from[part] = made_from

    def missing(self, model, parts):
        """The parts that the model, named by the SHA-256 of its weights, has no scores for."""
        return [part for part in parts if part not in self.packed.get(model, {})]

    def add(self, model, part, right):
        """right: bool (n,), in the order of the part's index."""
        self.packed.setdefault(model, {})[part] = np.packbits(right)

    def right(self, model, part):
        """bool (n,): which images of the part the model gets right."""
        return np.unpackbits(self.packed[model][part], count=len(self.index[part])).astype(bool)

    def percent(self, model, part):
        """Accuracy of the model on the part in %; NaN if it is empty or was not scored."""
        if self.missing(model, [part]) or not len(self.index[part]):
            return np.nan
        return 100 * self.right(model, part).mean()

    def save(self):
        with atomic_write(self.path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, {})
            parts = file.create_group("parts")
            models = file.create_group("models")
            for part, index in sorted(self.index.items()):
                parts[part] = index
                parts[part].attrs["made_from"] = self.made_from[part]
            for model, scored in sorted(self.packed.items()):
                for part, bits in sorted(scored.items()):
                    models[f"{model}/{part}"] = bits


def arrays_in(group):
    """{path below the group: array} of all datasets of an HDF5 group."""
    names = []
    group.visit(names.append)
    return {name: group[name][()] for name in names if isinstance(group[name], h5py.Dataset)}
