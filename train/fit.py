"""Training that keeps every epoch and can be killed at any moment."""

import csv
import sys
import time
from pathlib import Path

import numpy as np

from train.artifacts import (
    atomic_write,
    attributes,
    epochs_in,
    refuse_other_settings,
    remove_temporary_files,
    tuned_folder,
    weights_path,
    write_text,
)
from train.backend import keras
from train.checkpoints import load_weights, save_weights
from train.flags import UserError
from train.log import stage
from train.utils import Batches, pixels, set_seed

BATCH = 32  # of tune_classifier: the default of Keras's fit, which the released code takes


def fit(
    model, batches, folder, epochs, provenance, classifier=None, synchronise=None,
    schedule=None, validation=None, **keeping,
):  # fmt: skip
    """model.fit that keeps every epoch and can be killed at any moment.

    After every epoch `classifier` is saved as folder/model.<epoch>.weights.h5, log.csv gets a row,
    and optimizer.<epoch>.npz holds the optimiser. Called again with the same `provenance`, it goes
    on after the last whole epoch and ends with the same weights, bit for bit; a folder that was
    made from something else is refused.

    Args:
        model: compiled. batches: Batches with a seed. epochs: of the whole training.
        provenance: settings and fingerprints, saved as attributes of every checkpoint.
        classifier: what is saved, after synchronise(model, classifier); default: the model.
        schedule: epoch (from 0) -> learning rate. validation: Batches for val_loss, val_accuracy.
        keeping: keep_from, extendable, new_optimizer and log of EveryEpoch.

    Returns:
        True if anything was left to do.

    Raises:
        UserError: other settings; a loss that is not finite, with the epoch; earlier ones are kept.
    """
    saved = (model, nothing) if classifier is None else (classifier, synchronise or nothing)
    keeper = EveryEpoch(model, *saved, batches, folder, epochs, provenance, **keeping)
    done = keeper.resume()
    if done >= epochs:
        load_weights(keeper.classifier, weights_path(folder, epochs))
        print(f"{folder}: all {epochs} epochs are there.", flush=True)
        return False
    callbacks = [keeper] if sys.stdout.isatty() else [keeper, HalfMinutes()]
    if schedule is not None:
        callbacks.insert(0, keras.callbacks.LearningRateScheduler(schedule))
    model.fit(
        batches,
        epochs=epochs,
        initial_epoch=done,
        validation_data=validation,
        shuffle=False,
        callbacks=callbacks,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return True


def nothing(trained, classifier):
    """How to synchronise a model with itself, or with one of the same layers."""


class HalfMinutes(keras.callbacks.Callback):
    """Says how far a long epoch is, every half minute, where there is no bar to watch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.said = epoch + 1, time.time()

    def on_train_batch_end(self, batch, logs=None):
        if time.time() - self.said > 30:
            print(f"epoch {self.epoch}: {batch + 1} of {self.params['steps']} steps", flush=True)
            self.said = time.time()


class EveryEpoch(keras.callbacks.Callback):
    """What `fit` does at the ends of epochs. The checkpoint is written last: it says all is whole.

    keep_from: epochs before it are not saved for good. extendable: more epochs later go on from
    here, so that `epochs` is no setting of its own and the optimiser is kept. new_optimizer: the
    optimiser begins anew in every epoch. log: the path of log.csv.
    """

    def __init__(
        self, model, classifier, synchronise, batches, folder, epochs, provenance,
        keep_from=1, extendable=False, new_optimizer=False, log=None,
    ):  # fmt: skip
        super().__init__()
        self.trained, self.classifier, self.synchronise = model, classifier, synchronise
        self.batches, self.folder, self.epochs = batches, Path(folder), epochs
        self.keep_from, self.extendable, self.new_optimizer = keep_from, extendable, new_optimizer
        self.log = log or self.folder / "log.csv"
        self.provenance = {k: v for k, v in provenance.items() if v is not None}
        self.provenance["backend"] = keras.backend.backend()

    def optimizer_path(self, epoch):
        return self.folder / f"optimizer.{epoch:03d}.npz"

    def resume(self):
        """Bring model and optimiser to the last whole epoch of the same run, and return it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(self.folder)
        kept = epochs_in(self.folder)
        if not kept:
            return 0
        # Before there was a choice, networks trained in float32.
        found = {"precision": "float32"} | attributes(weights_path(self.folder, kept[-1]))
        settings = self.provenance | ({} if self.extendable else {"epochs": self.epochs})
        refuse_other_settings(self.folder, found, settings, make="begin")
        self.tidy(kept[-1])
        if kept[-1] >= self.epochs:
            return kept[-1]
        if not self.optimizer_path(kept[-1]).exists():
            raise UserError(
                f"{self.optimizer_path(kept[-1])} is missing, so that epoch {kept[-1]} cannot be "
                f"continued: move {self.folder} away to begin anew."
            )
        load_weights(self.classifier, weights_path(self.folder, kept[-1]))
        self.synchronise(self.classifier, self.trained)
        self.load_optimizer(kept[-1])
        print(f"{self.folder}: going on after epoch {kept[-1]} of {self.epochs}.", flush=True)
        return kept[-1]

    def load_optimizer(self, epoch):
        optimizer = self.trained.optimizer
        optimizer.build(self.trained.trainable_variables)
        with np.load(self.optimizer_path(epoch), allow_pickle=False) as saved:
            for i, variable in enumerate(optimizer.variables):
                variable.assign(saved[str(i)])

    def save_optimizer(self, epoch):
        values = {str(i): np.asarray(v) for i, v in enumerate(self.trained.optimizer.variables)}
        with atomic_write(self.optimizer_path(epoch), ".npz") as temporary:
            np.savez(temporary, **values)

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = time.time()
        self.batches.set_epoch(epoch)
        if keras.backend.backend() == "torch":  # its dropout has no state of its own
            set_seed(*self.batches.seed, epoch)
        for layer in self.model.layers:  # dropout, too, depends on seed and epoch alone
            if hasattr(layer, "seed_generator"):
                name = [ord(letter) for letter in layer.name]
                words = np.random.SeedSequence([*self.batches.seed, epoch, *name])
                layer.seed_generator.state.assign(words.generate_state(2).astype("uint32"))
        if self.new_optimizer and epoch:
            optimizer = self.model.optimizer
            rate = float(optimizer.learning_rate)
            for variable in optimizer.variables:
                variable.assign(np.zeros(variable.shape, variable.dtype))
            optimizer.learning_rate = rate

    def on_epoch_end(self, epoch, logs=None):
        epoch, logs = epoch + 1, dict(logs or {})
        if not all(np.isfinite(v) for v in logs.values()):
            kept = f"epochs 1 to {epoch - 1} are kept" if epoch > 1 else "nothing was saved"
            raise UserError(
                f"the loss became NaN or infinite in epoch {epoch} of {self.folder} ({kept}): "
                f"lower the learning rate."
            )
        self.write_log(epoch, logs)
        self.save_optimizer(epoch)
        self.synchronise(self.model, self.classifier)
        about = self.provenance | {"epoch": epoch, "epochs": self.epochs}
        save_weights(self.classifier, weights_path(self.folder, epoch), about)
        self.tidy(epoch)

    def write_log(self, epoch, logs):
        columns = ("loss", "accuracy", "val_loss", "val_accuracy")
        row = {"epoch": epoch} | {k: f"{logs[k]:.6g}" for k in columns if k in logs}
        row["lr"] = f"{float(self.model.optimizer.learning_rate):.6g}"
        row["seconds"] = f"{time.time() - self.begun:.1f}"
        text = self.log.read_text() if self.log.exists() else ""
        earlier = [r for r in csv.DictReader(text.splitlines()) if int(r["epoch"]) < epoch]
        lines = [",".join(str(r[k]) for k in row) for r in [*earlier, row]]
        write_text(self.log, "\n".join([",".join(row), *lines]) + "\n")

    def tidy(self, epoch):
        """Remove what nothing needs after `epoch`; a killed run is tidied when it goes on."""
        ended = not self.extendable and epoch == self.epochs
        for path in self.folder.glob("optimizer.*.npz"):
            if path != self.optimizer_path(epoch) or ended:
                path.unlink()
        for earlier in epochs_in(self.folder):
            if earlier < min(epoch, self.keep_from):
                weights_path(self.folder, earlier).unlink()


def tune_classifier(
    classifier, x, y, folder, loss, lr_rate, epochs, frozen=0, until=None, batch=BATCH, seed=(0,),
    provenance=None,
):  # fmt: skip
    """Tune the classifier itself, in place, with Adam: the baselines of DARE (ASE 2022).

    Args:
        x, y: images (n, h, w, c), an array or anything that sorted rows can be taken from, and
            labels (n,).
        loss: "mse" (on the softmax, one-hot labels) or "categorical_crossentropy".
        frozen: so many first layers, with the input and without the normalisation, do not move.
        until: nor do those after the layer of this name. batch: images in a step.
        folder, epochs, provenance: as fit.

    Returns:
        True if anything was left to do.
    """
    set_seed(*seed)
    free_of_training(classifier)
    layers = [layer for layer in classifier.layers if type(layer).__name__ != "Normalization"]
    end = len(layers) if until is None else [layer.name for layer in layers].index(until) + 1
    for i, layer in enumerate(layers):
        layer.trainable = frozen <= i < end
    onehot = np.eye(classifier.output_shape[-1], dtype="float32")
    # A model of its own, so that the classifier stays uncompiled and is saved without this.
    trained = keras.Model(classifier.inputs[0], classifier.outputs[0])
    trained.compile(keras.optimizers.Adam(lr_rate), loss, metrics=["accuracy"])

    def make(rows, _):
        return pixels(x[rows]), onehot[y[rows]]

    shuffled = Batches(len(y), make, batch, (*seed, 1))
    # It is made of the classifier's own layers: nothing to synchronise.
    return fit(trained, shuffled, folder, epochs, provenance or {}, classifier, extendable=True)


def tune_baseline(study, x, y, loss, epochs, settings, provenance, **how):
    """tune_classifier on a study's network, into the folder that its settings name.

    settings: method, lr_rate, run and whatever else the folder's name has. provenance: fingerprints
    besides the study's own. how: frozen, until and batch of tune_classifier.
    """
    folder = tuned_folder(study.folder, **settings)
    title = settings["method"]
    with stage(folder / "tune.log", title, study.names | settings | {"epochs": epochs}) as record:
        tuned = tune_classifier(
            study.original(), x, y, folder, loss, settings["lr_rate"], epochs,
            seed=(study.seed, settings["run"]), provenance=study.provenance | settings | provenance,
            **how,
        )  # fmt: skip
        record.idle = not tuned


def free_of_training(model):
    """Drop the l2 terms of training, which are no part of the losses of tuning."""
    for variable in model.variables:
        variable.regularizer = None
