"""Scripts as processes: what a user sees, and a disk that is full."""

import os
import resource
import subprocess
import sys

import pytest
from conftest import ROOT
from test_command_line import snapshot


def test_as_a_process(tmp_path):
    """What a user sees, from any folder: one line on stderr and exit code 2; and --help."""
    environment = os.environ | {"DARE_HOME": str(tmp_path)}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    result = run(str(ROOT / "dare/nnslicer.py"), "--dataset", "digits")
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "nnslicer.py: " in result.stderr
    assert "train/train.py --dataset digits --model lenet" in result.stderr
    result = run(str(ROOT / "data/prepare.py"), "--limit", "x")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    result = run(str(ROOT / "dare/dare-last.py"), "--help")
    assert (
        result.returncode == 0
        and "--lr_rate" in result.stdout
        and "get_ats.py --choose_layer predictions" in result.stdout
    )


@pytest.mark.parametrize(
    "script",
    ["data/prepare.py --dataset digits", "dare/nnslicer.py --dataset toy --model tiny --per 0.5"],
)
def test_no_file_can_grow(study, script):
    """A full disk, as a process sees it: every write beyond a few KB fails."""
    home, *_ = study
    code = f"import conftest, runpy, sys; sys.argv = {script.split()!r}; runpy.run_path("
    code += f"{str(ROOT / script.split()[0])!r}, run_name='__main__')"
    environment = os.environ | {"DARE_HOME": str(home), "PYTHONPATH": str(ROOT / "tests")}
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # noqa: E731
    before = snapshot(home)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
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


@pytest.mark.parametrize("backend", ["inline", "module://not_there"])
def test_pictures_do_not_depend_on_the_users_matplotlib(tmp_path, backend):
    """Nor on what the classes are called: LaTeX, or no UTF-8."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    environment = os.environ | {"MPLBACKEND": backend, "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-c", PICTURE, str(tmp_path / "pgd.png")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and (tmp_path / "pgd.png").exists(), result.stderr
