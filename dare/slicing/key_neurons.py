"""The key neurons of the layer that DARE transforms: those that contribute most to a class."""

from collections import Counter

import numpy as np

from dare.slicing.kinds import MERGED, has_synapses, is_passed_on, kind_of
from dare.slicing.ranking import ceil_share, largest
from train.shared.flags import UserError
from train.shared.graph import calls_of, find_call


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
    path = find_call(classifier, choose_layer).path
    contribution = ContributionsOfLayers(calls_of(classifier), slices).of_output(path)
    if contribution is None:
        raise UserError(
            f"--choose_layer {choose_layer} has no neurons of its own: choose a dense or "
            f"convolutional layer, or a layer that follows one."
        )
    return key_neurons(contribution, per)


class ContributionsOfLayers:
    """CONTRIB of layers without synapses, from that of the sliced layers before them.

    Such a layer passes CONTRIB back unchanged (dare/slicing/kinds.py). So its neurons have the
    CONTRIB of the layer before it, provided that no other layer uses that layer's output.
    """

    def __init__(self, calls, slices):
        self.slices = slices
        self.call_of_path = {call.path: call for call in calls}
        self.call_of_output = {id(call.output): call for call in calls}
        self.uses = Counter(id(tensor) for call in calls for tensor in call.inputs)

    def of_output(self, path):
        """CONTRIB of a layer's output neurons, float (classes, neurons), or None."""
        return self._of_call(self.call_of_path[path])

    def _of_call(self, call):
        if has_synapses(call.layer):
            sliced = self.slices.get(call.path)
            return sliced and sliced.contribution
        parts = [self._of_input(tensor) for tensor in call.inputs]
        known = [part for part in parts if part is not None]
        kind = kind_of(call.layer)
        if kind == "Concatenate" and len(known) == len(parts):
            return self._with_neurons_of(call, np.concatenate(known, axis=1))
        # All branches have the same. Flatten keeps the neurons of a channel with one position.
        if is_passed_on(call.layer) or kind in (*MERGED, "Flatten"):
            same = [self._with_neurons_of(call, part) for part in known]
            return next((part for part in same if part is not None), None)
        return None

    def _of_input(self, tensor):
        call = self.call_of_output.get(id(tensor))
        return self._of_call(call) if call and self.uses[id(tensor)] == 1 else None

    def _with_neurons_of(self, call, contribution):
        has_all = contribution.shape[1] == call.output.shape[-1]
        return contribution if has_all else None
