"""Training that keeps every epoch and can be killed at any moment."""

import shlex
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from train.shared.artifacts import atomic_write, attributes, check_settings, read_csv, write_text
from train.shared.backend import keras
from train.shared.checkpoints import load_weights, save_weights
from train.shared.flags import UserError
from train.shared.graph import layers_by_path
from train.shared.paths import epochs_in, weights_path
from train.utils import set_seed

LOG_COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy")


def random_stream(layer):
    """The random numbers of dropout, noise or augmentation; None for other layers."""
    return getattr(layer, "seed_generator", None) or getattr(layer, "generator", None)


def seed_random_layers(model, seed):
    """Make dropout, noise and augmentation in a model depend on a seed alone.

    seed: a tuple of numbers.
    """
    if keras.backend.backend() == "torch":  # they draw from the process's generator there
        set_seed(*seed)
    for path, layer in layers_by_path(model).items():
        if stream := random_stream(layer):
            layer_name = [ord(letter) for letter in path]
            state = np.random.SeedSequence([*seed, *layer_name]).generate_state(2)
            stream.state.assign(state.astype("uint32"))


@dataclass
class Run:
    """A training run: its length, folder and provenance.

    folder: gets model.<epoch>.weights.h5 of every epoch, log.csv, and optimizer.<epoch>.npz, the
        state of the optimizer after the last epoch.
    epochs: length of the whole training.
    provenance: settings and fingerprints. They become attributes of every checkpoint, and a folder
        with other ones is refused.
    extendable: a finished run may go on to more epochs, so its optimizer is kept.
    schedule: learning rate as a function of the epoch (from 0); None: constant.
    callbacks: further Keras callbacks.
    log: path of log.csv, if it is not in the folder.
    """

    folder: Path
    epochs: int
    provenance: dict
    extendable: bool = False
    schedule: object = None
    callbacks: list = field(default_factory=list)
    log: Path | None = None

    def __post_init__(self):
        self.folder = Path(self.folder)
        self.log = self.log or self.folder / "log.csv"
        known = {name: value for name, value in self.provenance.items() if value is not None}
        self.provenance = known | {"backend": keras.backend.backend()}

    def optimizer_path(self, epoch):
        return self.folder / f"optimizer.{epoch:03d}.npz"


def fit(model, batches, run, classifier, synchronise=None, validation=None):
    """Fit a model, keep every epoch, and go on where an earlier call was interrupted.

    An interrupted training ends with the same weights, bit for bit, as an undisturbed one.

    Args:
        model: compiled Keras model.
        batches: Batches with a seed.
        run: Run.
        classifier: the model that is saved after every epoch, perhaps `model` itself.
        synchronise: function (from_model, to_model) that copies weights between `model` and
            `classifier`; None: they share their layers.
        validation: Batches for val_loss and val_accuracy, or None.

    Returns:
        True if anything was left to do.

    Raises:
        UserError: the folder holds a training with other settings, or the loss is not finite.
    """
    keeper = EpochKeeper(run, batches, model, classifier, synchronise)
    last_epoch = keeper.resume()
    if last_epoch >= run.epochs:
        load_weights(keeper.classifier, weights_path(run.folder, run.epochs))
        print(f"{run.folder} already has all {run.epochs} epochs.", flush=True)
        return False
    callbacks = [keeper, *run.callbacks]
    if run.schedule is not None:
        callbacks.insert(0, keras.callbacks.LearningRateScheduler(run.schedule))
    on_terminal = sys.stdout.isatty()
    if not on_terminal:
        callbacks.append(StepReporter())
    model.fit(
        batches,
        epochs=run.epochs,
        initial_epoch=last_epoch,
        validation_data=validation,
        shuffle=False,
        callbacks=callbacks,
        verbose=1 if on_terminal else 2,
    )
    return True


class StepReporter(keras.callbacks.Callback):
    """Prints the step of a long epoch every half minute, where there is no progress bar."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1
        self.last_time = time.time()

    def on_train_batch_end(self, batch, logs=None):
        if time.time() - self.last_time > 30:
            print(f"epoch {self.epoch}: {batch + 1} of {self.params['steps']} steps", flush=True)
            self.last_time = time.time()


class EpochKeeper(keras.callbacks.Callback):
    """Saves every epoch of a Run. The checkpoint comes last: once it exists, the epoch is whole."""

    def __init__(self, run, batches, trained_model, classifier, synchronise=None):
        super().__init__()
        self.run = run
        self.batches = batches
        self.trained_model = trained_model
        self.classifier = classifier
        self.synchronise = synchronise or (lambda from_model, to_model: None)

    def resume(self):
        """Restore model and optimizer after the last whole epoch; returns that epoch, or 0.

        Raises UserError if the folder holds a training with other settings.
        """
        run = self.run
        run.folder.mkdir(parents=True, exist_ok=True)
        epochs = epochs_in(run.folder)
        if epochs:
            wanted = run.provenance if run.extendable else run.provenance | {"epochs": run.epochs}
            check_settings(run.folder, attributes(weights_path(run.folder, epochs[-1])), wanted)
            if epochs[-1] >= run.epochs:
                self.delete_optimizers(epochs[-1])
                return epochs[-1]
        self.logged_epochs()  # a broken log.csv is refused before an epoch is trained
        for epoch in reversed(epochs):
            if self.load_optimizer(epoch):
                load_weights(self.classifier, weights_path(run.folder, epoch))
                self.synchronise(self.classifier, self.trained_model)
                print(f"{run.folder}: resuming after epoch {epoch} of {run.epochs}.", flush=True)
                return epoch
        if epochs:
            print(f"{run.folder} has no state of the optimizer: it begins again.", flush=True)
        return 0

    def load_optimizer(self, epoch):
        """Restore the optimizer's state after an epoch; False if there is none that can be read."""
        optimizer = self.trained_model.optimizer
        optimizer.build(self.trained_model.trainable_variables)
        try:
            with np.load(self.run.optimizer_path(epoch), allow_pickle=False) as saved:
                values = [saved[str(i)] for i in range(len(optimizer.variables))]
        except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        for variable, value in zip(optimizer.variables, values, strict=True):
            variable.assign(value)
        return True

    def save_optimizer(self, epoch):
        variables = enumerate(self.trained_model.optimizer.variables)
        values = {str(i): np.asarray(variable) for i, variable in variables}
        with atomic_write(self.run.optimizer_path(epoch)) as temporary:
            np.savez(temporary, **values)

    def on_epoch_begin(self, epoch, logs=None):
        self.start_time = time.time()
        self.batches.set_epoch(epoch)
        seed_random_layers(self.model, (*self.batches.seed, epoch))  # so that training can resume

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        logs = dict(logs or {})
        if not all(np.isfinite(value) for value in logs.values()):
            kept = f"the epochs up to {epoch - 1} are kept" if epoch > 1 else "nothing was saved"
            raise UserError(
                f"the loss became NaN or infinite in epoch {epoch} of {self.run.folder} ({kept}): "
                f"lower the learning rate."
            )
        self.write_log(epoch, logs)
        self.save_optimizer(epoch)
        self.synchronise(self.model, self.classifier)
        provenance = self.run.provenance | {"epoch": epoch, "epochs": self.run.epochs}
        save_weights(self.classifier, weights_path(self.run.folder, epoch), provenance)
        self.delete_optimizers(epoch)

    def write_log(self, epoch, logs):
        """Add a row to log.csv; later rows of epochs that were not saved are dropped."""
        row = {"epoch": epoch}
        row |= {name: f"{logs[name]:.6g}" for name in LOG_COLUMNS if name in logs}
        row["lr"] = f"{float(self.model.optimizer.learning_rate):.6g}"
        row["seconds"] = f"{time.time() - self.start_time:.1f}"
        logged = {int(r["epoch"]): r for r in self.logged_epochs()}
        saved = epochs_in(self.run.folder)
        rows = {e: r for e, r in logged.items() if e < epoch or e in saved} | {epoch: row}
        lines = [",".join(str(rows[e][name]) for name in row) for e in sorted(rows)]
        write_text(self.run.log, "\n".join([",".join(row), *lines]) + "\n")

    def logged_epochs(self):
        """The rows of log.csv, dicts of text; UserError if it cannot be read."""
        if not self.run.log.exists():
            return []
        command = shlex.join(["python", *sys.argv])
        return read_csv(self.run.log, command, ["epoch", "lr"], dtype=str).to_dict("records")

    def delete_optimizers(self, epoch):
        """Delete the states of the optimizer that are not needed after `epoch`.

        Later ones are kept, since they may be of the same training in another process.
        """
        ended = epoch == self.run.epochs and not self.run.extendable
        for path in self.run.folder.glob("optimizer.*.npz"):
            if path < self.run.optimizer_path(epoch) or ended:
                path.unlink(missing_ok=True)
