"""The constants of a script as flags, and errors as one sentence on stderr with exit code 2."""

import argparse
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path
from shlex import quote


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence: what was wrong and what to do."""


# What a number must be: its type, the smallest and the largest one, and the same in words.
COUNT = int, 1, 10**9, "a whole number of 1 or more"
INDEX = int, 0, 2**31 - 1, "a whole number from 0 to 2147483647"
SHARE = float, sys.float_info.min, 1, "a share in (0, 1]"
RATE = float, sys.float_info.min, 1e3, "a learning rate above 0 and up to 1000"
SIZE = float, sys.float_info.min, 1e6, "an epsilon above 0"
# Allowed names of data sets, networks and records, in scripts and in the graph.
FOLDER_NAME = r"(?![.-])[^/{}\x00-\x1f]+"
PLAIN_NAME = "plain folder name (without / and braces, and not beginning with . or -)"

# {flag: (what it takes, help)}; a tuple of names takes one of them.
FLAGS = {
    "dataset": (
        FOLDER_NAME,
        "data set: digits, fashion_mnist, cifar10, svhn, or a name for your folder of images",
    ),
    "model": (FOLDER_NAME, "network: alexnet, vgg16, vgg19, lenet, resnet20"),
    "seed": (INDEX, "seed of training (in prepare.py: of the split)"),
    "source": (Path, "folder of the official files, or one with train/<class>/ and test/<class>/"),
    "limit": (COUNT, "number of random training images to keep, balanced over the classes"),
    "epochs": (COUNT, "epochs of training; the milestones of the learning rate scale with them"),
    "precision": (
        ("float32", "bfloat16"),
        "precision of training; bfloat16 is faster on processors made for it",
    ),
    "per": (SHARE, "share of every neuron's synapses in the slice"),
    "first": (COUNT, "first checkpoint to mine (default: the second half of training)"),
    "last": (COUNT, "last checkpoint to mine (default: the one before the final one)"),
    "images": (COUNT, "number of random images of x_validation to mine and tune on (default: all)"),
    "choose_layer": (str, "layer whose activations are the targets (default: the network's own)"),
    "lr_rate": (
        RATE,
        "learning rate of Adam (default in DARE, its variants and controls: the network's own)",
    ),
    "epoch": (COUNT, "epochs of tuning; a larger number than before continues the earlier run"),
    "batches": (
        COUNT,
        "batches in an epoch of tuning, each epoch with a new Adam (default: all); 1 is what the "
        "released code does: dare-released, with its learning rate",
    ),
    "run": (INDEX, "run number, which seeds the tuning"),
    "part": (("train", "test"), "images to attack: of x_train, or the reporting half of x_test"),
    "samples": (COUNT, "number of adversarial samples"),
    "mode": (
        ("minimal", "fixed"),
        "minimal: the smallest perturbation of every image; fixed: one epsilon",
    ),
    "epsilon": (SIZE, "size of the perturbation in mode fixed"),
    "steps": (COUNT, "number of iterations (for cw: of each search), instead of the attack's own"),
    "adaptive": (bool, "also attack every compared model itself"),
    "adaptive_images": (COUNT, "number of test images that --adaptive attacks"),
    "restarts": (COUNT, "random starts of pgd with --adaptive"),
    "record": (FOLDER_NAME, "keep what the tables need in dare/results/<record>"),
    "results": (FOLDER_NAME, "make the tables from dare/results/<results> instead of models/"),
    "paper": (bool, "make the tables from the paper's figures in dare/paper"),
}


def parse(text, kind):
    """The value of a flag from its text; kind: what FLAGS says it takes."""
    if kind is FOLDER_NAME:
        if not re.fullmatch(FOLDER_NAME, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {PLAIN_NAME}")
        return text
    if isinstance(kind[0], str):
        if text not in kind:
            known = ", ".join(kind)
            raise argparse.ArgumentTypeError(f"{text!r} is unknown: choose from {known}")
        return text
    number, low, high, what = kind
    try:
        value = number(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def parse_list(text, names):
    """A list of names with commas, or all; it stays text, for chosen_names."""
    for name in text.split(","):
        parse(name, (*names, "all"))
    return text


def chosen_names(text, known):
    """The names that a flag asks for: a list with commas, or `all` for the known ones."""
    return list(known) if "all" in text.split(",") else text.split(",")


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
    parser = _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, value in script.items():
        if name in lists:
            kind, text = None, f"one of {', '.join(lists[name])}, a list with commas, or all"
            read = partial(parse_list, names=lists[name])
        elif name in FLAGS:
            kind, text = FLAGS[name]
            read = kind if isinstance(kind, type) else partial(parse, kind=kind)
        else:
            continue
        shown = (text if value is None else f"{text} [{value}]").replace("%", "%%")
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=value, help=shown)
        else:  # argparse reads a default that is text as it reads a flag
            default = None if value is None else str(value)
            parser.add_argument(f"--{name}", type=read, default=default, help=shown)
    return parser.parse_args(argv)


def command_of(script, dataset="...", model="...", seed="...", **flags):
    """The command line of a script for a study, for messages; by default only a folder names it."""
    flags = {"dataset": dataset, "model": model, "seed": seed} | flags
    given = (f"--{name} {quote(str(value))}" for name, value in flags.items())
    return " ".join(["python", script, *given])


def run_script(main):
    """Run a script's main(). What the user can fix is one sentence on stderr, with exit code 2."""
    script = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's time limit is a Ctrl-C
    try:
        main()
    except UserError as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # NumPy reports a full disk without an error number: "... requested and ... written".
        if error.errno is None and "requested and" not in str(error):
            raise
        what = os.strerror(error.errno) if error.errno else f"a file was cut short ({error})"
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"{script}: {what}{where}: fix this, or free some space, then run again.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # an ordinary exit would let HDF5 write to its broken file again, and crash
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command continues.", file=sys.stderr)
        sys.exit(130)
