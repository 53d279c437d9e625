"""Wrong images and labels end in one sentence, wherever they are passed."""

import numpy as np
import pytest
from conftest import patterns

from adv.attacks import attack
from dare.dare import Tuning, tune
from dare.get_ats import MinedImages, mine
from dare.nnslicer import slice_model
from train.shared.flags import UserError

N, CLASSES = 24, 4


def images_and_labels():
    x, y = patterns(N)
    return x / np.float32(255), y


X, Y = images_and_labels()
WRONG = {
    "one-hot labels": (X, np.eye(CLASSES)[Y], r"labels have shape \(24, 4\).* y.argmax\(axis=1\)"),
    "labels from 1": (X, Y + 1, r"labels are 1 to 4, and .* classes 0 to 3: subtract 1"),
    "negative labels": (X, Y - 1, r"labels are -1 to 2, .*: use others"),
    "labels of other images": (X, Y[:-1], r"labels have shape \(23,\), but there are 24 images"),
    "labels of numbers": (X, Y / 1, "labels are float64: use integers"),
    "labels in a list": (X, Y.tolist(), "labels are a list, not an array"),
    "channels first": (X.transpose(0, 3, 1, 2), Y, r"\(1, 12, 12\).* x.transpose\(0, 2, 3, 1\)"),
    "another size": (X[:, 2:], Y, r"shape \(10, 12, 1\), and the model takes \(12, 12, 1\)"),
    "without channels": (X[..., 0], Y, r"shape \(12, 12\), and the model takes \(12, 12, 1\)"),
    "a list": (list(X), Y, "images are a list, not an array"),
    "NaN": (np.where(X > 0.9, np.nan, X), Y, "some are NaN"),
    "8 bits as numbers": (255 * X, Y, "divide 8-bit images by 255"),
    "integers": ((255 * X).astype("int64"), Y, "images are int64: use uint8, or float32"),
    "none": (X[:0], Y[:0], "there are no images"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays(classifier, tmp_path, wrong):
    x, y, message = WRONG[wrong]
    nothing = np.zeros(1)
    mined = MinedImages(np.zeros(1, int), nothing, nothing, nothing, np.zeros((1, 6, 6, 8)))
    paths = {1: tmp_path / "a", 2: tmp_path / "b"}
    calls = [
        lambda: slice_model(classifier, x, y, 0.5),
        lambda: mine(paths, x, y, classifier, "conv2"),
        lambda: tune(classifier, mined, x, y, tmp_path / "tuned", Tuning("conv2", 1e-3, 1)),
        lambda: attack("fgsm", classifier, x, y),
    ]
    for call in calls:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())
