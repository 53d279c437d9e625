"""The key neurons of the layer that DARE transforms: those that contribute most to a class."""

from collections import Counter

import numpy as np

from dare.slicing.kinds import has_synapses, is_passed_on, kind_of
from dare.slicing.ranking import ceil_share, largest
from train.flags import UserError
from train.graph import find_step, steps_of


def key_neurons(contribution, per):
    """The ceil(per * n) neurons with the largest contribution to each class: bool (classes, n)."""
    return largest(np.asarray(contribution, "float64"), ceil_share(per, contribution.shape[1]))


def key_neurons_of(classifier, choose_layer, slices, per):
    """The key neurons of a layer, from the slices of the layers that make its neurons.

    Args:
        classifier: Keras model. choose_layer: path of the layer.
        slices: {path: SlicedLayer}. per: share of key neurons.

    Returns:
        bool (classes, neurons).

    Raises:
        UserError: a layer whose outputs are not the neurons of sliced layers.
    """
    path = find_step(classifier, choose_layer).path
    contribution = Contributions(steps_of(classifier), slices).of_output(path)
    if contribution is None:
        raise UserError(
            f"--choose_layer {choose_layer} has no neurons of its own: choose a dense or "
            f"convolutional layer, or a layer that follows one."
        )
    return key_neurons(contribution, per)


class Contributions:
    """CONTRIB of layers without synapses, from that of the sliced layers before them.

    A layer passes CONTRIB back unchanged (dare/slicing/kinds.py), so its own is that of a layer
    before it, if nothing else takes that layer's output.
    """

    def __init__(self, steps, slices):
        self.slices = slices
        self.step_of_path = {step.path: step for step in steps}
        self.step_of_output = {id(step.output): step for step in steps}
        self.uses = Counter(id(tensor) for step in steps for tensor in step.inputs)

    def of_output(self, path):
        """CONTRIB of a layer's output neurons, float (classes, neurons), or None."""
        return self._of_step(self.step_of_path[path])

    def _of_step(self, step):
        if has_synapses(step.layer):
            sliced = self.slices.get(step.path)
            return sliced and sliced.contribution
        parts = [self._of_input(tensor) for tensor in step.inputs]
        known = [part for part in parts if part is not None]
        kind = kind_of(step.layer)
        if kind == "Concatenate" and len(known) == len(parts):
            return self._with_neurons_of(step, np.concatenate(known, axis=1))
        # The branches of a sum have the same contribution. The second of Subtract has another sign.
        if is_passed_on(step.layer) or kind in ("Add", "Average", "Maximum", "Minimum", "Multiply"):
            same = [self._with_neurons_of(step, part) for part in known]
            return next((part for part in same if part is not None), None)
        return None

    def _of_input(self, tensor):
        step = self.step_of_output.get(id(tensor))
        return self._of_step(step) if step and self.uses[id(tensor)] == 1 else None

    def _with_neurons_of(self, step, contribution):
        has_all = contribution.shape[1] == step.output.shape[-1]
        return contribution if has_all else None
