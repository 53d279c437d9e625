"""Files that are written whole, and what they were made from.

It imports no backend, so that the Snakefile can use it too. An artifact that was made with other
settings is refused, never overwritten.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from train.shared.flags import UserError
from train.shared.paths import data_folder

VERSION = "2.0.0"


def require(path, step):
    """Return `path` if it exists; else raise UserError, which says which step makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{step}`.")
    return path


# ---------------------------------------------------------------------------------- whole files


@contextlib.contextmanager
def atomic_write(path):
    """A temporary path to write to, which becomes `path` at the end, or is removed on an error.

    So a file that exists is whole. Several processes, on several machines, may write the same file.
    The temporary name ends as `path` does, because some libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{platform.node()}.{os.getpid()}.{path.name}")
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


# ---------------------------------------------------------------------- what a file was made from


def set_attributes(file, provenance):
    """Set the root attributes of an artifact: the version and its provenance, without None."""
    file.attrs["version"] = VERSION
    file.attrs.update({k: v for k, v in provenance.items() if v is not None})


@contextlib.contextmanager
def open_hdf5(path, advice="delete it and make it again"):
    """An HDF5 file, open for reading; UserError, one sentence, if it cannot be opened."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"{path} may not be read: change its permissions.") from None
        if error.errno in (errno.EAGAIN, errno.ENOLCK) or "unable to lock" in str(error):
            raise UserError(
                f"{path} is locked by another program, or its file system has no locks: close that "
                f"program, or set HDF5_USE_FILE_LOCKING=FALSE."
            ) from None
        raise UserError(f"{path} is corrupt: {advice}.") from None
    with file:
        yield file


def attributes(path):
    """The root attributes of an HDF5 file; {} if it is missing, UserError if it is broken."""
    if not Path(path).exists():
        return {}
    with open_hdf5(path) as file:
        return {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}


def check(path, expected):
    """Whether an artifact exists; UserError if it was made from something else than `expected`.

    expected: {name: value} of attributes; None: the file must not have it.
    """
    if not path.exists():
        return False
    check_settings(path, attributes(path), expected)
    return True


def check_settings(path, recorded, expected, made="made"):
    """Raise UserError if what is recorded about an artifact differs from what is expected."""
    if difference := other_setting(recorded, expected):
        raise UserError(
            f"{path} was {made} with {difference}: it is kept; move it away or delete it to make "
            f"it again."
        )


def other_setting(recorded, expected):
    """The first expected setting that differs, as "seed 1, not 0"; None if none does."""
    for name, value in expected.items():
        found = recorded.get(name)
        if found != value:
            # Twelve characters of a digest are enough to tell two apart.
            length = 12 if name.endswith("sha256") else None
            return f"{name} {str(found)[:length]}, not {str(value)[:length]}"
    return None


# ---------------------------------------------------------------------------------- fingerprints


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


# ---------------------------------------------------------------------------------------- tables


def read_csv(path, step, columns, dtype=None):
    """A table that a step wrote, as a DataFrame; data sets named "007" or "NA" stay text.

    columns: some that it must have. dtype: as in pandas.read_csv.
    Raises UserError if it is missing, empty or cut, or if a spreadsheet has saved it otherwise.
    """
    import pandas as pd  # which most steps do not need

    text = require(path, step).read_text(encoding="utf-8-sig", errors="replace")
    header = text.split("\n")[0].split(",")
    if not set(columns) <= set(header) or not text.endswith("\n"):
        raise UserError(
            f"{path} is empty, truncated or no longer comma-separated: move it away and make it "
            f"again with `{step}`."
        )
    texts = dict.fromkeys(("dataset", "model", "sha256"), str)
    na_values = {column: [""] for column in header if column not in texts}
    return pd.read_csv(
        io.StringIO(text), dtype=dtype or texts, keep_default_na=False, na_values=na_values
    )


# ------------------------------------------------------------------------------ a prepared data set


def prepare_command(dataset):
    return f"python data/prepare.py --dataset {quote(dataset)}"


def data_sha256(dataset, *parts):
    """Fingerprint of parts of a prepared data set; by default of x_train and x_validation."""
    parts = parts or ("train", "validation")
    paths = [data_folder(dataset) / f"{a}_{part}.npy" for part in parts for a in "xy"]
    return sha256(*(require(path, prepare_command(dataset)) for path in paths))


def data_info(dataset):
    """info.json of a prepared data set; {} where there is none, UserError where it is broken."""
    path = data_folder(dataset) / "info.json"
    if not path.exists():
        return {}
    try:
        return {**json.loads(path.read_text(encoding="utf-8-sig"))}  # also refuses a list
    except (ValueError, TypeError) as error:
        step = prepare_command(dataset)
        raise UserError(f"{path} cannot be read ({error}): delete it and run `{step}`.") from None


def load_array(path, step):
    """An .npy file, mapped from disk rather than read; UserError if missing or broken."""
    require(path, step)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): make it with `{step}`.") from None
