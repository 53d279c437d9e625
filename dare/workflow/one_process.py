"""Run several steps one after another in one process, which imports TensorFlow only once.

    python dare/workflow/one_process.py "dare/dare.py --lr_rate 1e-3" "dare/dare-s.py --run 1"

Every argument is the command line of a script of this project, without the interpreter. The first
error ends it, as it ends the script.
"""

import shlex
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from train.shared.flags import run_script


def main(argv=None):
    for command in sys.argv[1:] if argv is None else argv:
        script, *flags = shlex.split(command)
        sys.argv = [str(ROOT / script), *flags]  # for the log and for messages
        import_module(script.removesuffix(".py").replace("/", ".")).main(flags)


if __name__ == "__main__":
    run_script(main)
