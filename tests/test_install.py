"""What a user's machine may be: other systems, and exact versions of the packages."""

import os
import re
import subprocess
import sys
from pathlib import PureWindowsPath

from conftest import ROOT

from dare.evaluation.runs import command_line
from train import artifacts

# Modules of the standard library that Windows lacks.
UNIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog")

ROOMS = ("adv", "dare", "data", "train")

WITHOUT_UNIX = f"""
import sys
sys.modules |= dict.fromkeys({UNIX_ONLY!r})  # importing them raises ImportError
"""


def test_scripts_run_without_unix(tmp_path):
    """Prepare and train with the modules missing that Windows does not have."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_UNIX)
    environment = os.environ | {"DARE_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    for command in (
        ["data/prepare.py", "--limit", "100"],
        ["train/train.py", "--dataset", "digits", "--model", "lenet", "--epochs", "1"],
    ):
        script, *flags = command
        result = subprocess.run(
            [sys.executable, str(ROOT / script), *flags],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "done in" in result.stdout
    assert (tmp_path / "models/digits_lenet_seed0/checkpoints/model.001.weights.h5").exists()


def test_no_unix_only_import_at_the_top_of_a_module():
    modules = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 40
    for path in modules:
        imported = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        assert not set(imported) & set(UNIX_ONLY), path


def test_processes_are_not_ended_on_windows(monkeypatch):
    """There os.kill(pid, 0) ends the process instead of asking for it."""
    monkeypatch.setattr(artifacts.os, "name", "nt")
    monkeypatch.setattr(artifacts.os, "kill", lambda *_: 1 / 0)
    assert artifacts.is_running(os.getpid())


def test_names_from_windows_paths():
    """Names are taken from paths by pathlib, so that backslashes are no part of them."""
    folder = PureWindowsPath(r"C:\dare\models\digits_lenet_seed0")
    assert int(folder.name.rsplit("_seed", 1)[1]) == 0
    weights = folder / "checkpoints" / "model.007.weights.h5"
    assert int(weights.name.split(".")[1]) == 7
    entry = {"command": ["dare/test.py", "--seed", "0"]}
    assert command_line(entry) == "python dare/test.py --seed 0"


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages if package)
