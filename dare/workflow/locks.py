"""A lock that a killed Snakemake left behind is removed, so that the same command goes on.

Snakemake locks its folder and says in the lock which files it makes, but not which process it is.
"""

import json
import platform
import shutil
from pathlib import Path

import psutil  # a dependency of Snakemake


def note_owner(home):
    """Write down that this process holds the lock of the folder `home`."""
    process = psutil.Process()
    owner = {"host": platform.node(), "pid": process.pid, "started": process.create_time()}
    owner_path(home).parent.mkdir(parents=True, exist_ok=True)
    owner_path(home).write_text(json.dumps(owner))


def prepare_to_lock(home):
    """Remove the lock of a dead process of this machine, and note this process as the next owner.

    A lock that another process holds stays, with its owner. The note is made before Snakemake
    locks the folder, because this process may be killed in between.
    """
    path = owner_path(home)
    locks = path.with_name("locks")
    if path.exists():
        owner = json.loads(path.read_text() or "{}")
        if owner.get("host") != platform.node() or is_running(owner):
            return
        path.unlink()
        if any(locks.glob("*")):
            print("Snakemake was killed here: its lock is removed, and the work goes on.")
            shutil.rmtree(locks, ignore_errors=True)
    if not any(locks.glob("*")):
        note_owner(home)


def forget_owner(home):
    """Called when Snakemake ends in order and gives up its lock itself."""
    owner_path(home).unlink(missing_ok=True)


def owner_path(home):
    return Path(home) / ".snakemake" / "owner.json"


def is_running(owner):
    """Whether the process still runs, and is not another one with its number."""
    try:
        return psutil.Process(owner["pid"]).create_time() == owner["started"]
    except psutil.NoSuchProcess:
        return False
