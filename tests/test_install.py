"""What a user's machine may be: other systems, and exact versions of the packages."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
from conftest import ROOT

from dare.evaluation import runs
from data import prepare
from train.shared import artifacts, flags, log, paths

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

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )

    assert "ModuleNotFoundError" in run("-c", "import resource").stderr
    for command in (
        ["data/prepare.py", "--limit", "100"],
        ["train/train.py", "--dataset", "digits", "--model", "lenet", "--epochs", "1"],
    ):
        script, *arguments = command
        result = run(str(ROOT / script), *arguments)
        assert result.returncode == 0, result.stderr
        assert "done in" in result.stdout
    assert (tmp_path / "models/digits_lenet_seed0/checkpoints/model.001.weights.h5").exists()


def test_no_unix_only_import_at_the_top_of_a_module():
    modules = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 40
    for path in modules:
        imported = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        assert not set(imported) & set(UNIX_ONLY), path


@pytest.mark.parametrize("exists", [True, False, None])
def test_processes_are_not_ended_on_windows(monkeypatch, exists):
    """There os.kill(pid, 0) ends the process instead of asking for it; None: without psutil."""
    psutil = SimpleNamespace(pid_exists=lambda pid: exists) if exists is not None else None
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    monkeypatch.setattr(artifacts.os, "kill", lambda *_: 1 / 0)
    with monkeypatch.context() as windows:
        windows.setattr(artifacts.os, "name", "nt")
        running = artifacts.is_running(os.getpid())
    assert running is (exists is not False)


def test_peak_memory_on_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3_000_000_000))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert log.peak_memory() == 3
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert log.peak_memory() == 0


def test_unknown_peak_memory_is_not_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(log, "peak_memory", lambda: 0.0)
    with log.stage(tmp_path / "toy.log", "toy", {}):
        pass
    output = capsys.readouterr().out
    assert "toy: done in" in output and "memory" not in output


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_no_file_is_removed_while_it_is_mapped(home, monkeypatch):
    """Windows refuses that: labels are compared, then removed and written again."""
    prepare.prepare("digits", limit=100)
    (paths.data_folder("digits") / "info.json").unlink()
    remove, removed = Path.unlink, []

    def unlink(path, missing_ok=False):
        assert str(path) not in Path("/proc/self/maps").read_text()
        removed.append(path.name)
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    prepare.prepare("digits", limit=100)
    assert "y_train.npy" in removed


@pytest.mark.parametrize(
    "script", [r"C:\dare\dare\test.py", r"c:\DARE\dare\test.py", r"dare\test.py", "dare/test.py"]
)
def test_recorded_commands_name_scripts_with_slashes(monkeypatch, script):
    monkeypatch.setattr(runs, "Path", PureWindowsPath)
    monkeypatch.setattr(runs, "ROOT", PureWindowsPath(r"C:\dare"))
    entry = {"command": [script, "--seed", "0"]}
    assert runs.command_line(entry) == "python dare/test.py --seed 0"


@pytest.mark.parametrize("name", [r"..\toy", r"C:\toy", "C:toy", r"\\server\toy", "..", "a/b"])
def test_names_of_folders_on_windows(monkeypatch, name):
    monkeypatch.setattr(flags, "Path", PureWindowsPath)
    for flag in "dataset", "model", "record":
        check, _ = flags.FLAGS[flag]
        assert check("toy") == "toy"
        with pytest.raises(argparse.ArgumentTypeError, match="plain folder name"):
            check(name)


def test_paths_of_artifacts_on_windows(monkeypatch):
    monkeypatch.setattr(artifacts, "Path", PureWindowsPath)
    monkeypatch.setattr(paths, "HOME", PureWindowsPath(r"C:\home"))
    folder = paths.study_folder("digits", "lenet")
    assert str(folder) == r"C:\home\models\digits_lenet_seed0"
    weights = paths.checkpoint_path(folder, 7)
    assert str(weights) == rf"{folder}\checkpoints\model.007.weights.h5"
    tuned = paths.tuned_folder(str(folder), "dare", choose_layer="conv2", per=0.95)
    assert str(tuned) == rf"{folder}\tuned\dare_conv2_per0.95"


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    packages = [package for package in packages if package]
    assert len(packages) > 15
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages), packages
