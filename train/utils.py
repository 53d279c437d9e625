"""What the steps share around a network: seeds, batches, predictions, checkpoints, and training that can be interrupted."""

import csv
import logging
import math
import sys
import time

import h5py
import numpy as np

from train.files import (
    UserError,
    attributes,
    checkpoint_path,
    epochs_in,
    load_data,
    model_folder,
    need,
    pixels,
    quiet,
    set_attributes,
    sha256,
    sweep,
    weights_path,
    whole,
    write_text,
)

with quiet():
    import keras
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # no advice on retracing to people who run a script


def set_seed(*seed):
    """The one way to set a seed: any tuple of numbers fixes Python, NumPy and the backend."""
    keras.utils.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31))


class Batches(keras.utils.PyDataset):
    """Batches of `make(rows, rng)`, for fit and predict: in order, or shuffled anew every epoch if a seed is given.

    Order and augmentation depend on (seed, epoch, batch) alone, so that training continued at any epoch sees what it
    would have seen. `make` gets sorted rows (HDF5 wants that; within a batch the order does not matter).
    """

    def __init__(self, n, make, batch=128, seed=None):
        super().__init__()
        self.n, self.make, self.batch, self.seed = n, make, batch, seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.order = None if self.seed is None else np.random.default_rng([*self.seed, epoch]).permutation(self.n)

    def __len__(self):
        return math.ceil(self.n / self.batch)

    def __getitem__(self, i):
        rows = np.arange(i * self.batch, min((i + 1) * self.batch, self.n))
        if self.seed is None:
            return self.make(rows, None)
        return self.make(np.sort(self.order[rows]), np.random.default_rng([*self.seed, self.epoch, i]))


def predict(model, x, batch=256):
    """model's outputs on images x (n, h, w, c), uint8 or float32 pixels in [0, 1]; converted batch by batch."""
    return model.predict(Batches(len(x), lambda rows, _: (pixels(x[rows[0] : rows[-1] + 1]),), batch), verbose=0)


def accuracy(model, x, y):
    """Share of images x that `model` gives the labels y (n,)."""
    return float(np.mean(predict(model, x).argmax(axis=1) == y))


def load_architecture(folder):
    """The untrained classifier of a model folder: model.keras, which holds the normalisation too."""
    path = need(folder / "model.keras", "python train/alexnet.py or train/train.py")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a Keras model ({str(error).splitlines()[0]}): train again.") from None


def load_weights(model, path):
    """Load a checkpoint, or raise a UserError that names it."""
    need(path, "python train/alexnet.py or train/train.py")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} does not fit the network or is corrupt ({reason}): train again.") from None
    return model


def load_classifier(folder, epoch=None):
    """The classifier of models/<dataset>_<model> after `epoch` epochs (default: the last one saved)."""
    return load_weights(load_architecture(folder), final_checkpoint(folder) if epoch is None else checkpoint_path(folder, epoch))


def final_checkpoint(folder):
    """Path of the final model: the last epoch's checkpoint, of a training that has ended.

    Raises UserError if there is none, or if training was cut short.
    """
    epochs = epochs_in(folder / "checkpoints")
    if not epochs:
        raise UserError(f"{folder}/checkpoints holds no checkpoint: train with train/alexnet.py or train/train.py first.")
    path = checkpoint_path(folder, epochs[-1])
    planned = attributes(path).get("epochs", epochs[-1])
    if planned != epochs[-1]:
        raise UserError(f"{folder} was trained for {epochs[-1]} of {planned} epochs: run the training command again first.")
    return path


def load_study(args):
    """What every step after training starts from: (folder, classifier, path of the final checkpoint, its SHA-256)."""
    folder = model_folder(args.dataset, args.model, args.seed)
    if not folder.exists():
        raise UserError(f"{folder} is missing: train it with train/alexnet.py or train/train.py --model {args.model}.")
    path = final_checkpoint(folder)
    return folder, load_weights(load_architecture(folder), path), path, sha256(path)


def load_fitting_data(args, part, model):
    """load_data, refused where the images or labels do not fit the model that was trained on them."""
    x, y = load_data(args.dataset, part)
    classes = model.output_shape[-1]
    if x.shape[1:] != model.input_shape[1:] or y.min() < 0 or y.max() >= classes:
        raise UserError(
            f"data/{args.dataset} has {part} images of shape {x.shape[1:]} and labels {y.min()} to {y.max()}, but the model "
            f"takes {model.input_shape[1:]} and has {classes} classes: prepare the data or train again."
        )
    return x, y


def save_weights(classifier, path, **made_from):
    """Save a checkpoint, whole or not at all, with what it was made from as root attributes."""
    with whole(path, ".weights.h5") as temporary:
        # A model of its own, of the same layers: a compiled one would save its optimiser, too.
        keras.Model(classifier.inputs[0], classifier.outputs[0], name="classifier").save_weights(temporary)
        with h5py.File(temporary, "a") as file:
            set_attributes(file, **made_from)


def fit(model, batches, folder, epochs, made_from, classifier=None, validation=None, schedule=None, keep_from=1):
    """model.fit that keeps every epoch and can be killed at any moment.

    After every epoch `classifier` (default: the model itself) is saved as folder/model.<epoch>.weights.h5, log.csv gets
    a row, and optimizer.<epoch>.npz holds the optimiser. Called again with the same `made_from`, it continues after the
    last whole epoch and ends with the same weights, bit for bit; with another, it starts over.

    Args:
        made_from: settings and fingerprints, saved as attributes of every checkpoint.
        model: compiled. batches: Batches with a seed. validation: Batches for val_loss and val_accuracy, or None.
        schedule: epoch (from 0) -> learning rate, or None. keep_from: epochs before it are not saved for good.

    Raises:
        UserError: the loss is not finite; the sentence names the epoch, and earlier epochs are kept.
    """
    classifier = classifier or model
    made_from = made_from | {"epochs": epochs, "backend": keras.backend.backend()}
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    keeper = _KeepEveryEpoch(classifier, batches, folder, keep_from, made_from)
    done = keeper.resume(model, epochs)
    if done == epochs:
        print(f"{folder}: all {epochs} epochs are there.")
        return
    callbacks = [keeper] if schedule is None else [keras.callbacks.LearningRateScheduler(schedule), keeper]
    bar = 1 if sys.stdout.isatty() else 2
    model.fit(batches, epochs=epochs, initial_epoch=done, validation_data=validation, shuffle=False, callbacks=callbacks, verbose=bar)


class _KeepEveryEpoch(keras.callbacks.Callback):
    """The half of `fit` that happens at the ends of epochs. The checkpoint is written last: it says the epoch is whole."""

    def __init__(self, classifier, batches, folder, keep_from, made_from):
        super().__init__()
        self.classifier, self.batches, self.folder, self.keep_from = classifier, batches, folder, keep_from
        self.made_from = {k: v for k, v in made_from.items() if v is not None}

    def _weights(self, epoch):
        return weights_path(self.folder, epoch)

    def _optimizer(self, epoch):
        return self.folder / f"optimizer.{epoch:03d}.npz"

    def _rows(self):
        path = self.folder.parent / "log.csv" if self.folder.name == "checkpoints" else self.folder / "log.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        return path, rows

    def resume(self, model, epochs):
        """Bring model and optimiser to the last whole epoch of the same run, and return it; 0 starts over."""
        done = epochs_in(self.folder)
        same = bool(done) and {k: attributes(self._weights(done[-1])).get(k) for k in self.made_from} == self.made_from
        if same:
            self._tidy(done[-1])
        if same and done[-1] == epochs:
            return epochs
        if same and self._optimizer(done[-1]).exists():
            self.classifier.load_weights(self._weights(done[-1]))
            model.optimizer.build(model.trainable_variables)
            with np.load(self._optimizer(done[-1]), allow_pickle=False) as saved:
                for i, variable in enumerate(model.optimizer.variables):
                    variable.assign(saved[str(i)])
            print(f"{self.folder}: going on after epoch {done[-1]} of {epochs}.", flush=True)
            return done[-1]
        if done and not same:
            print(f"{self.folder} was made with other settings: starting over.", flush=True)
        for path in (*self.folder.glob("model.*.weights.h5"), *self.folder.glob("optimizer.*"), self._rows()[0]):
            path.unlink(missing_ok=True)
        return 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = time.time()
        self.batches.set_epoch(epoch)
        for layer in self.model.layers:  # dropout, too, depends on seed and epoch alone
            if hasattr(layer, "seed_generator"):
                name = [ord(letter) for letter in layer.name]
                words = np.random.SeedSequence([*self.batches.seed, epoch, *name]).generate_state(2)
                layer.seed_generator.state.assign(words.astype("uint32"))

    def on_epoch_end(self, epoch, logs=None):
        epoch, logs = epoch + 1, dict(logs or {})
        if not all(np.isfinite(v) for v in logs.values()):
            kept = f"epochs 1 to {epoch - 1} are kept" if epoch > 1 else "nothing was saved"
            raise UserError(f"the loss became NaN or infinite in epoch {epoch} of {self.folder} ({kept}): lower the learning rate.")
        path, rows = self._rows()
        rate = float(self.model.optimizer.learning_rate)
        row = {"epoch": epoch} | {k: f"{logs[k]:.6g}" for k in ("loss", "accuracy", "val_loss", "val_accuracy") if k in logs}
        row |= {"lr": f"{rate:.6g}", "seconds": f"{time.time() - self.begun:.1f}"}
        rows = [r for r in rows if int(r["epoch"]) < epoch] + [row]
        write_text(path, "\n".join([",".join(row), *(",".join(str(r[k]) for k in row) for r in rows)]) + "\n")
        with whole(self._optimizer(epoch), ".npz") as temporary:
            np.savez(temporary, **{str(i): np.asarray(v) for i, v in enumerate(self.model.optimizer.variables)})
        save_weights(self.classifier, self._weights(epoch), epoch=epoch, **self.made_from)
        self._tidy(epoch)

    def _tidy(self, epoch):
        """Remove what nothing needs after `epoch`; a run that is killed before it gets here is tidied when it goes on."""
        for path in self.folder.glob("optimizer.*.npz"):
            if path != self._optimizer(epoch) or epoch == self.made_from["epochs"]:
                path.unlink()
        for earlier in epochs_in(self.folder):
            if earlier < min(epoch, self.keep_from):
                self._weights(earlier).unlink()
