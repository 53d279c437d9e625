"""Scripts as processes: what a user sees, and a disk that is full."""

import pytest
from conftest import ROOT, python
from test_command_line import snapshot


def test_as_a_process(tmp_path):
    """What a user sees, from any folder: one line on stderr and exit code 2."""

    def run(script, *flags):
        return python(ROOT / script, *flags, cwd=tmp_path, DARE_HOME=str(tmp_path), PYTHONPATH="")

    result = run("dare/nnslicer.py", "--dataset", "digits")
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "nnslicer.py: " in result.stderr
    assert "train/train.py --dataset digits --model lenet" in result.stderr


TERMINATED = """
import os, signal
from train.shared.artifacts import atomic_write
from train.shared.flags import run_script
def main():
    with atomic_write("slice.h5") as path:
        path.touch()
        os.kill(os.getpid(), signal.SIGTERM)
run_script(main)
"""


def test_terminated(tmp_path):
    """By a cluster's time limit: as by Ctrl-C, with no half-written file left."""
    result = python("-c", TERMINATED, cwd=tmp_path)
    assert result.returncode == 130 and "the same command continues" in result.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "script",
    ["data/prepare.py --dataset digits", "dare/nnslicer.py --dataset toy --model tiny --per 0.5"],
)
def test_no_file_can_grow(study, script):
    """A full disk, as a process sees it: every write beyond a few KB fails."""
    home, *_ = study
    code = "import conftest, resource, runpy, sys; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); "
    code += f"sys.argv = {script.split()}; runpy.run_path(sys.argv[0], run_name='__main__')"
    before = snapshot(home)
    result = python("-c", code, cwd=ROOT, DARE_HOME=str(home))
    # HDF5 complains too, of every object of a file that it cannot close.
    assert result.returncode == 2 and "free some space" in result.stderr.splitlines()[-1]
    after = snapshot(home)
    assert {p: after.get(p) for p in before} == before
    assert not [p for p in after if p not in before and p.suffix != ".log"]


PICTURE = """
import sys
import numpy as np
from train.shared.figures import plt  # first: Keras imports Matplotlib, too
from adv.attacks.picture import draw_samples
x = np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1))
draw_samples(sys.argv[1], "pgd", *x, (["$10^{$", "a_b"], ["\\udcff", "_"]))
"""


def test_pictures_do_not_depend_on_the_users_matplotlib(tmp_path):
    """Nor on what the classes are called: LaTeX, or no UTF-8."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    picture = tmp_path / "pgd.png"
    users = {"MPLBACKEND": "module://not_there", "MPLCONFIGDIR": str(tmp_path)}
    result = python("-c", PICTURE, picture, **users)
    assert result.returncode == 0 and picture.exists(), result.stderr
