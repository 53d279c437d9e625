"""What every script needs around the science: where artifacts lie, flags, plain errors, files that are whole or absent.

Imports nothing slow, so that the Snakefile can use it too.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np

VERSION = "1.0.0"
HOME = Path(os.environ.get("DARE_HOME", Path(__file__).resolve().parents[1]))  # data/ and models/ lie below it

DATASETS = ("digits", "fashion_mnist", "cifar10", "svhn")
ATTACKS = ("fgsm", "bim", "pgd", "cw", "jsma")

# Backends read these when they are first imported, which is after this module: repeatable sums, and a quiet terminal.
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def quiet():
    """Keep what a backend's libraries print to stderr while they are imported off the terminal."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class UserError(Exception):
    """Something the user can mend. Its text is one plain sentence: what was wrong, and what to do."""


# ---------------------------------------------------------------------------------------------------------------- flags


def _number(kind, low, high, what, low_open=False):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        inside = (low < value if low_open else low <= value) and value <= high and math.isfinite(value)
        if not inside:
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


def _listed(names):
    def parse(text):
        for name in text.split(","):
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose from {', '.join(names)}")
        return text

    return parse


def _name(text):
    """A data set or model may be the user's own, so any name that is a plain folder name will do."""
    if not text or text != Path(text).name or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain folder name")
    return text


_rate = _number(float, 0, 1e3, "a learning rate above 0", low_open=True)
_count = _number(int, 1, 10**9, "a whole number of 1 or more")
_index = _number(int, 0, 2**31 - 1, "a whole number of 0 or more")

FLAGS = {
    "dataset": (_name, "data set: digits, fashion_mnist, cifar10, svhn, or the name of your folder of images"),
    "model": (_name, "network: alexnet, vgg16, vgg19"),
    "seed": (_index, "training seed (prepare.py: seed of the half split)"),
    "source": (Path, "folder with the official files or, for another data set, with train/<class>/ and test/<class>/"),
    "limit": (_count, "keep this many random training images, balanced over the classes"),
    "epochs": (_count, "epochs; milestones of the learning rate scale with them"),
    "keep_from": (_count, "save checkpoints from this epoch on only (mining needs the later ones)"),
    "per": (_number(float, 0, 1, "a share in (0, 1]", low_open=True), "share of a neuron's synapses in the slice"),
    "first": (_count, "first historical checkpoint to mine (default: the second half of training)"),
    "last": (_count, "last historical checkpoint to mine (default: the last but one)"),
    "choose_layer": (str, "layer whose activations are the regression targets (default: by network)"),
    "lr_rate": (_rate, "learning rate (default: by network)"),
    "epoch": (_count, "epochs of tuning"),
    "run": (_index, "number of the run: seed of the tuning"),
    "attack": (_listed((*ATTACKS, "all")), "attack, or a list with commas, or all: " + ", ".join(ATTACKS)),
    "samples": (_count, "adversarial samples to make"),
    "mode": (_listed(("minimal", "fixed")), "minimal: smallest perturbation of every image; fixed: one epsilon"),
    "epsilon": (_number(float, 0, 1e3, "an epsilon above 0", low_open=True), "size of the perturbation, mode fixed"),
    "steps": (_count, "iterations (cw: per binary search step) instead of the attack's own"),
    "adaptive": (bool, "attack every selected model itself, too"),
    "paper": (bool, "make the tables from the paper's figures in dare/paper alone"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def options(doc, argv=None, **constants):
    """Command line of a script: every constant `name = value` of its top becomes the flag --name.

    The value of a constant goes through the same check as a flag, so that an edited constant is refused as well.
    Raises UserError for a wrong value or an unknown flag.
    """
    usage = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=doc, formatter_class=usage, allow_abbrev=False)
    for name, value in constants.items():
        kind, text = FLAGS[name]
        shown = f"{text} [{value}]" if value is not None else text
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=value, help=shown)
        else:
            parser.add_argument(f"--{name}", type=kind, default=None if value is None else str(value), help=shown.replace("%", "%%"))
    return parser.parse_args(argv)


def run(main):
    """Run a script's main(): anything the user can mend ends in one sentence on stderr and exit code 2."""
    script = Path(sys.argv[0]).name
    sys.excepthook, sys.unraisablehook = _without_hdf5(sys.excepthook), _without_hdf5(sys.unraisablehook)
    try:
        main()
    except UserError as error:
        sys.exit(_say(script, str(error)))
    except OSError as error:
        if error.errno is None and "requested and" not in str(error):  # how NumPy says that a write was cut short
            raise
        what = os.strerror(error.errno) if error.errno else f"A file could not be written whole ({error})"
        where = f" ({error.filename})" if error.filename else ""
        _say(script, f"{what}{where}: free some space or mend the folder, then run again.")
        sys.stdout.flush()
        os._exit(2)  # at a normal exit HDF5 would write to its broken file again, and crash
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def _without_hdf5(usual):
    """A hook that does not show how HDF5 fails to close the files that it could not write; the first failure is reported."""

    def hook(*about):
        error = about[1] if len(about) == 3 else about[0].exc_value
        if "Can't decrement id ref count" not in str(error):
            usual(*about)

    return hook


def _say(script, message):
    print(f"{script}: {message}", file=sys.stderr, flush=True)
    return 2


# ------------------------------------------------------------------------------------------------------------- folders


def data_folder(dataset):
    return HOME / "data" / dataset


def model_folder(dataset, model, seed=0):
    """models/<dataset>_<model>, with _seed<N> for another training seed than 0."""
    return HOME / "models" / (f"{dataset}_{model}" + (f"_seed{seed}" if seed else ""))


def weights_path(folder, epoch):
    """The classifier after `epoch` epochs, in a folder of checkpoints or of a tuned model."""
    return folder / f"model.{epoch:03d}.weights.h5"


def checkpoint_path(folder, epoch):
    return weights_path(folder / "checkpoints", epoch)


def tuned_folder(folder, method, run=0, **changed):
    """The folder of one tuned model: <method>, and the flags that were not those of the script (lr_rate, per, ...)."""
    short = {"lr_rate": "lr", "choose_layer": ""}
    name = method + "".join(f"_{short.get(k, k)}{v}" for k, v in changed.items())
    return folder / (name + (f"_run{run}" if run else ""))


def epochs_in(folder):
    """Epochs whose weights lie in `folder`, ascending."""
    return sorted(int(p.name.split(".")[1]) for p in folder.glob("model.[0-9]*.weights.h5"))


def need(path, step):
    """`path`, or a UserError that says which step makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{step}`.")
    return path


def load_data(dataset, part):
    """One part (train, validation or test) of a prepared data set.

    Returns x uint8 (n, h, w, c), mapped from disk rather than read, and y int64 (n,).
    Raises UserError if a file is missing, broken or not what prepare.py writes.
    """
    arrays = []
    for letter in "xy":
        path = need(data_folder(dataset) / f"{letter}_{part}.npy", f"python data/prepare.py --dataset {dataset}")
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}): run data/prepare.py again.") from None
    x, y = arrays
    if x.ndim != 4 or x.dtype != np.uint8 or y.shape != x.shape[:1] or y.dtype.kind not in "ui" or not len(x):
        raise UserError(
            f"{path.parent} holds {x.dtype} images of shape {x.shape} and {y.dtype} labels of shape {y.shape} in its "
            f"{part} part, not uint8 (n, h, w, c) and integers (n,): run data/prepare.py again."
        )
    return x, np.asarray(y, "int64")


def pixels(x):
    """Images as the networks take them: float32 in [0, 1], from uint8 or from themselves."""
    return np.asarray(x, "float32") / 255 if x.dtype == np.uint8 else np.asarray(x, "float32")


# ------------------------------------------------------------------------------------------- whole files, and their past


@contextlib.contextmanager
def whole(path, suffix=""):
    """A temporary path to write `path` under: synced and renamed at the end, removed if anything goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    with whole(path) as temporary:
        temporary.write_text(text)


def sweep(folder):
    """Remove the temporary files that a killed process left in `folder`."""
    for path in folder.glob(".*.tmp*"):
        with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
            owner = int(path.name.split(".tmp")[0].rsplit(".", 1)[1])
            if owner == os.getpid() or not Path(f"/proc/{owner}").exists():
                path.unlink(missing_ok=True)


def sha256(*paths):
    """SHA-256 of one file, or of the digests of several."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def data_sha256(dataset):
    """Fingerprint of a prepared data set's training half and mining half."""
    return sha256(*(data_folder(dataset) / f"{a}_{p}.npy" for p in ("train", "validation") for a in "xy"))


def set_attributes(file, **made_from):
    """Root attributes of an artifact: the project's version and what it was made from; a None is left out."""
    file.attrs["version"] = VERSION
    file.attrs.update({k: v for k, v in made_from.items() if v is not None})


def attributes(path):
    """The root attributes of an HDF5 file, as Python values; {} where the file is missing or broken."""
    try:
        with h5py.File(path, "r") as file:
            return {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
    except OSError:
        return {}


@contextlib.contextmanager
def artifact(path, step, **expected):
    """Open an HDF5 artifact for reading, if it was made from what is `expected`.

    Raises UserError if it is missing or corrupt, or if it was made from something else; the sentence names both.
    """
    need(path, step)
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise UserError(f"{path} is corrupt: delete it and make it again with `{step}`.") from None
    with file:
        for name, wanted in expected.items():
            found = file.attrs.get(name)
            if wanted is not None and found != wanted:
                short = [str(v)[:12] for v in (found, wanted)]
                raise UserError(f"{path} was made from {name} {short[0]}, not {short[1]}: make it with `{step}`.")
        yield file


def disk_space(folder, needed, what):
    """Raise UserError if `folder` cannot be written or has less than `needed` bytes; say what will be used."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: change its permissions or set DARE_HOME to another folder.")
    if free < needed:
        raise UserError(f"{what} take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: free some space.")
    print(f"{what} take {needed / 1e9:.2f} GB of the {free / 1e9:.0f} GB free.", flush=True)


# ----------------------------------------------------------------------------------------------------------- the record


@contextlib.contextmanager
def stage(path, title, **settings):
    """Log of one stage, a JSON line in `path` beside its artifact, and in short on the terminal.

    Records start, settings, versions, device, how it ended, duration and peak memory, also of a stage that fails. A
    line with "ended": null belongs to one that was killed. Yields a dict; what is put into it is recorded, too.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items() if v is not None}
    print(f"{title} ({', '.join(f'{k} {v}' for k, v in settings.items())})", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, entry = time.time(), {"stage": title, "start": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"}
    entry |= {"settings": settings, "version": VERSION, "python": platform.python_version(), "command": sys.argv}
    entry |= {"packages": {p: metadata.version(p) for p in ("keras", "numpy", "foolbox", backend_package())}}
    entry |= {"backend": backend_package(), "device": device(), "ended": None}

    def write(**end):
        with open(path, "a") as file:
            file.write(json.dumps(entry | more | end, default=str) + "\n")

    more = {}
    write()
    try:
        yield more
    except BaseException as error:
        write(ended=f"{type(error).__name__}: {error}", **_spent(begun))
        raise
    write(ended="done", **_spent(begun))
    spent = _spent(begun)
    print(f"{title}: done in {spent['seconds']} s, peak memory {spent['peak_memory_gb']} GB", flush=True)


def _spent(begun):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(time.time() - begun, 1), "peak_memory_gb": round(peak / 1e9, 2)}


def backend_package():
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def device():
    """The processor's name, or that of the accelerator where the backend, if already imported, sees one."""
    keras = sys.modules.get("keras")
    accelerators = [d for d in keras.distribution.list_devices() if "cpu" not in d.lower()] if keras else []
    return ", ".join(accelerators) or f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
