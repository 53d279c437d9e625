"""The constants of a script as flags, and errors as one sentence on stderr with exit code 2."""

import argparse
import errno
import math
import os
import sys
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence: what was wrong and what to do."""


def _number(kind, low, high, what, low_open=False):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        inside = (low < value if low_open else low <= value) and value <= high
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


def _list_of(names):
    check = _one_of(*names, "all")

    def parse(text):
        for name in text.split(","):
            check(name)
        return text

    return parse


def chosen_names(text, known):
    """The names that a flag asks for: a list with commas, or `all` for the known ones."""
    return list(known) if "all" in text.split(",") else text.split(",")


def _folder_name(text):
    """Any plain folder name, because a data set or network may be the user's own."""
    if not text or text != Path(text).name or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain folder name")
    return text


def _one_of(*names):
    def parse(text):
        if text not in names:
            known = ", ".join(names)
            raise argparse.ArgumentTypeError(f"{text!r} is unknown: choose from {known}")
        return text

    return parse


_rate = _number(float, 0, 1e3, "a learning rate above 0", low_open=True)
_count = _number(int, 1, 10**9, "a whole number of 1 or more")
_index = _number(int, 0, 2**31 - 1, "a whole number of 0 or more")
_share = _number(float, 0, 1, "a share in (0, 1]", low_open=True)
_size = _number(float, 0, 1e6, "an epsilon above 0", low_open=True)

FLAGS = {
    "dataset": (
        _folder_name,
        "data set: digits, fashion_mnist, cifar10, svhn, or a name for your folder of images",
    ),
    "model": (_folder_name, "network: alexnet, vgg16, vgg19, lenet, resnet20"),
    "seed": (_index, "seed of training (in prepare.py: of the split)"),
    "source": (Path, "folder of the official files, or one with train/<class>/ and test/<class>/"),
    "limit": (_count, "number of random training images to keep, balanced over the classes"),
    "epochs": (_count, "epochs of training; the milestones of the learning rate scale with them"),
    "keep_from": (_count, "first epoch whose checkpoint is kept (mining needs the later ones)"),
    "precision": (
        _one_of("float32", "bfloat16"),
        "precision of training (default: bfloat16 where the hardware supports it)",
    ),
    "per": (_share, "share of every neuron's synapses in the slice"),
    "first": (_count, "first checkpoint to mine (default: the second half of training)"),
    "last": (_count, "last checkpoint to mine (default: the one before the final one)"),
    "choose_layer": (str, "layer whose activations are the targets (default: the network's own)"),
    "lr_rate": (
        _rate,
        "learning rate of Adam (default in DARE, its variants and controls: the network's own)",
    ),
    "epoch": (_count, "epochs of tuning; a larger number than before continues the earlier run"),
    "batches": (
        _count,
        "batches in an epoch of tuning, each epoch with a new Adam (default: all); 1 is what the "
        "released code does: dare-released, with its learning rate",
    ),
    "run": (_index, "run number, which seeds the tuning"),
    "part": (
        _one_of("train", "test"),
        "images to attack: train: of x_train; test: of the reporting half of x_test",
    ),
    "samples": (_count, "number of adversarial samples"),
    "mode": (
        _one_of("minimal", "fixed"),
        "minimal: the smallest perturbation of every image; fixed: one epsilon",
    ),
    "epsilon": (_size, "size of the perturbation in mode fixed"),
    "steps": (_count, "number of iterations (for cw: of each search), instead of the attack's own"),
    "adaptive": (bool, "also attack every selected model itself"),
    "adaptive_images": (_count, "number of test images that --adaptive attacks"),
    "restarts": (_count, "random starts of pgd with --adaptive"),
    "record": (_folder_name, "keep what the tables need in dare/results/<record>"),
    "results": (_folder_name, "make the tables from dare/results/<results> instead of models/"),
    "paper": (bool, "make the tables from the paper's figures in dare/paper"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def options(doc, argv, script, **lists):
    """Parse the command line of a script; returns the values of its flags by name.

    Every constant at the top of the script that FLAGS knows is a flag of the same name, and its
    value is the default. An edited constant is checked just as a flag is.

    Args:
        doc: the text of --help.
        argv: the arguments; None: those of the process.
        script: the script's globals().
        lists: names that a flag takes as a list with commas, as in attack=("fgsm", "pgd").

    Raises:
        UserError: a wrong value or an unknown flag.
    """
    usage = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=doc, formatter_class=usage, allow_abbrev=False)
    flags = FLAGS | {
        name: (_list_of(names), f"one of {', '.join(names)}, a list with commas, or all")
        for name, names in lists.items()
    }
    for name in [name for name in script if name in flags]:
        kind, text = flags[name]
        value = script[name]
        shown = (f"{text} [{value}]" if value is not None else text).replace("%", "%%")
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=value, help=shown)
        else:
            default = None if value is None else str(value)
            parser.add_argument(f"--{name}", type=kind, default=default, help=shown)
    return parser.parse_args(argv)


def run_script(main):
    """Run a script's main(). A UserError becomes one sentence on stderr, with exit code 2."""
    sys.excepthook = _without_hdf5(sys.excepthook)
    sys.unraisablehook = _without_hdf5(sys.unraisablehook)
    try:
        main()
    except UserError as error:
        print(f"{_script()}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # NumPy reports a full disk without an error number: "... requested and ... written".
        if error.errno is None and "requested and" not in str(error):
            raise
        what = os.strerror(error.errno) if error.errno else f"A file was cut short ({error})"
        where = f" ({error.filename})" if error.filename else ""
        advice = "fix this, then run again."
        if error.errno is None or is_about_disk(error):
            advice = "free some space or fix the folder, then run again."
        print(f"{_script()}: {what}{where}: {advice}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # an ordinary exit would let HDF5 write to its broken file again, and crash
    except KeyboardInterrupt:
        print(f"{_script()}: interrupted; the same command continues.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # without waiting for threads
    sys.stdout.flush()
    os._exit(0)  # all files are closed, and an ordinary exit of TensorFlow takes 0.7 s longer


def is_about_disk(error):
    """Whether an exception says that a disk is full or cannot be written."""
    names = ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "EIO")
    codes = [getattr(errno, name) for name in names if hasattr(errno, name)]  # not all on Windows
    return getattr(error, "errno", None) in codes


def _script():
    return Path(sys.argv[0]).name


def _without_hdf5(hook):
    """A hook that drops HDF5's errors about a file on a full disk, which it can't close either.

    HDF5 raises them for every object of the file; run_script reports the cause in one sentence.
    """

    def filtered(*arguments):
        # sys.excepthook takes (type, error, traceback), sys.unraisablehook one object.
        error = arguments[1] if len(arguments) == 3 else arguments[0].exc_value
        if "Can't decrement id ref count" not in str(error):
            hook(*arguments)

    return filtered
