"""Wrong input, missing and stale artifacts: one sentence, exit code 2, nothing overwritten."""

import importlib
import io

import h5py
import numpy as np
import pytest

import train.shared.artifacts
import train.shared.paths
from train.shared.artifacts import read_csv
from train.shared.checkpoints import load_weights
from train.shared.flags import UserError
from train.shared.paths import study_folders

SCRIPTS = {
    "prepare": "data.prepare",
    "train": "train.train",
    "alexnet": "train.alexnet",
    "nnslicer": "dare.nnslicer",
    "get_ats": "dare.get_ats",
    "generate_adv": "adv.generate_adv",
    "fintune_adv": "adv.fintune_adv",
    "dare": "dare.dare",
    "dare-s": "dare.dare-s",
    "dare-sl": "dare.dare-sl",
    "dare-last": "dare.dare-last",
    "controls": "dare.controls",
    "test": "dare.test",
    "tables": "dare.tables",
}
TOY = "--dataset toy --model tiny"


def call(script, flags):
    return importlib.import_module(SCRIPTS[script]).main(flags.split())


def snapshot(folder):
    return {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.suffix not in (".log", ".json")
    }


WRONG = [
    ("nnslicer", f"{TOY} --per 0", "per.*share"),
    ("nnslicer", f"{TOY} --per nan", "per.*share"),
    ("nnslicer", f"{TOY} --pear 1", "unrecognized arguments: --pear"),
    ("nnslicer", "--dataset nowhere", "nowhere_lenet_seed0 is missing"),
    ("nnslicer", "--dataset ../../etc", "plain folder name"),
    ("nnslicer", "--dataset {x}", "plain folder name"),
    ("tables", "--record .x", "plain folder name"),
    ("nnslicer", f"{TOY} --seed -1", "seed"),
    ("train", "--dataset toy --model resnet", "resnet is unknown"),
    ("train", "--dataset nothing --model vgg16", "x_train.npy is missing.*prepare.py"),
    ("train", "--dataset toy --model vgg16 --epochs 1.5", "epochs"),
    ("train", "--dataset toy --model tiny --precision float16", "float16.*float32, bfloat16"),
    ("alexnet", "--dataset toy", "alexnet cannot take images of shape"),
    ("get_ats", f"{TOY} --choose_layer conv9", "conv9 is not a layer.*conv1"),
    ("get_ats", f"{TOY} --first 5 --last 3", "is not a range of epochs"),
    ("generate_adv", f"{TOY} --attack deepfool", "deepfool.*fgsm, bim"),
    ("generate_adv", f"{TOY} --attack cw --samples 10000", "10000, but the model gets .* of 240"),
    ("generate_adv", f"{TOY} --mode fixed", "needs an epsilon"),
    ("generate_adv", f"{TOY} --mode fixed --epsilon -1", "epsilon"),
    ("dare", f"{TOY} --lr_rate 0", "learning rate above 0"),
    ("dare", f"{TOY} --per 0.3", "slice_0.3.h5 is missing.*nnslicer.py.*--per 0.3"),
    ("dare", f"{TOY} --choose_layer dense1", "ats_dense1.h5 is missing.*get_ats.py"),
    ("controls", f"{TOY} --control nothing", "nothing.*self, random"),
    ("fintune_adv", f"{TOY} --attack cw", "cw.h5 is missing.*generate_adv.py"),
    ("test", f"{TOY} --seed 3", "toy_tiny_seed3 is missing"),
    ("tables", "--dataset toy --model tiny", "robustness.csv is missing"),
    ("tables", "--paper --dataset toy", "leave out --dataset and --model"),
    ("prepare", "--dataset unheard", "unknown data set"),
]


@pytest.mark.parametrize(
    ("script", "flags", "message"), WRONG, ids=[f"{s} {f}" for s, f, _ in WRONG]
)
def test_wrong_flags(study, script, flags, message):
    home, *_ = study
    before = snapshot(home)
    with pytest.raises(UserError, match=message) as error:
        call(script, flags)
    assert "\n" not in str(error.value)
    after = snapshot(home)
    assert {p: after.get(p) for p in before} == before


def corrupt(path, keep=100):
    path.write_bytes(path.read_bytes()[:keep])


def attribute(path, name, value):
    with h5py.File(path, "a") as file:
        file.attrs[name] = value


def data_part(home, letter, change):
    path = home / f"data/toy/{letter}_validation.npy"
    np.save(path, change(np.load(path)))


# case: (how to spoil it, script, what it says)
BROKEN = {
    "slice corrupt": (lambda _, f: corrupt(f / "slice_0.95.h5"), "dare", "slice_0.95.h5 is corr"),
    "targets empty": (lambda _, f: corrupt(f / "ats_conv2.h5", 0), "dare", "ats_conv2.h5 is corr"),
    "scores corrupt": (
        lambda _, f: (f / "scores.h5").write_bytes(b"version https://git-lfs.github.com/spec"),
        "test", "scores.h5 is corrupt",
    ),
    "checkpoint corrupt": (
        lambda _, f: corrupt(f / "checkpoints/model.008.weights.h5", 3000), "nnslicer",
        "model.008.weights.h5",
    ),
    "model corrupt": (lambda _, f: corrupt(f / "model.keras"), "nnslicer", "is not a Keras model"),
    "slice of another per": (
        lambda _, f: attribute(f / "slice_0.95.h5", "per", 0.5), "dare", "per 0.5, not 0.95",
    ),
    "slice of another model": (
        lambda _, f: attribute(f / "slice_0.95.h5", "checkpoint_sha256", "f" * 64), "dare",
        "ffffffffffff, not",
    ),
    "targets of another layer": (
        lambda _, f: attribute(f / "ats_conv2.h5", "choose_layer", "conv1"), "dare",
        "conv1, not conv2",
    ),
    "targets of other data": (
        lambda home, _: data_part(home, "x", lambda x: x[::-1]), "dare",
        "data_sha256 [0-9a-f]{12}, not [0-9a-f]{12}",
    ),
    "samples of another model": (
        lambda _, f: attribute(f / "adv/pgd.h5", "checkpoint_sha256", "f" * 64), "test",
        "pgd.h5 was made from",
    ),
    "float images": (
        lambda home, _: data_part(home, "x", lambda x: x / 255), "get_ats", "float64 images",
    ),
    "other image size": (lambda home, _: data_part(home, "x", lambda x: x[:, :8]), "dare", "takes"),
    "label too large": (
        lambda home, _: data_part(home, "y", lambda y: y + 7), "get_ats", "has 4 classes",
    ),
    "pickled labels": (
        lambda home, _: np.save(home / "data/toy/y_validation.npy", np.array([{}, 1], object)),
        "get_ats", "cannot be read",
    ),
    "missing history": (
        lambda _, f: [(f / "checkpoints/model.005.weights.h5").unlink(), new_targets(f)],
        "get_ats", "model.005.weights.h5 is missing",
    ),
    "training unfinished": (
        lambda _, f: (f / "checkpoints/model.008.weights.h5").unlink(), "nnslicer", "7 of 8 epochs",
    ),
    "mined checkpoint deleted": (
        lambda _, f: (f / "checkpoints/model.005.weights.h5").unlink(), "controls",
        "model.005.weights.h5 is missing: control-random and control-swa need",
    ),
    **{
        f"info.json {text!r}": (
            lambda home, _, text=text: (home / "data/toy/info.json").write_text(text), "train",
            "info.json cannot be read.*prepare.py --dataset toy",
        )
        for text in ("", "[1]", '{"seed": ')
    },
}  # fmt: skip


def new_targets(folder):
    (folder / "ats_conv2.h5").unlink()


@pytest.mark.parametrize("case", BROKEN)
def test_broken_and_stale_artifacts(study, case):
    home, folder, _ = study
    spoil, script, message = BROKEN[case]
    spoil(home, folder)
    before = snapshot(home)
    with pytest.raises(UserError, match=message) as error:
        call(script, TOY)
    assert "\n" not in str(error.value)
    after = snapshot(home)
    assert {p: after.get(p) for p in before} == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BlockingIOError(11, "unable to lock file"), "locked.*HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError(37, "No locks available"), "locked.*HDF5_USE_FILE_LOCKING=FALSE"),
        (PermissionError(13, "Permission denied"), "may not be read: change its permissions"),
    ],
)
def test_what_is_whole_is_never_called_corrupt(study, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(train.shared.artifacts.h5py, "File", refuse)
    steps = [
        lambda: call("nnslicer", TOY),
        lambda: call("train", f"{TOY} --epochs 8"),
        lambda: load_weights(None, study[1] / "checkpoints/model.005.weights.h5"),
    ]
    for step in steps:
        with pytest.raises(UserError, match=message) as sentence:
            step()
        assert "delete" not in str(sentence.value)


@pytest.mark.parametrize("name", ["model.keras", "x_validation.npy"])
def test_forbidden_files_are_not_called_broken(study, monkeypatch, name):
    """The system's error passes, and run_script makes a sentence of it."""

    def forbid(path, *args, really_open=io.open, **kwargs):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *args, **kwargs)

    for module in "io", "builtins":
        monkeypatch.setattr(f"{module}.open", forbid)
    with pytest.raises(PermissionError, match=name):
        call("get_ats", TOY)


def test_mining_that_is_done_needs_no_checkpoint(study, capsys):
    (study[1] / "checkpoints/model.005.weights.h5").unlink()
    call("get_ats", TOY)
    assert "mine: nothing to do" in capsys.readouterr().out


def test_studies_are_found_by_their_whole_name(tmp_path):
    for name in "leaves[1]_b_seed2", "a_b_seed0", "a_b_seed1_b_seed3", "a_b_seed0.old":
        (tmp_path / name).mkdir()
    found = {name: study_folders(tmp_path, name, "b") for name in ("leaves[1]", "a", "a_b_seed1")}
    assert [[*seeds.values()] for seeds in found.values()] == [[2], [0], [3]]
    assert len(study_folders(tmp_path, "*", "*")) == 3


@pytest.mark.parametrize("text", ["", "dataset;epoch\n007;1\n", "\ufeffdataset,epoch\n007,"])
def test_tables_that_people_have_touched(tmp_path, text):
    path = tmp_path / "robustness.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"robustness.csv is empty, cut.*`python dare/test.py`"):
        read_csv(path, "python dare/test.py", ["dataset", "epoch"])
    path.write_text("\ufeffdataset,model,epoch\r\n007,NA,1\r\n")  # whole, of a spreadsheet
    table = read_csv(path, "python dare/test.py", ["dataset", "epoch"])
    assert table.values.tolist() == [["007", "NA", 1]]


def test_nan_loss_in_tuning_keeps_what_was_good(study):
    _, folder, _ = study
    with h5py.File(folder / "ats_conv2.h5", "a") as file:
        file["activation"][0] = np.nan
    with pytest.raises(UserError, match=r"NaN or infinite in epoch 1 of .*nothing was saved"):
        call("dare", TOY)
    assert not list(folder.glob("tuned/*/model*"))


def test_no_mined_image(study, monkeypatch):
    from dare import get_ats

    def none(probability, right):
        return np.full(probability.shape[1], -1)

    monkeypatch.setattr(get_ats, "best_checkpoint", none)
    with pytest.raises(UserError, match=r"no checkpoint from epoch 4 to 7 improves"):
        call("get_ats", f"{TOY} --choose_layer conv1")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        call(script, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "python " in text and len(text.splitlines()) > 10


def test_logs_record_the_stage(study):
    import json

    *_, folder, _ = study
    entry = json.loads((folder / "nnslicer.log").read_text().splitlines()[-1])
    assert entry["ended"] == "done" and entry["settings"]["per"] == 0.95
    assert {"start", "version", "packages", "device", "backend", "command", "seconds"} <= set(entry)
