"""The log of stages, and progress bars."""

import contextlib
import datetime
import json
import os
import platform
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from train.artifacts import VERSION


class StageLog(dict):
    """What a stage adds to its line in the log; `idle` says that all was there already."""

    idle = False


@contextlib.contextmanager
def stage(path, title, settings):
    """Log of one stage, a JSON line in `path` beside its artifact, and in short on the terminal.

    Records start, settings, versions, device, how it ended, duration and peak memory, also of a
    stage that fails. "ended": null belongs to one that was killed, "idle" to one that found
    everything there. Yields a StageLog.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    settings = {k: v for k, v in settings.items() if v is not None}
    print(f"{title} ({', '.join(f'{k} {v}' for k, v in settings.items())})", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, record = time.time(), StageLog()
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
