"""What is recorded in dare/results, and the tables made from there."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from made_up import PLAIN, made_up

import dare.evaluation.record
from dare import tables as script
from dare.evaluation import checks, networks
from dare.evaluation.runs import RecordedRuns
from train.shared.flags import UserError


@pytest.fixture
def results(home, monkeypatch):
    """The folder of recorded results, in place of dare/results."""
    monkeypatch.setattr(dare.evaluation.record, "RESULTS", home / "results")
    return home / "results"


def test_recorded_results_give_the_same_tables(home, results):
    """Also after models/ is gone; what is kept has neither weights nor images."""
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.9, 0.5)}, n=100)
    with h5py.File(folder / "adv/cw.h5", "a") as file:
        file["success"][:60] = False
    with h5py.File(folder / "ats_conv3.h5", "a") as file:
        del file["index"]
        file["index"] = np.arange(99)
    (folder / "checkpoints").mkdir()
    with h5py.File(folder / "checkpoints/model.040.weights.h5", "w") as file:
        file["layer/kernel"] = np.ones((3, 5))
    before = RecordedRuns([folder])
    warned, trained = checks.warnings(before), networks.models_table(before)
    assert len(warned) == 3 and trained["parameters (M)"].tolist() == [15e-6]
    script.main([])
    names = ("table.csv", "table_differences.csv", "table_verdict.csv")
    expected = {name: (folder.parent / name).read_text() for name in names}
    script.main(["--record", "mine"])
    kept = results / "mine" / folder.name
    assert {p.name for p in kept.iterdir()} == {
        "robustness.csv", "adaptive.csv", "log.csv", "commands.csv", "scores.h5", "adaptive.h5",
        "facts.json",
    }  # fmt: skip
    assert "tensorflow" in (kept / "commands.csv").read_text()
    shutil.rmtree(home / "models")
    for name in names:
        (results / "mine" / name).unlink()
    script.main(["--results", "mine"])
    assert expected == {name: (results / "mine" / name).read_text() for name in names}
    assert "python dare/get_ats.py" in (results / "mine/report.html").read_text()
    after = RecordedRuns([kept])
    assert checks.warnings(after) == warned
    pd.testing.assert_frame_equal(networks.models_table(after), trained)


def test_only_the_networks_that_are_named_are_recorded(home, results):
    folders = [made_up(home, n=60, model=name) for name in ("alexnet", "vgg16", "vgg19")]
    (folders[0].parent / "digits_vgg16_seed0_old").mkdir()  # set aside: no study any more
    shutil.copy(folders[1] / "robustness.csv", folders[0].parent / "digits_vgg16_seed0_old")
    script.main(["--record", "mine", "--model", "vgg16"])
    script.main(["--record", "mine", "--dataset", "digits", "--model", "alexnet,vgg16"])
    kept = sorted(path.parent.name for path in results.glob("mine/*/robustness.csv"))
    assert kept == ["digits_alexnet_seed0", "digits_vgg16_seed0"]
    assert len(pd.read_csv(results / "mine/table_networks.csv").dropna(subset="clean")) == 2
    with pytest.raises(UserError, match="give --results one of mine"):
        script.main(["--results", "yours"])


def test_nothing_of_an_earlier_run_stays_recorded(home, results):
    folders = [made_up(home, n=60, model=name) for name in ("alexnet", "vgg16")]
    script.main(["--record", "mine"])
    assert len(list(results.glob("mine/*/adaptive.*"))) == 4
    for folder in folders:
        for path in folder.glob("adaptive.*"):
            path.unlink()
    script.main(["--record", "mine"])
    assert not list(results.glob("mine/*/adaptive.*"))
    assert len(list(results.glob("mine/*/log.csv"))) == 2
