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


class StageLog(dict):
    """What a stage adds to its line in the log; `idle` says that its output was already made."""

    idle = False


@contextlib.contextmanager
def stage(path, title, settings):
    """Log one stage, as a JSON line in `path` and in short on the terminal.

    The line holds start, settings, versions, device, how the stage ended, its duration and peak
    memory. "ended" is null for a stage that was killed, "idle" for one that had nothing to do, and
    the error for one that failed.

    Yields:
        StageLog.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    print(f"{title} ({', '.join(f'{k} {v}' for k, v in settings.items())})", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    start_time = time.time()
    log = StageLog()
    backend = backend_name()
    entry = {
        "stage": title,
        "start": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
        "settings": settings,
        "version": VERSION,
        "python": platform.python_version(),
        "command": sys.argv,
        "packages": versions("keras", "numpy", "foolbox", backend),
        "backend": backend,
        "device": device(),
        "ended": None,
    }

    def write(**end):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry | log | end, default=str) + "\n")

    def spent():
        seconds = round(time.time() - start_time, 1)
        return {"seconds": seconds, "peak_memory_gb": round(peak_memory(), 2) or None}

    write()
    try:
        yield log
    except BaseException as error:
        write(ended=f"{type(error).__name__}: {error}", **spent())
        raise
    end = spent()
    write(ended="idle" if log.idle else "done", **end)
    result = "nothing to do" if log.idle else f"done in {end['seconds']} s"
    memory = f", peak memory {end['peak_memory_gb']} GB" if end["peak_memory_gb"] else ""
    print(f"{title}: {result}{memory}", flush=True)


def backend_name():
    """Name of Keras's backend, from Keras if it is imported."""
    keras = sys.modules.get("keras")
    return keras.backend.backend() if keras else os.environ.get("KERAS_BACKEND", "tensorflow")


def versions(*packages):
    """{package: version}, without packages that are installed under another name."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def entries(path):
    """The lines of a log as dicts, without one that a killed process left unfinished."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def peak_memory():
    """The most memory that this process has held, in GB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return windows_peak_memory()
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def windows_peak_memory():
    """The same on Windows, if psutil is installed."""
    try:
        import psutil  # a dependency of Snakemake
    except ImportError:
        return 0.0
    return getattr(psutil.Process().memory_info(), "peak_wset", 0) / 1e9


def device():
    """The accelerators that the backend sees, if it is imported, or the processor."""
    backend = sys.modules.get("train.shared.backend")
    names = backend.accelerators() if backend else []
    processor = platform.processor() or platform.machine()
    return ", ".join(names) or f"{processor}, {os.cpu_count()} cores"


# Without a terminal, a line every half minute takes the place of a progress bar.
LINES = {"mininterval": 30, "maxinterval": 30, "delay": 10}  # seconds
LINES |= {"bar_format": "{desc}: {n_fmt} of {total_fmt}, {remaining} left\n"}


def whole_updates(bar):
    """A function that updates a bar by fractions, of which the bar shows whole numbers."""
    total = 0.0

    def update(amount):
        nonlocal total
        total += amount
        bar.update(int(total + 1e-6) - bar.n)

    return update


def progress(iterable=None, **settings):
    """A tqdm bar on a terminal; elsewhere a line every half minute, from the tenth second on."""
    settings |= {} if sys.stderr.isatty() else LINES | {"file": sys.stdout}
    return tqdm(iterable, **settings)


def clock(seconds):
    """A duration in seconds as text, such as "3 h 05 min"."""
    minutes = round(seconds / 60)
    if minutes == 0:
        return "under a minute"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
