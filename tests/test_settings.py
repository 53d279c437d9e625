"""Editing a constant and passing the flag are the same, and neither deletes what another made."""

import importlib.util
import re

import pytest
from conftest import ROOT, TOY

from dare.methods import default_rate
from train import params
from train.shared.flags import UserError

TINY = {"dataset": "toy", "model": "tiny"}
EPOCH, FINETUNE = {"epoch": 1}, {"epoch": 1, "control": "finetune"}

# script: (constants besides data set and model, [(edited constant, value, where its results are)])
SCRIPTS = {
    "dare/nnslicer.py": ({}, [("per", 0.5, "slice_0.5.h5")]),
    "dare/get_ats.py": ({}, [("choose_layer", "conv1", "ats_conv1.h5")]),
    "adv/generate_adv.py": ({"samples": 60, "attack": "fgsm"}, [("attack", "bim", "adv/bim.h5")]),
    "adv/fintune_adv.py": (EPOCH | {"attack": "fgsm"}, [("lr_rate", 0.01, "at-fgsm_lr0.01_run0")]),
    "dare/dare.py": (
        EPOCH,
        [
            ("lr_rate", 0.01, "dare_conv2_per0.95_lr0.01_run0"),
            ("run", 1, "dare_conv2_per0.95_lr0.0001_run1"),
            ("per", 0.5, "dare_conv2_per0.5_lr0.0001_run0"),
            ("epoch", 2, "dare_conv2_per0.95_lr0.0001_run0/model.002"),
            ("batches", 1, "dare-released_conv2_per0.95_batches1_lr0.01_run0"),
            ("batches", 5, "dare_conv2_per0.95_batches5_lr0.0001_run0"),
        ],
    ),
    "dare/dare-s.py": (EPOCH, [("lr_rate", 0.01, "dare-s_conv2_lr0.01_run0")]),
    "dare/dare-sl.py": (EPOCH, [("run", 2, "dare-sl_lr0.0001_run2")]),
    "dare/dare-last.py": (EPOCH, [("lr_rate", 0.01, "dare-last_predictions_per0.95_lr0.01_run0")]),
    "dare/controls.py": (FINETUNE, [("lr_rate", 0.01, "control-finetune_conv2_lr0.01_run0")]),
}


def edited(script, tmp_path, **constants):
    """A copy of a script with other values at its top, as a module."""
    text = (ROOT / script).read_text()
    for name, value in constants.items():
        text, count = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {value!r}  ", text)
        assert count == 1, f"{script} has no constant {name}"
    text = text.replace("Path(__file__).resolve().parents[1]", repr(str(ROOT)), 1)
    path = tmp_path / script.replace("/", "_").replace("-", "_")
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(folder):
    """{path: time of the last change} of results."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5") if "history" not in p.name}


@pytest.mark.parametrize("script", SCRIPTS)
def test_editing_equals_passing(study, tmp_path, script):
    _, folder, _ = study
    base, edits = SCRIPTS[script]
    base = TINY | base
    if any(name == "per" for name, *_ in edits) and script != "dare/nnslicer.py":
        edited("dare/nnslicer.py", tmp_path, **TINY, per=0.5).main([])
    edited(script, tmp_path, **base).main([])
    for name, value, made in edits:
        before = files(folder)
        edited(script, tmp_path, **(base | {name: value})).main([])
        after = files(folder)
        assert {path: after.get(path) for path in before} == before  # side by side
        new = [path.relative_to(folder).as_posix() for path in after if path not in before]
        assert new and all(path.removeprefix("tuned/").startswith(made) for path in new)
        edited(script, tmp_path, **base).main([f"--{name}", str(value)])
        assert files(folder) == after  # the flag finds what the edited constant made


def test_shared_defaults_have_one_home(tmp_path, monkeypatch):
    """A value edited in train/params.py is that of every script that shows it."""
    for name, value in {"per": 0.5, "lr_rate": 0.002, "tune_epochs": 1}.items():
        monkeypatch.setattr(params, name, value)
    assert default_rate("dare", "alexnet") == 0.002  # which the tables compare
    shown = {"nnslicer": {"per": 0.5}, "dare-s": {"lr_rate": 0.002, "epoch": 1}}
    shown["dare-sl"] = shown["dare-s"]
    for script in ("dare", "dare-last", "controls"):
        shown[script] = shown["nnslicer"] | shown["dare-s"]
    for script, constants in shown.items():
        found = vars(edited(f"dare/{script}.py", tmp_path, **TINY))
        assert {name: found.get(name) for name in constants} == constants


def test_prepare_takes_the_constants(home, tmp_path, capsys):
    edited("data/prepare.py", tmp_path, limit=100).main([])
    edited("data/prepare.py", tmp_path).main(["--limit", "100"])  # the flag finds what it made
    assert "nothing to do" in capsys.readouterr().out


def test_scores_and_tables_take_the_constants(study, tmp_path):
    _, folder, _ = study
    edited("dare/test.py", tmp_path, **TINY).main([])
    assert (folder / "robustness.csv").exists()
    edited("dare/tables.py", tmp_path, **TINY).main([])
    assert (folder.parent / "toy_tiny" / "report.html").exists()


def test_wrong_constants_are_refused_like_flags(study, tmp_path):
    with pytest.raises(UserError, match=r"per.*share"):
        edited("dare/dare.py", tmp_path, per=95).main(TOY)
