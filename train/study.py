"""A study: one trained network and the folder of everything that is made from it."""

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from train import artifacts, params
from train.artifacts import (
    attributes,
    checkpoint_path,
    data_folder,
    epochs_in,
    open_artifact,
    require,
    sha256,
    study_folder,
)
from train.backend import keras
from train.checkpoints import final_checkpoint, load_architecture, load_weights
from train.flags import UserError
from train.utils import load_data, up_to


def known_layer(model):
    """Name of the chosen layer of a network in train/params.py, or None."""
    return params.layer_of(model.name, params.is_small_image(model.input_shape[1:]))


def default_layer(model):
    """Name of the chosen layer of a network of train/models (train/params.py)."""
    layer = known_layer(model)
    if layer is None:
        names = ", ".join(known.name for known in model.layers[1:-1])
        raise UserError(
            f"{model.name} has no chosen layer in train/params.py: name one with --choose_layer, "
            f"of {names}."
        )
    return layer


@dataclass
class Study:
    """One trained network, and the folder of all that is made from it; what every step opens.

    checkpoint: path of the final model's weights. classifier: the network, with these weights.
    provenance: dataset, model, seed and the fingerprints of checkpoint and data, the attributes of
    everything that is made from this study.
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
        """The study that flags --dataset, --model and --seed name; UserError if it is missing."""
        folder = study_folder(args.dataset, args.model, args.seed)
        if not folder.exists():
            script = "alexnet.py" if args.model == "alexnet" else f"train.py --model {args.model}"
            raise UserError(f"{folder} is missing: train it with train/{script}.")
        checkpoint = final_checkpoint(folder)
        provenance = {"dataset": args.dataset, "model": args.model, "seed": args.seed}
        provenance["checkpoint_sha256"] = sha256(checkpoint)
        require(
            data_folder(args.dataset) / "x_train.npy", f"data/prepare.py --dataset {args.dataset}"
        )
        provenance["data_sha256"] = artifacts.data_sha256(args.dataset)
        classifier = load_weights(load_architecture(folder), checkpoint)
        return cls(args.dataset, args.model, args.seed, folder, checkpoint, classifier, provenance)

    @property
    def names(self):
        """{"dataset", "model", "seed"}, as flags and tables call them."""
        return {"dataset": self.dataset, "model": self.model, "seed": self.seed}

    def original(self):
        """The classifier, with the weights of the final checkpoint again, all of them trainable."""
        self.classifier.trainable = True
        return load_weights(self.classifier, self.checkpoint)

    def with_weights(self, weights, do):
        """(key, do(classifier, key)) for every {key: weights file}, as they are ready.

        Two at a time, in threads with a classifier each: one prepares what the other computes.
        """
        own = threading.local()

        def done(key):
            if not hasattr(own, "classifier"):
                own.classifier = load_architecture(self.folder)
            return key, do(load_weights(own.classifier, weights[key]), key)

        pool = ThreadPoolExecutor(2)
        try:
            for ready in as_completed([pool.submit(done, key) for key in weights]):
                yield ready.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def data(self, part):
        """load_data, refused where it is not the data that the network was trained on."""
        x, y = load_data(self.dataset, part)
        takes, classes = self.classifier.input_shape[1:], self.classifier.output_shape[-1]
        if x.shape[1:] != takes or y.min() < 0 or y.max() >= classes:
            raise UserError(
                f"data/{self.dataset} has {part} images of shape {x.shape[1:]} and labels "
                f"{y.min()} to {y.max()}, but the model takes {takes} and has {classes} classes: "
                f"prepare the data or train again."
            )
        trained_on = attributes(self.checkpoint).get("data_sha256")
        if trained_on != self.provenance["data_sha256"]:
            raise UserError(
                f"{self.folder} was trained on data_sha256 {str(trained_on)[:12]}, not "
                f"{self.provenance['data_sha256'][:12]}: data/{self.dataset} was prepared anew "
                f"since, so train again, under another --seed or with this folder moved away."
            )
        return x, y

    def command(self, script, **flags):
        """The command that makes something of this study, for messages."""
        return f"python {script} " + " ".join(f"--{k} {v}" for k, v in (self.names | flags).items())

    def open_checked(self, path, step, **expected):
        """open_artifact of something that must have been made from this study's checkpoint."""
        same = {k: self.provenance[k] for k in ("checkpoint_sha256", "data_sha256")}
        return open_artifact(path, step, **same, **expected)

    def layer(self, choose_layer):
        """The chosen layer: the one asked for, which has to exist, or the network's own."""
        layer = choose_layer or default_layer(self.classifier)
        up_to(self.classifier, layer)
        return layer

    def mined_layer(self):
        """The layer whose targets name the mined images: its own, or else the first mined one."""
        known = known_layer(self.classifier)
        mined = [attributes(path) for path in sorted(self.folder.glob("ats_*.h5"))]
        layers = [about["choose_layer"] for about in mined if "first" in about]
        return known or (layers[0] if layers else default_layer(self.classifier))

    def history(self, first=None, last=None):
        """{epoch: path} of the historical checkpoints first..last and of the final one.

        Default: the second half of training, without its last epoch.
        Raises UserError if the history is too short, or lacks one of them.
        """
        epochs = epochs_in(self.folder / "checkpoints")
        final = epochs[-1]
        first = first or final // 2 + final % 2
        last = last or final - 1
        if not 1 <= first <= last < final:
            raise UserError(
                f"--first {first} to --last {last} is no stretch of history before the final "
                f"epoch {final} of {self.folder}: train for more epochs or choose another."
            )
        if missing := [e for e in range(first, last + 1) if e not in epochs]:
            raise UserError(
                f"{checkpoint_path(self.folder, missing[0])} is missing: train again, without "
                f"--keep_from or with an earlier one."
            )
        return {e: checkpoint_path(self.folder, e) for e in [*range(first, last + 1), final]}
