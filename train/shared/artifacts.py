"""Files that are written whole, and what they were made from.

It imports no backend, so that the Snakefile can use it too. An artifact that was made with other
settings is refused, never overwritten.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

import h5py
import numpy as np

from train.shared.flags import UserError
from train.shared.paths import data_folder, epochs_in, weights_path

VERSION = "2.0.0"


def command_of(script, dataset="...", model="...", seed="...", **flags):
    """The command line of a script for a study, for messages; by default only a folder names it."""
    flags = {"dataset": dataset, "model": model, "seed": seed} | flags
    return " ".join(["python", script, *(f"--{name} {value}" for name, value in flags.items())])


def require(path, step):
    """Return `path` if it exists; else raise UserError, which says which step makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{step}`.")
    return path


# ------------------------------------------------------------------------------------ whole files


@contextlib.contextmanager
def atomic_write(path, suffix=""):
    """A temporary path to write to, which becomes `path` at the end, or is removed on an error.

    So a file that exists is whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{platform.node()}.{os.getpid()}"  # several machines may share the folder
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
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_temporary_files(folder):
    """Remove the temporary files that killed processes of this machine left in a folder."""
    for path in Path(folder).glob(f".*.{platform.node()}.*.tmp*"):
        owner = path.name.split(".tmp")[0].rsplit(".", 1)[1]
        if owner == str(os.getpid()) or not is_running(int(owner)):
            path.unlink(missing_ok=True)


def is_running(pid):
    """Whether a process of this machine is running; True where that cannot be known."""
    if os.name == "nt":  # there os.kill would end the process
        try:
            import psutil  # a dependency of Snakemake
        except ImportError:
            return True
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to somebody else
    return True


def require_space(folder, needed, what):
    """Print how much disk space is needed (bytes, for `what`).

    Raises UserError if the folder cannot be written or has less space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: change its permissions or set DARE_HOME.")
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
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def fingerprint(*arrays):
    """SHA-256 of the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def data_sha256(dataset, *parts):
    """Fingerprint of parts of a prepared data set; by default of x_train and x_validation."""
    parts = parts or ("train", "validation")
    paths = [data_folder(dataset) / f"{a}_{part}.npy" for part in parts for a in "xy"]
    step = f"python data/prepare.py --dataset {dataset}"
    return sha256(*(require(path, step) for path in paths))


def set_attributes(file, provenance):
    """Set the root attributes of an artifact: the version and its provenance, without None."""
    file.attrs["version"] = VERSION
    file.attrs.update({k: v for k, v in provenance.items() if v is not None})


def attributes(path):
    """The root attributes of an HDF5 file; {} where the file is missing or broken."""
    try:
        with h5py.File(path, "r") as file:
            return {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
    except OSError:
        return {}


def recorded_precision(checkpoints):
    """The precision in which the checkpoints in a folder were trained; None without any."""
    if epochs := epochs_in(checkpoints):
        return attributes(weights_path(checkpoints, epochs[-1])).get("precision", "float32")
    return None


def already_made(path, provenance):
    """Whether `path` exists with this provenance; UserError if it has another one."""
    if not path.exists():
        return False
    recorded = attributes(path)
    if not recorded:
        raise UserError(f"{path} is corrupt: delete it and run the same command again.")
    refuse_other_settings(path, recorded, provenance)
    return True


def refuse_other_settings(path, recorded, wanted, made="made", make="make it"):
    """Raise UserError if an artifact was made with another setting than the wanted one.

    Args:
        path: the artifact, for the message.
        recorded: {name: value} of the settings that it was made with.
        wanted: {name: value} of the settings that it must have.
        made: the participle in the message, such as "prepared".
        make: the verb in the message, such as "prepare it".
    """
    if difference := other_setting(recorded, wanted):
        raise UserError(
            f"{path} was {made} with {difference}: it is kept; move it away or delete it to {make} "
            f"again."
        )


def other_setting(recorded, wanted):
    """The first of the wanted settings that differs, as "seed 1, not 0"; None if none does."""
    for name, value in wanted.items():
        if recorded.get(name) != value:
            return f"{name} {_shown(name, recorded.get(name))}, not {_shown(name, value)}"
    return None


@contextlib.contextmanager
def open_artifact(path, step, **expected):
    """Open an HDF5 artifact for reading, if it was made from what is `expected`.

    Raises UserError if it is missing, corrupt or made from something else.
    """
    require(path, step)
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise UserError(f"{path} is corrupt: delete it and make it with `{step}`.") from None
    with file:
        wanted = {name: value for name, value in expected.items() if value is not None}
        if difference := other_setting(file.attrs, wanted):
            raise UserError(
                f"{path} was made from {difference}: move it away and make it with `{step}`."
            )
        yield file


def _shown(name, value):
    """A setting in a message; digests are cut to twelve characters."""
    return str(value)[:12] if name.endswith("sha256") else value


def data_info(dataset):
    """info.json of a prepared data set; {} where there is none, UserError where it is broken."""
    path = data_folder(dataset) / "info.json"
    if not path.exists():
        return {}
    try:
        return {**json.loads(path.read_text(encoding="utf-8-sig"))}  # a list is no info either
    except (ValueError, TypeError) as error:
        step = f"python data/prepare.py --dataset {dataset}"
        raise UserError(f"{path} cannot be read ({error}): delete it and run `{step}`.") from None


def load_array(path, step):
    """An .npy file, mapped from disk rather than read; UserError if missing or broken."""
    require(path, step)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): make it with `{step}`.") from None
