"""Mining the training history: the best checkpoint of every image, and its activations."""

import h5py
import numpy as np
import pytest

from dare import get_ats
from dare.get_ats import best_checkpoint, mine
from train.shared.backend import keras
from train.shared.checkpoints import save_weights
from train.shared.flags import UserError
from train.utils import predict

layers = keras.layers


def test_best_checkpoint_follows_the_rule():
    #             better  equal   wrong-final: surer but wrong / right   never   tie: the first
    history = [[0.9, 0.6, 0.45, 0.2, 0.9, 0.7], [0.7, 0.5, 0.40, 0.5, 0.8, 0.7]]
    right = [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]
    final, final_right = [0.6, 0.6, 0.3, 0.1, 0.95, 0.6], [1, 1, 0, 0, 1, 1]
    best = best_checkpoint(np.array([*history, final]), np.array([*right, final_right], bool))
    assert best.tolist() == [0, -1, 1, -1, -1, 0]


def test_mines_the_known_best_epochs_and_their_activations(tmp_path):
    """Checkpoints whose only layer is known: each is surest about the images of one class."""
    dense = layers.Dense(3, name="hidden"), layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), *dense])
    x = np.zeros((6, 2, 2, 1), "float32")
    y = np.array([0, 1, 2, 0, 1, 2])
    x[np.arange(6), y // 2, y % 2] = 1
    paths = {}
    for epoch, gains in {3: (5, 1, 1), 4: (1, 4, 1), 5: (1, 1, 1), 6: (2, 2, 2)}.items():
        kernel = np.zeros((4, 3), "float32")
        kernel[:3] = np.diag(gains)
        model.set_weights([kernel, np.zeros(3), np.eye(3), np.zeros(3)])
        paths[epoch] = tmp_path / f"model.{epoch:03d}.weights.h5"
        save_weights(model, str(paths[epoch]), {"epoch": epoch})
    mined = mine(paths, x, y, model, "hidden")
    # The final model is surest of class 2.
    expected = {0: [5, 0, 0], 3: [5, 0, 0], 1: [0, 4, 0], 4: [0, 4, 0]}
    found = zip(mined.index.tolist(), mined.epoch.tolist(), mined.activation, strict=True)
    found = {i: (epoch, activation.tolist()) for i, epoch, activation in found}
    assert found == {i: (3 if i in (0, 3) else 4, a) for i, a in expected.items()}
    assert (mined.probability > mined.final_probability).all()
    np.testing.assert_array_equal(model.get_weights()[0], kernel)


def test_mining_again_uses_the_history(study, monkeypatch):
    _, folder, flags = study
    (folder / "ats_predictions.h5").unlink()
    models = []

    def counted(model, x, **more):
        models.append(model)
        return predict(model, x, **more)

    monkeypatch.setattr(get_ats, "predict", counted)
    get_ats.main([*flags, "--choose_layer", "predictions"])
    with h5py.File(folder / "ats_predictions.h5") as file:
        assert len(models) == len(set(file["epoch"][()]))  # the second pass alone


def test_images_limits_what_is_mined_and_may_not_change(study):
    _, folder, flags = study
    with h5py.File(folder / "ats_conv2.h5") as file:
        index, epoch = file["index"][()], file["epoch"][()]
    get_ats.main([*flags, "--choose_layer", "conv1", "--images", "150"])
    with h5py.File(folder / "ats_conv1.h5") as file:
        np.testing.assert_array_equal(file["index"][()], index[index < 150])
        np.testing.assert_array_equal(file["epoch"][()], epoch[index < 150])
    with pytest.raises(UserError, match="images 150, not None"):
        get_ats.main([*flags, "--choose_layer", "conv1"])
