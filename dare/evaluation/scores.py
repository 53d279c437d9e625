"""scores.h5: which images every scored model gets right. Every comparison is made from it.

For every part of the images the file holds a group, such as "pgd test" or "clean reporting", with

- index: int64 (n,), the images, as indices into x_train or x_test;
- model: the SHA-256 of the weights of every scored model, ascending;
- right: uint8 (models, ceil(n / 8)), right (1) or wrong (0) as packed bits;
- the attribute made_from, which says what the part was made from.
"""

import h5py
import numpy as np

from train.shared.artifacts import atomic_write, open_hdf5, set_attributes


class Scores:
    """The scores of one network, in memory.

    index: {part: int64 (n,)}. made_from: {part: text}.
    packed: {part: {SHA-256 of a model's weights: packed bits}}.
    """

    def __init__(self):
        self.index = {}
        self.made_from = {}
        self.packed = {}

    @classmethod
    def read(cls, path):
        """The scores in a file; none if it is missing."""
        if not path.exists():
            return cls()
        with open_hdf5(path) as file:
            return cls.of_group(file)

    @classmethod
    def of_group(cls, group):
        scores = cls()
        for part, data in group.items():
            scores.define(part, data["index"][()], data.attrs["made_from"])
            models = data["model"].asstr()[()]
            scores.packed[part] = dict(zip(models, data["right"][()], strict=True))
        return scores

    def define(self, part, index, made_from):
        """Define a part; scores on another part of the same name are dropped."""
        index = np.asarray(index, "int64")
        if self.made_from.get(part) != made_from or not np.array_equal(self.index[part], index):
            self.packed[part] = {}
        self.index[part] = index
        self.made_from[part] = made_from

    def keep(self, parts, adaptive=False):
        """Forget what is not among these parts, of adaptive attacks or of other images."""
        for part in {*self.index} - {*parts}:
            if ("adaptive" in part) == adaptive:
                del self.index[part], self.made_from[part], self.packed[part]

    def has(self, model, parts):
        """Whether the model, named by the SHA-256 of its weights, was scored on all the parts."""
        return all(model in self.packed.get(part, {}) for part in parts)

    def add(self, model, part, right):
        """right: bool (n,), in the order of the part's index."""
        self.packed[part][model] = np.packbits(right)

    def right(self, model, part):
        """bool (n,): which images of the part the model gets right."""
        return np.unpackbits(self.packed[part][model], count=len(self.index[part])).astype(bool)

    def percent(self, model, part):
        """Accuracy of the model on the part in %; NaN if it is empty or was not scored."""
        if not self.has(model, [part]) or not len(self.index[part]):
            return np.nan
        return 100 * self.right(model, part).mean()

    def save(self, path):
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, {})
            self.write(file)

    def write(self, group, models=None, parts=None):
        """Write the scores to an HDF5 group, of some models and parts only; None: of all."""
        for part in sorted(self.index if parts is None else parts):
            index = self.index[part]
            kept = sorted(m for m in self.packed[part] if models is None or m in models)
            data = group.create_group(part)
            data.attrs["made_from"] = self.made_from[part]
            data.create_dataset("index", data=index, compression="gzip", shuffle=True)
            data["model"] = np.array(kept, "S64")
            bits = [self.packed[part][model] for model in kept]
            data["right"] = np.array(bits, "uint8").reshape(len(kept), -(-len(index) // 8))
