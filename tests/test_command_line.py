"""Wrong input, missing and stale artifacts: one sentence, exit code 2, nothing overwritten."""

import importlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import train.shared.artifacts
import train.shared.paths
from train.shared.checkpoints import load_weights
from train.shared.flags import UserError
from train.shared.paths import study_folders

SCRIPTS = """
    data.prepare train.train train.alexnet adv.generate_adv adv.fintune_adv dare.nnslicer
    dare.get_ats dare.dare dare.dare-s dare.dare-sl dare.dare-last dare.controls dare.test
    dare.tables
""".split()
TOY = "--dataset toy --model tiny"


def call(script, flags):
    module = next(name for name in SCRIPTS if name.endswith(f".{script}"))
    return importlib.import_module(module).main(flags.split())


def snapshot(folder):
    return {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.suffix not in (".log", ".json")
    }


WRONG = [
    ("nnslicer", f"{TOY} --per nan", "per.*share"),
    ("nnslicer", f"{TOY} --pear 1", "unrecognized arguments: --pear"),
    ("nnslicer", "--dataset a/b", "plain folder name"),
    ("train", "--dataset toy --model resnet", "resnet is unknown"),
    ("train", "--dataset nothing --model vgg16", "x_train.npy is missing.*prepare.py"),
    ("alexnet", "--dataset toy", "alexnet cannot take images of shape"),
    ("get_ats", f"{TOY} --first 5 --last 3", "is not a range of epochs"),
    ("generate_adv", f"{TOY} --attack deepfool", "deepfool.*fgsm, bim"),
    ("generate_adv", f"{TOY} --attack cw --samples 10000", "10000, but the model gets .* of 240"),
    ("generate_adv", f"{TOY} --mode fixed", "needs an epsilon"),
    ("generate_adv", f"{TOY} --mode fixed --epsilon 0.1", "attack with each of them alone"),
    ("dare", f"{TOY} --per 0.3", "slice_0.3.h5 is missing.*nnslicer.py.*--per 0.3"),
    ("dare", f"{TOY} --choose_layer dense1", "ats_dense1.h5 is missing.*get_ats.py"),
    ("fintune_adv", f"{TOY} --attack cw", "cw.h5 is missing.*generate_adv.py"),
    ("tables", "--dataset toy --model tiny", "robustness.csv is missing"),
    ("tables", "--paper --dataset toy", "leave out --dataset and --model"),
]


def assert_refused(home, script, flags, message):
    """In one sentence, with nothing overwritten."""
    before = snapshot(home)
    with pytest.raises(UserError, match=message) as error:
        call(script, flags)
    assert "\n" not in str(error.value)
    after = snapshot(home)
    assert {p: after.get(p) for p in before} == before


@pytest.mark.parametrize("script, flags, message", WRONG)
def test_wrong_flags(study, script, flags, message):
    assert_refused(study[0], script, flags, message)


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def attribute(name, value):
    def change(path):
        with h5py.File(path, "a") as file:
            file.attrs[name] = value

    return change


def array(change):
    return lambda path: np.save(path, change(np.load(path)))


OLDER, OTHERS = "checkpoints/model.005.weights.h5", attribute("checkpoint_sha256", "f" * 64)
LAST, IMAGES = "checkpoints/model.008.weights.h5", "x_validation.npy"
BROKEN = [  # file, how to spoil it, the step that reads it, what it says
    ("slice_0.95.h5", cut, "dare", "slice_0.95.h5 is corrupt"),
    ("scores.h5", lambda path: path.write_text("git-lfs"), "test", "scores.h5 is corrupt"),
    (LAST, cut, "nnslicer", "model.008.weights.h5"),
    ("model.keras", cut, "nnslicer", "is not a Keras model"),
    ("slice_0.95.h5", attribute("per", 0.5), "dare", "per 0.5, not 0.95"),
    ("adv/pgd.h5", OTHERS, "test", "pgd.h5 was made from"),
    (IMAGES, array(lambda x: x[::-1]), "dare", "data_sha256 [0-9a-f]{12}, not [0-9a-f]{12}"),
    (IMAGES, array(lambda x: x / 255), "get_ats", "float64 images"),
    ("y_validation.npy", array(lambda y: y + 7), "get_ats", "has 4 classes"),
    ("y_validation.npy", array(lambda _: np.array([{}], object)), "get_ats", "cannot be read"),
    (OLDER, Path.unlink, "get_ats --choose_layer conv1", "model.005.weights.h5 is missing"),
    (OLDER, Path.unlink, "controls", "005.weights.h5 is missing: control-random and control-swa"),
    (LAST, Path.unlink, "nnslicer", "7 of 8 epochs"),
]


@pytest.mark.parametrize("file, spoil, step, message", BROKEN)
def test_broken_and_stale_artifacts(study, file, spoil, step, message):
    home, folder, _ = study
    spoil((home / "data/toy" if file.endswith(".npy") else folder) / file)
    script, *flags = step.split()
    assert_refused(home, script, " ".join([TOY, *flags]), message)


@pytest.mark.parametrize(
    "error, message",
    [
        (BlockingIOError(11, "not now"), "locked.*HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError("unable to lock file"), "locked.*HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError(37, "No locks available"), "locked.*HDF5_USE_FILE_LOCKING=FALSE"),
        (PermissionError(13, "Permission denied"), "may not be read: change its permissions"),
    ],
)
def test_what_is_whole_is_never_called_corrupt(study, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(train.shared.artifacts.h5py, "File", refuse)
    weights = study[1] / "checkpoints/model.005.weights.h5"
    for step in (lambda: call("nnslicer", TOY), lambda: load_weights(None, weights)):
        with pytest.raises(UserError, match=f"^((?!delete).)*{message}((?!delete).)*$"):
            step()


def test_studies_are_found_by_their_whole_name(tmp_path):
    for name in "leaves[1]_b_seed2", "a_b_seed0", "a_b_seed1_b_seed3", "a_b_seed0.old":
        (tmp_path / name).mkdir()
    found = {name: study_folders(tmp_path, name, "b") for name in ("leaves[1]", "a", "a_b_seed1")}
    assert [[*seeds.values()] for seeds in found.values()] == [[2], [0], [3]]
    assert len(study_folders(tmp_path, "*", "*")) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "python " in text and len(text.splitlines()) > 10
