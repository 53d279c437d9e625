"""Images and labels as people have them: what is taken, and one sentence for what is not."""

import numpy as np
import pytest
from conftest import patterns

from adv.attacks import attack
from dare.dare import Tuning, tune
from dare.get_ats import MinedImages, mine
from dare.nnslicer import slice_model
from train.shared.backend import ops
from train.shared.door import check_arrays
from train.shared.flags import UserError

X, Y = patterns(24)
X = X / np.float32(255)
TAKEN = {
    "labels (n, 1)": (X, Y[:, None]),
    "lists": (X.tolist(), Y.tolist()),
    "tensors": (ops.convert_to_tensor(X), ops.convert_to_tensor(Y)),
    "uint8": ((255 * X).round().astype("uint8"), Y.astype("uint8")),
}
WRONG = {
    "one-hot labels": (X, np.eye(4)[Y], r"float64 of shape \(24, 4\): use the 24 numbers"),
    "labels from 1": (X, Y + 1, "labels are 1 to 4, and the model has the classes 0 to 3"),
    "negative labels": (X, Y - 1, "labels are -1 to 2"),
    "labels of other images": (X, Y[:-1], r"of shape \(23,\): use the 24 numbers"),
    "channels first": (X.transpose(0, 3, 1, 2), Y, r"\(24, 1, 12, 12\), .* \(12, 12, 1\)"),
    "without channels": (X[..., 0], Y, r"shape \(24, 12, 12\), and the model takes"),
    "NaN": (np.where(X > 0.9, np.nan, X), Y, "without NaN"),
    "neither [0, 1] nor [0, 255]": (1.5 * X, Y, r"float pixels of 0.* to 1.*, or clip"),
    "around 0": (2 * X - 1, Y, "put a keras.layers.Rescaling into it"),
    "ragged lists": ([[1, 2], [3]], Y, "are no arrays"),
    "integers": ((255 * X).astype("int64"), Y, "images are int64"),
    "none": (X[:0], Y[:0], r"shape \(0, 12, 12, 1\)"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_arrays_that_are_taken(case):
    x, y = check_arrays(*TAKEN[case], (12, 12, 1), 4)
    assert x.shape == X.shape and y.dtype == "int64"
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(classifier, tmp_path, case):
    """In every function that people call with arrays of their own."""
    x, y, message = WRONG[case]
    weights = str(tmp_path / "model.001.weights.h5")
    classifier.save_weights(weights)
    mined = MinedImages(np.arange(4), None, None, None, np.zeros((4, 6, 6, 8)))
    calls = (
        lambda: slice_model(classifier, x, y, 0.5),
        lambda: mine({1: weights, 2: weights}, x, y, classifier, "conv2"),
        lambda: tune(classifier, mined, x, y, tmp_path / "out", Tuning("conv2", 1e-4, 1)),
        lambda: attack("fgsm", classifier, x, y),
    )
    for call in calls:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
