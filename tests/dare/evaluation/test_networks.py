"""The tables of the networks: how they were trained, and their scores beside the paper's."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up import PLAIN, made_up

from dare.evaluation import networks, runs, sections, tables
from dare.evaluation.runs import RecordedRuns
from train import params


def test_sizes_of_training_in_the_table(home):
    folder = made_up(home)
    assert np.isnan(networks.training_images(folder))
    entry = json.loads((folder / "get_ats.log").read_text().splitlines()[0])
    entry |= {"stage": "train lenet", "settings": {"images": 718}}
    (folder / "train.log").write_text(json.dumps(entry))
    assert networks.training_images(folder) == 718
    assert networks.models_table(RecordedRuns([folder]))["images"].tolist() == [718]


def test_the_networks_beside_the_paper_s(home, monkeypatch):
    """Ours as made up, the paper's from its figures, and a row for every network not run."""
    monkeypatch.setitem(params.chosen_layer, "vgg16", "conv3")
    more = {"at-fgsm": (0.65, 0.8, 0.3), "at-cw": (0.62, 0.95, 0.3)}
    folders = [made_up(home, PLAIN | more, model="vgg16", dataset="svhn"), made_up(home)]
    recorded = RecordedRuns(folders)
    cells = tables.robustness_table(recorded.chosen["selected"], recorded)
    table = networks.networks_table(recorded, cells, tables.published_means())
    was_run = table["clean"].notna()
    assert len(table) == 10 and was_run.sum() == 2
    row = table[was_run].iloc[0]
    assert (row["model"], row["dataset"], row["best_at"]) == ("vgg16", "svhn", "at-fgsm")
    ours = row[["clean", "at", "dare", "dare_clean", "control_seed"]].tolist()
    assert ours == pytest.approx([95, 65, 70, 95, 50])
    paper = pd.read_csv(runs.PAPER / "robustness.csv")
    paper = runs.of_network(paper, "svhn", "vgg16")
    means = paper.groupby(["method", "attack"])["empirical_robustness"].mean()
    means = means.groupby("method").mean()
    accuracy = pd.read_csv(runs.PAPER / "accuracy.csv").set_index(["model", "dataset", "method"])
    expected = [
        100 * accuracy.loc[("vgg16", "svhn", "original"), "test_accuracy"],
        means.drop("dare").max(),
        means["dare"],
    ]
    assert row[["paper_clean", "paper_at", "paper_dare"]].tolist() == pytest.approx(expected)
    text = sections.networks_section(table).table.set_index(["network", "data set"])
    assert text.loc[("vgg16", "svhn"), "best at-*: ours"] == "65.0 (fgsm)"
    assert text.loc[("vgg19", "svhn"), "clean: ours"] == "not run"
    assert text.loc[("vgg19", "svhn"), "DARE: ours"] == ""
    assert text.loc[("lenet", "digits"), "DARE: paper"] == ""


def test_a_network_without_dare_at_its_default_setting(home):
    """VGG16's default layer is not conv3, at which DARE was run here."""
    recorded = RecordedRuns([made_up(home, model="vgg16", dataset="svhn")])
    cells = tables.robustness_table(recorded.chosen["selected"], recorded)
    table = networks.networks_table(recorded, cells, tables.published_means())
    text = sections.networks_section(table).table.set_index(["network", "data set"])
    row = text.loc[("vgg16", "svhn")]
    assert row[["clean: ours", "best at-*: ours", "DARE: ours"]].tolist() == [
        "95.0",
        "50.0 (pgd)",
        "",
    ]
