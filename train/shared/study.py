"""A study: one trained network, and the folder of everything that is made from it."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from train import params
from train.shared.artifacts import (
    attributes,
    data_sha256,
    fingerprint,
    open_hdf5,
    other_setting,
    require,
    sha256,
)
from train.shared.backend import keras
from train.shared.checkpoints import final_checkpoint, load_architecture, load_weights
from train.shared.flags import UserError, command_of
from train.shared.graph import calls_of, find_call
from train.shared.paths import (
    checkpoint_path,
    slice_path,
    study_folder,
    study_folders,
    targets_path,
)
from train.utils import Rows, load_data


@dataclass
class Study:
    """One trained network and its folder; steps 3 to 8 open one.

    checkpoint: path of the final model's weights.
    classifier: the network with these weights.
    provenance: dataset, model, seed, and the fingerprints of checkpoint and data. Everything that
        is made from the study has them as attributes.
    """

    dataset: str
    model: str
    seed: int
    folder: Path
    checkpoint: Path
    classifier: keras.Model
    provenance: dict

    @classmethod
    def open(cls, args):
        """The study that --dataset, --model and --seed name; UserError if it is missing."""
        folder = study_folder(args.dataset, args.model, args.seed)
        require(folder, command_of("train/train.py", args.dataset, args.model, args.seed))
        checkpoint = final_checkpoint(folder)
        provenance = {
            "dataset": args.dataset,
            "model": args.model,
            "seed": args.seed,
            "checkpoint_sha256": sha256(checkpoint),
            "data_sha256": data_sha256(args.dataset),
        }
        classifier = load_weights(load_architecture(folder), checkpoint)
        return cls(args.dataset, args.model, args.seed, folder, checkpoint, classifier, provenance)

    @property
    def names(self):
        """{"dataset", "model", "seed"}, named as in flags and tables."""
        return {"dataset": self.dataset, "model": self.model, "seed": self.seed}

    def original(self):
        """The classifier with the final checkpoint's weights, all of them trainable."""
        self.classifier.trainable = True
        return load_weights(self.classifier, self.checkpoint)

    def data(self, part):
        """One part of the data set, as load_data gives it.

        Raises UserError if it does not fit the network or is not what it was trained on.
        """
        x, y = load_data(self.dataset, part)
        shape = self.classifier.input_shape[1:]
        classes = self.classifier.output_shape[-1]
        if x.shape[1:] != shape or y.min() < 0 or y.max() >= classes:
            raise UserError(
                f"data/{self.dataset} has {part} images of shape {x.shape[1:]} and labels "
                f"{y.min()} to {y.max()}, but the model takes {shape} and has {classes} classes: "
                f"prepare the data or train again."
            )
        trained_on = attributes(self.checkpoint).get("data_sha256")
        if trained_on != self.provenance["data_sha256"]:
            raise UserError(
                f"{self.folder} was trained on data_sha256 {str(trained_on)[:12]}, not "
                f"{self.provenance['data_sha256'][:12]}: data/{self.dataset} was prepared again "
                f"since, so train again, under another --seed or with this folder moved away."
            )
        return x, y

    def command(self, script, **flags):
        """The command line of a script for this study, for messages."""
        return command_of(script, **self.names, **flags)

    @contextmanager
    def open_checked(self, path, step, **expected):
        """An HDF5 artifact of this study, open for reading; step: the command that makes it.

        Raises UserError if it is missing, cannot be opened, or was made from another checkpoint or
        data set, or from something else than what is `expected`.
        """
        require(path, step)
        expected |= {k: self.provenance[k] for k in ("checkpoint_sha256", "data_sha256")}
        with open_hdf5(path, f"delete it and make it with `{step}`") as file:
            if difference := other_setting(file.attrs, expected):
                raise UserError(
                    f"{path} was made from {difference}: move it away and make it with `{step}`."
                )
            yield file

    def open_slice(self, per):
        """The open slice file, for a `with` statement; UserError if it is missing."""
        path = slice_path(self.folder, per)
        step = self.command("dare/nnslicer.py", per=f"{per:g}")
        return self.open_checked(path, step, per=per)

    def open_targets(self, choose_layer, name=None):
        """The open file of targets of a layer, for a `with` statement.

        It is ats_<layer>.h5 or, for a control that has targets of its own, ats_<layer>_<name>.h5.
        """
        path = targets_path(self.folder, choose_layer, name)
        step = self.command("dare/get_ats.py", choose_layer=choose_layer)
        return self.open_checked(path, step, choose_layer=choose_layer)

    def mined_images(self, choose_layer=None):
        """The mined images of a layer (None: the default one): images, labels, and provenance.

        The images are indexed like an array (m, h, w, c); labels are int64 (m,).
        """
        with self.open_targets(self.layer(choose_layer)) as file:
            index = file["index"][()]
        x, y = self.data("validation")
        return Rows(x, index), y[index], {"mined_sha256": fingerprint(index)}

    def layer(self, choose_layer=None):
        """Path of the layer to transform: the one that is asked for, or the network's default.

        Raises UserError if the network has no such layer, or no default.
        """
        choose_layer = choose_layer or params.default_layer(self.dataset, self.model)
        if choose_layer is None:
            names = ", ".join(call.path for call in calls_of(self.classifier)[:-1])
            raise UserError(
                f"{self.model} has no chosen layer in train/params.py: add it there, or name "
                f"one with --choose_layer, of {names}."
            )
        return find_call(self.classifier, choose_layer).path

    def mined_checkpoints(self, layer=None):
        """{epoch: path} of the historical checkpoints that were mined for a layer.

        None: for the default one. Raises UserError if one was deleted since.
        """
        with self.open_targets(self.layer(layer)) as file:
            epochs = range(int(file.attrs["first"]), int(file.attrs["last"]) + 1)
        paths = {epoch: checkpoint_path(self.folder, epoch) for epoch in epochs}
        if missing := [path for path in paths.values() if not path.exists()]:
            raise UserError(
                f"{missing[0]} is missing: control-random and control-swa need every checkpoint "
                f"that was mined; leave them out (--control), or put it back."
            )
        return paths

    def other_seeds(self):
        """{seed: path} of the final checkpoints of the network's other seeds (control-seed).

        Left out are seeds whose training has not ended, or was on other data or of another length.
        """
        of_checkpoint = attributes(self.checkpoint)
        ours = {name: of_checkpoint.get(name) for name in ("data_sha256", "epochs")}
        checkpoints = {}
        folders = study_folders(self.folder.parent, self.dataset, self.model)
        for folder, seed in folders.items():
            if folder == self.folder:
                continue
            try:
                checkpoint = final_checkpoint(folder)
            except UserError:
                continue
            if difference := other_setting(attributes(checkpoint), ours):
                print(f"control-seed leaves out {folder}: it has {difference}.", flush=True)
            else:
                checkpoints[seed] = checkpoint
        return dict(sorted(checkpoints.items()))
