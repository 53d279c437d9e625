"""The report, the recorded results and the figures."""

import html
import re
import shutil

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up import PLAIN, made_up
from scipy import stats

import dare.evaluation.record
from dare import tables as script
from dare.evaluation import figures, networks, report, tables
from dare.evaluation.results import read_recorded, read_studies
from dare.evaluation.scores import Scores
from train.shared.flags import UserError

DRAWN = ("trade_off", "comparisons", "adaptive", "mined_epochs")


@pytest.fixture
def results(home, monkeypatch):
    """The folder of recorded results, in place of dare/results."""
    monkeypatch.setattr(dare.evaluation.record, "RESULTS", home / "results")
    return home / "results"


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without their figures, which take most of the time."""
    monkeypatch.setattr(report, "save", lambda figure, path: plt.close(figure) or "data:,")


# ---------------------------------------------------------------------------------- the report


def test_tables_and_report(home, capsys):
    folder = made_up(home)
    script.main([])
    out = capsys.readouterr().out
    assert "DARE minus other models" in out
    target = folder.parent
    text = html.unescape((target / "report.html").read_text())
    assert 'src="http' not in text and "href" not in text and "data:image/svg+xml;base64" in text
    assert text.index("<table") < text.index("<img") < text.index("<ul class=")
    # (a) of the one network, with its images, and the held-out column.
    table = (target / "table.md").read_text()
    assert re.search(r"\| another training seed \| control-seed \| -\d+\.\d \[", table)
    assert "held-out samples" in table and " of 1" not in table
    assert (target / "table.tex").read_text().count(r"\toprule") >= 5
    assert {path.stem for path in target.glob("figures/*.svg")} == {*DRAWN}


def test_several_networks_and_seeds(home):
    made_up(home, {m: PLAIN[m] for m in PLAIN if m != "control-seed"}, model="lenet")
    for seed in (0, 1):
        made_up(home, model="alexnet", seed=seed)
    script.main([])
    table = (home / "models/table.md").read_text()
    assert re.search(r"\| regression \| control-finetune \| [+-][\d.]+ \| 2 of 2 \|", table)
    assert re.search(r"\| another training seed \| control-seed \| -[\d.]+ \| 0 of 1 \|", table)
    assert "| component | DARE minus | alexnet digits 0 | alexnet digits 1" in table
    assert {*DRAWN} == {p.stem for p in (home / "models").glob("figures/*.png")}
    cells = pd.read_csv(home / "models/table.csv")
    assert set(cells["rule"]) == {"last", "best"}
    assert cells.groupby("model")["runs"].agg(set).to_dict() == {"alexnet": {2}, "lenet": {1}}


def test_a_method_that_lost_its_clean_accuracy_is_named_and_not_drawn():
    cells = pd.DataFrame({"method": ["dare", "at-pgd", "dare-released"], "robustness": 50.0})
    cells["change"] = [1.0, -5.0, -figures.LOST - 1.0]
    figure = figures.trade_off(cells.assign(dataset="digits", model="lenet", attack="mean"))
    (axis,) = figure.axes
    assert axis.get_xlabel().endswith("not drawn: dare-released")
    assert {text.get_text() for text in axis.texts} == {"dare", "at-pgd"}
    plt.close(figure)


def test_settings_are_a_table_and_a_figure(home):
    more = [("dare", (share, 0.95, 0.4), {"per": per}) for share, per in ((0.2, 0.05), (0.5, 0.5))]
    more += [("dare", (0.6, 0.9, 0.4), {"lr_rate": 1e-2})]
    folder = made_up(home, more=more, held_out=False)
    script.main([])
    found = pd.read_csv(home / "models/table_sensitivity.csv").astype({"value": float})
    per = found[found["setting"] == "per"].set_index("value")["robustness"]
    assert per.to_dict() == pytest.approx({0.05: 20, 0.5: 50, 0.95: 70})
    # The interval is over images, each with the mean over its attacks.
    rows = pd.read_csv(folder / "robustness.csv").query("method == 'dare' and per == 0.5")
    scores, of_image = Scores.read(folder / "scores.h5"), {}
    for part in {f"{row.attack} {row.split}" for row in rows.itertuples()}:
        right = scores.right(rows["sha256"].iloc[0], part)
        for image, hit in zip(scores.index[part], right, strict=True):
            of_image.setdefault(image, []).append(100 * hit)
    means = [np.mean(hits) for hits in of_image.values()]
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    row = found[(found["setting"] == "per") & (found["value"] == 0.5)].iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((50 - half, 50 + half))
    rate = found[found["setting"] == "lr_rate"].set_index("value")["robustness"]
    assert rate.to_dict() == pytest.approx({0.001: 70, 0.01: 60})
    assert (home / "models/figures/sensitivity.png").exists()


def test_robustness_counts_every_unseen_sample_once(home):
    folder = made_up(home, n=50)
    rows = tables.unseen(read_studies({folder: 0}).last)
    assert set(rows.loc[rows["method"] == "at-pgd", "split"]) == {"validation", "test"}
    cells = tables.robustness_table(rows).set_index(["method", "attack"])
    assert cells.loc[("dare", "pgd"), "n"] == 150 and cells.loc[("at-pgd", "pgd"), "n"] == 100
    of_dare = rows[(rows["method"] == "dare") & (rows["attack"] == "pgd")]
    expected = (of_dare["n"] * of_dare["empirical_robustness"]).sum() / 150
    assert cells.loc[("dare", "pgd"), "robustness"] == pytest.approx(expected)


def test_cost_is_the_sum_of_the_stages(home):
    folder = made_up(home)
    cost = networks.cost_table(read_studies({folder: 0})).set_index("method")
    assert cost.loc["dare", ["seconds", "epochs"]].tolist() == [10 + 3 + 7, 10]
    assert cost.loc["control-random", "seconds"] == 10 + 3 + 5 + 7
    # Of 20 s the share of the samples that it was tuned on; none of the held-out samples.
    assert cost.loc["at-pgd", "seconds"] == pytest.approx(0.6 * 20 + 6)
    assert "dare-s" not in cost.index and not cost["unknown"].any()  # it has no log
    # Where the mining of DARE's layer is not recorded, another layer's does not replace it.
    text = (folder / "get_ats.log").read_text().splitlines()
    (folder / "get_ats.log").write_text("\n".join(text[2:]))
    cost = networks.cost_table(read_studies({folder: 0}))
    assert networks.cost_text(cost, [("digits", "lenet")]).iloc[0, 1] == "10 s, 5.0 + mine"


def test_warnings_are_one_sentence_for_each_kind(home):
    few = {folder: 0 for model in ("vgg16", "vgg19")
           for folder in [made_up(home, n=20, model=model, dataset="svhn")]}  # fmt: skip
    found = read_studies(few)
    texts = networks.warnings(found, networks.networks_table(found))
    assert len(texts) == 4 and all(text.count(". ") == 0 for text in texts)
    assert "718 images, the paper's 36,628" in texts[0] and "had 20 samples" in texts[1]
    assert "fewer than 50 samples of an attack in vgg16 svhn, vgg19 svhn" in texts[2]
    assert "Fewer than 100 images were mined" in texts[3]


def test_a_study_without_dare_or_anything_else(home, undrawn):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "at-pgd", "control-swa")})
    for name in ("adaptive.csv", "log.csv", "ats_conv3.h5", "get_ats.log", "train.log"):
        (folder / name).unlink()
    script.main([])
    assert (folder.parent / "report.html").exists()


def test_one_network_of_several(home, results, undrawn):
    """Of names that begin alike, or that a table could take for something else."""
    for model in ("lenet", "alexnet"):
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, model=model)
    for dataset, model in (("digits_small", "lenet"), ("NA", "own"), ("007", "own")):
        made_up(home, dataset=dataset, model=model)
    script.main(["--dataset", "digits", "--model", "lenet"])
    target = home / "models/digits_lenet"
    assert set(pd.read_csv(target / "table.csv")["model"]) == {"lenet"}
    script.main(["--dataset", "digits"])
    assert set(pd.read_csv(home / "models/digits/table.csv")["model"]) == {"lenet", "alexnet"}
    script.main(["--record", "mine", "--model", "own"])
    assert read_recorded(results / "mine").networks == [("007", "own"), ("NA", "own")]


def test_paper_tables(home, undrawn):
    script.main(["--paper"])
    text = (home / "models/paper/table.md").read_text()
    assert "in 22 of 36 scenarios" in text
    assert (home / "models/paper/report.html").exists()
    assert len(pd.read_csv(home / "models/paper/table_wilcoxon.csv")) == 144


def test_unknown_images_and_a_network_that_is_not_broken(home, undrawn):
    folder = made_up(home)
    table = pd.read_csv(folder / "adaptive.csv")
    table.loc[table["method"] == "dare", "unknown"] = 3
    table.to_csv(folder / "adaptive.csv", index=False)
    text = networks.adaptive_text(
        networks.adaptive_table(read_studies({folder: 0})), [("digits", "lenet")]
    )
    assert list(text.columns) == ["method", "lenet digits, 0.01 and 0.02 *"]
    assert text.iloc[:, 1].tolist()[:2] == ["30.0, 30.0", "40.0, 40.0 (3 unknown)"]


@pytest.mark.parametrize(
    ("name", "step"), [("robustness", "dare/test.py"), ("adaptive", "dare/test.py --adaptive")]
)
def test_tables_that_people_have_touched(home, undrawn, name, step):
    folder = made_up(home)
    path = folder / f"{name}.csv"
    text = path.read_text()
    for touched in ("", text[:-5], text.replace(",", ";")):
        path.write_text(touched)
        with pytest.raises(UserError, match=rf"{name}.csv is empty, .*again with.*{step}`"):
            script.main([])
    path.write_text(text.split("\n")[0] + "\n")
    if name == "adaptive":  # no method to attack was tuned
        script.main([])
        assert not (folder.parent / "table_adaptive.csv").exists()
        return
    for old in path.read_text(), text.replace("best", "most robust"):
        path.write_text(old)
        with pytest.raises(UserError, match="is of an earlier version or has no rows"):
            script.main([])


def test_nothing_to_show(home, results):
    with pytest.raises(UserError, match="has no results of these names: give --results one of"):
        script.main(["--results", "yours"])
    with pytest.raises(UserError, match="exclude each other"):
        script.main(["--results", "yours", "--paper"])


# ------------------------------------------------------------------------------------ the record


def test_recorded_results_give_the_same_tables(home, results, undrawn):
    """Also after models/ is gone; a network that is recorded again replaces its earlier record."""
    folder = made_up(home)
    (folder / "checkpoints").mkdir()
    with h5py.File(folder / "checkpoints/model.040.weights.h5", "w") as file:
        file["layer/kernel"] = np.ones((3, 5))
    names = ("table.csv", "table_comparisons.csv", "table_networks.csv", "table_cost.csv")
    names += ("table_adaptive.csv", "table.md")
    script.main([])
    expected = {name: (folder.parent / name).read_text() for name in names}
    assert "1.5e-05" in expected["table_networks.csv"]
    script.main(["--record", "mine"])
    (folder / "adaptive.csv").rename(folder / "kept")
    script.main(["--record", "mine"])  # nothing of the earlier record stays
    assert not (results / "mine/adaptive.csv").exists()
    (folder / "kept").rename(folder / "adaptive.csv")
    made_up(home, model="own")
    script.main(["--record", "mine", "--model", "own"])
    script.main(["--record", "mine"])
    kept = pd.read_csv(results / "mine/robustness.csv")
    assert not kept.duplicated().any() and set(kept["model"]) == {"lenet", "own"}
    assert "tensorflow" in (results / "mine/commands.csv").read_text()
    shutil.rmtree(home / "models")
    script.main(["--results", "mine", "--dataset", "digits", "--model", "lenet"])
    found = {name: (results / "mine/digits_lenet" / name).read_text() for name in names}
    assert found == expected
    (results / "mine/table.csv").unlink()
    script.main(["--results", "mine"])
    assert set(pd.read_csv(results / "mine/table.csv")["model"]) == {"lenet", "own"}


def test_a_log_that_is_cut_off_and_a_stage_that_did_nothing(home):
    commands = read_studies({made_up(home): 0}).tables["commands"]
    assert sorted(commands["seconds"]) == [1, 2, 3, 5, 6, 7, 7, 10, 20, 40]
    assert set(commands["command"]) == {"python dare/script.py --seed 0"}
