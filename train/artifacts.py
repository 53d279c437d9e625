"""Where everything lies, whole files, what they were made from, and the log.

Imports no backend, so that the Snakefile can use it too. The settings that make a difference are
in the path of what they made, or in its attributes: what is there and was made otherwise is
refused, never overwritten.
"""

import contextlib
import datetime
import hashlib
import json
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
from tqdm import tqdm

from train.flags import UserError

VERSION = "2.0.0"
# data/ and models/ lie below it.
HOME = Path(os.environ.get("DARE_HOME", Path(__file__).resolve().parents[1]))

# ------------------------------------------------------------------------------------------ paths


def data_folder(dataset):
    return HOME / "data" / dataset


def study_folder(dataset, model, seed=0):
    return HOME / "models" / f"{dataset}_{model}_seed{seed}"


def weights_path(folder, epoch):
    """The classifier after `epoch` epochs, in a folder of checkpoints or of a tuned model."""
    return Path(folder) / f"model.{int(epoch):03d}.weights.h5"


def checkpoint_path(folder, epoch):
    return weights_path(Path(folder) / "checkpoints", epoch)


def epochs_in(folder):
    """Epochs whose weights lie in `folder`, ascending."""
    return sorted(int(p.name.split(".")[1]) for p in Path(folder).glob("model.[0-9]*.weights.h5"))


def slice_path(folder, per):
    return Path(folder) / f"slice_{per:g}.h5"


def targets_path(folder, layer):
    return Path(folder) / f"ats_{layer}.h5"


def samples_path(folder, attack):
    return Path(folder) / "adv" / f"{attack}.h5"


def tuned_name(method, layer=None, per=None, batches=None, lr_rate=None, run=None):
    """Name of a tuned model's folder: the method, and every setting that makes a difference."""
    name = method
    name += f"_{layer}" if layer else ""
    name += f"_per{per:g}" if per is not None else ""
    name += f"_batches{batches}" if batches is not None else ""
    name += f"_lr{lr_rate:g}" if lr_rate is not None else ""
    return name + (f"_run{run}" if run is not None else "")


def tuned_folder(folder, *settings, **more_settings):
    return Path(folder) / "tuned" / tuned_name(*settings, **more_settings)


def need(path, step):
    """`path`, or a UserError that says which step makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{step}`.")
    return path


# ------------------------------------------------------------------------------------ whole files


@contextlib.contextmanager
def atomic_write(path, suffix=""):
    """A temporary path to write `path` under: synced and renamed at the end, removed on error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{platform.node()}.{os.getpid()}"  # hosts of a cluster share the folder
    temporary = path.with_name(f".{path.name}.{owner}.tmp{suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def remove_temporary_files(folder):
    """Remove the temporary files that a killed process of this machine left in `folder`."""
    for path in Path(folder).glob(f".*.{platform.node()}.*.tmp*"):
        owner = path.name.split(".tmp")[0].rsplit(".", 1)[1]
        if owner == str(os.getpid()) or not is_running(int(owner)):
            path.unlink(missing_ok=True)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, for somebody else
    return True


def require_space(folder, needed, what):
    """Say what will be used; UserError if `folder` cannot be written or has less than that."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: mend its permissions, or set DARE_HOME.")
    if free < needed:
        raise UserError(
            f"{what} take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
            f"free some space."
        )
    print(f"{what} take {needed / 1e9:.2f} GB of the {free / 1e9:.0f} GB free.", flush=True)


# ---------------------------------------------------------------------- what a file was made from


def sha256(*paths):
    """SHA-256 of one file, or of the digests of several."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def fingerprint(*arrays):
    """SHA-256 of the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def data_sha256(dataset, *parts):
    """Fingerprint of parts of a prepared data set; by default of x_train and x_validation."""
    parts = parts or ("train", "validation")
    return sha256(*(data_folder(dataset) / f"{a}_{part}.npy" for part in parts for a in "xy"))


def set_attributes(file, **made_from):
    """Root attributes of an artifact: the version and what it was made from, without the None."""
    file.attrs["version"] = VERSION
    file.attrs.update({k: v for k, v in made_from.items() if v is not None})


def attributes(path):
    """The root attributes of an HDF5 file; {} where the file is missing or broken."""
    try:
        with h5py.File(path, "r") as file:
            return {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
    except OSError:
        return {}


def is_made(path, made_from):
    """Whether `path` is there, made from just this; UserError if it was made from anything else."""
    if not path.exists():
        return False
    found = attributes(path)
    if not found:
        raise UserError(f"{path} is corrupt: delete it and run the same command again.")
    refuse_other_settings(path, found, made_from)
    return True


def refuse_other_settings(path, found, wanted, made="made", make="make it"):
    """UserError if what was `found` beside `path`, {name: value}, is not what is `wanted`."""
    for name, value in wanted.items():
        if found.get(name) != value:
            other, value = (
                _short(v) if name.endswith("sha256") else v for v in (found.get(name), value)
            )
            raise UserError(
                f"{path} was {made} with {name} {other}, not {value}: it is kept; move it away or "
                f"delete it to {make} anew."
            )


@contextlib.contextmanager
def open_artifact(path, step, **expected):
    """Open an HDF5 artifact for reading, if it was made from what is `expected`.

    Raises UserError if it is missing, corrupt or made from something else, naming both.
    """
    need(path, step)
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise UserError(f"{path} is corrupt: delete it and make it with `{step}`.") from None
    with file:
        for name, wanted in expected.items():
            found = file.attrs.get(name)
            if wanted is not None and found != wanted:
                raise UserError(
                    f"{path} was made from {name} {_short(found)}, not {_short(wanted)}: "
                    f"move it away and make it with `{step}`."
                )
        yield file


def _short(value):
    return str(value)[:12]


# -------------------------------------------------------------------------------------------- log


class Record(dict):
    """What a stage adds to its line in the log; `idle` says that all was there already."""

    idle = False


@contextlib.contextmanager
def stage(path, title, **settings):
    """Log of one stage, a JSON line in `path` beside its artifact, and in short on the terminal.

    Records start, settings, versions, device, how it ended, duration and peak memory, also of a
    stage that fails. "ended": null belongs to one that was killed, "idle" to one that found
    everything there. Yields a Record.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    settings = {k: v for k, v in settings.items() if v is not None}
    print(f"{title} ({', '.join(f'{k} {v}' for k, v in settings.items())})", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, record = time.time(), Record()
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    entry = {
        "stage": title,
        "start": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
        "settings": settings,
        "version": VERSION,
        "python": platform.python_version(),
        "command": sys.argv,
        "packages": {p: metadata.version(p) for p in ("keras", "numpy", "foolbox", backend)},
        "backend": backend,
        "device": device(),
        "ended": None,
    }

    def write(**end):
        with open(path, "a") as file:
            file.write(json.dumps(entry | record | end, default=str) + "\n")

    write()
    try:
        yield record
    except BaseException as error:
        write(ended=f"{type(error).__name__}: {error}", **_spent(begun))
        raise
    spent = _spent(begun)
    write(ended="idle" if record.idle else "done", **spent)
    end = "all was there" if record.idle else f"done in {spent['seconds']} s"
    print(f"{title}: {end}, peak memory {spent['peak_memory_gb']} GB", flush=True)


def _spent(begun):
    return {"seconds": round(time.time() - begun, 1), "peak_memory_gb": round(peak_memory(), 2)}


def peak_memory():
    """The most memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def device():
    """The accelerators that the backend, if it is imported, sees, or the processor."""
    backend = sys.modules.get("train.backend")
    names = backend.accelerators() if backend else []
    return (
        ", ".join(names) or f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )


LINES = {"mininterval": 30, "maxinterval": 30, "delay": 10}  # seconds
LINES |= {"bar_format": "{desc}: {n_fmt} of {total_fmt}, {remaining} to go\n"}


def progress(iterable=None, **about):
    """A tqdm bar on a terminal; elsewhere a line every half minute, once ten seconds are over."""
    about |= {} if sys.stderr.isatty() else LINES | {"file": sys.stdout}
    return tqdm(iterable, **about)


def data_info(dataset):
    """info.json of a prepared data set; {} where there is none."""
    path = data_folder(dataset) / "info.json"
    return json.loads(path.read_text()) if path.exists() else {}


def load_array(path, step):
    """An .npy file, mapped from disk rather than read; UserError if missing or broken."""
    need(path, step)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): make it with `{step}`.") from None
