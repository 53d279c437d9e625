"""The log of stages, and progress bars."""

import contextlib
import datetime
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from train.shared.artifacts import VERSION


@contextlib.contextmanager
def stage(path, title, settings):
    """Log a stage that ends without an error, as a JSON line in `path` and on the terminal.

    The line holds start, command, settings, versions, device, duration in seconds, and "done" or
    "idle", if it had nothing to do.

    Yields:
        A dict for more of the line; log["idle"] = True says that the output was already made.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    print(f"{title} ({', '.join(f'{k} {v}' for k, v in settings.items())})", flush=True)
    log = {
        "stage": title,
        "start": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
        "command": sys.argv,
        "settings": settings,
        **environment(),
    }
    start_time = time.time()
    yield log
    is_idle = log.pop("idle", False)
    log["ended"] = "idle" if is_idle else "done"
    log["seconds"] = round(time.time() - start_time, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(log, default=str) + "\n")
    print(
        f"{title}: " + ("nothing to do" if is_idle else f"done in {log['seconds']} s"), flush=True
    )


def environment():
    """Versions, backend and device, from the backend only if it is imported."""
    packages = {}
    for name in "keras", "tensorflow", "jax", "torch", "numpy", "foolbox":
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    backend = sys.modules.get("train.shared.backend")
    accelerators = backend.accelerators() if backend else []
    processor = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "packages": packages,
        "backend": backend and backend.keras.backend.backend(),
        "device": ", ".join(accelerators) or processor,
    }


# Without a terminal, a line every half minute takes the place of a progress bar.
LINES = {"mininterval": 30, "maxinterval": 30, "delay": 10}  # seconds
LINES |= {"bar_format": "{desc}: {n:.0f} of {total_fmt}, {remaining} left\n"}


def progress(iterable=None, **settings):
    """A tqdm bar on a terminal; elsewhere a line every half minute, from the tenth second on."""
    settings |= {} if sys.stderr.isatty() else LINES | {"file": sys.stdout}
    return tqdm(iterable, **settings)
