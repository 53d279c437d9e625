"""The report, the recorded results, the figures, and what README.md shows of them."""

import html
import itertools
import re
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up import PLAIN, made_up
from matplotlib.text import Text

import dare.evaluation.record
from dare import tables as script
from dare.evaluation import figures, networks, report, tables
from dare.evaluation.compare import comparisons_table
from dare.evaluation.report import markdown
from dare.evaluation.results import read_recorded, read_studies
from train.shared.flags import UserError

MAIN = ROOT / "dare/results/main"
DRAWN = ("trade_off", "comparisons", "adaptive", "mined_epochs")


@pytest.fixture
def results(home, monkeypatch):
    """The folder of recorded results, in place of dare/results."""
    monkeypatch.setattr(dare.evaluation.record, "RESULTS", home / "results")
    return home / "results"


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without their figures, which take most of the time."""
    monkeypatch.setattr(report, "save", lambda figure, path: "data:,")


# ---------------------------------------------------------------------------------- the report


def test_tables_and_report(home, capsys):
    folder = made_up(home)
    script.main([])
    out = capsys.readouterr().out
    assert "What each component of DARE is worth" in out and "Warning" not in out
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
    found = pd.read_csv(target / "table_comparisons.csv")
    wanted = "component other dataset model seeds images difference low high clean_difference"
    wanted += " heldout_difference cells lowest highest ahead"
    assert {*wanted.split()} <= {*found.columns}


def test_several_networks_and_seeds(home):
    for model, seed in itertools.product(("lenet", "alexnet"), (0, 1)):
        made_up(home, model=model, seed=seed)
    script.main([])
    table = (home / "models/table.md").read_text()
    assert re.search(r"\| regression \| control-finetune \| .*\| 2 of 2 \|", table)
    assert "| component | DARE minus | lenet digits 0 | lenet digits 1 |" in table or (
        "alexnet digits 0 | alexnet digits 1" in table
    )
    assert {*DRAWN, "trade_off_networks"} == {
        p.stem for p in (home / "models").glob("figures/*.png")
    }
    cells = pd.read_csv(home / "models/table.csv")
    assert set(cells["rule"]) == {"last", "best"} and set(cells["runs"]) == {2}


def test_settings_are_a_table_and_a_figure(home):
    more = [("dare", (share, 0.95, 0.4), {"per": per}) for share, per in ((0.2, 0.05), (0.5, 0.5))]
    more += [("dare", (0.6, 0.9, 0.4), {"lr_rate": 1e-2})]
    made_up(home, more=more)
    script.main([])
    found = pd.read_csv(home / "models/table_sensitivity.csv").astype({"value": float})
    per = found[found["setting"] == "per"].set_index("value")["robustness"]
    assert per.to_dict() == pytest.approx({0.05: 20, 0.5: 50, 0.95: 70})
    rate = found[found["setting"] == "lr_rate"].set_index("value")["robustness"]
    assert rate.to_dict() == pytest.approx({0.001: 70, 0.01: 60})
    assert (home / "models/figures/sensitivity.png").exists()
    # The tables of the methods have DARE at its own setting alone.
    cells = pd.read_csv(home / "models/table.csv")
    dare = cells[
        (cells["method"] == "dare") & (cells["attack"] == "mean") & (cells["rule"] == "last")
    ]
    assert dare["robustness"].tolist() == pytest.approx([70])


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
    assert "dare-s" not in cost.index  # it has no log


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


def test_one_network_of_several(home, undrawn):
    for model in ("lenet", "alexnet"):
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, model=model)
    made_up(home, dataset="digits_small")
    made_up(home, dataset="2024", model="own")
    script.main(["--dataset", "digits", "--model", "lenet"])
    target = home / "models/digits_lenet"
    assert set(pd.read_csv(target / "table.csv")["model"]) == {"lenet"}
    script.main(["--dataset", "digits"])
    assert set(pd.read_csv(home / "models/digits/table.csv")["model"]) == {"lenet", "alexnet"}
    script.main(["--model", "own"])  # a data set may be named like a number
    assert set(pd.read_csv(home / "models/own/table.csv", dtype=str)["dataset"]) == {"2024"}


def test_paper_tables(home, undrawn):
    script.main(["--paper"])
    text = (home / "models/paper/table.md").read_text()
    assert "in 22 of 36 scenarios" in text
    assert (home / "models/paper/report.html").exists()
    assert len(pd.read_csv(home / "models/paper/table_wilcoxon.csv")) == 144


def test_nothing_to_show(home, results):
    with pytest.raises(UserError, match=r"robustness.csv is missing.*dare/test.py"):
        script.main([])
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


def test_nothing_of_an_earlier_record_of_a_study_stays(home, results, undrawn):
    folder = made_up(home)
    script.main(["--record", "mine"])
    (folder / "adaptive.csv").unlink()
    script.main(["--record", "mine"])
    assert not (results / "mine/adaptive.csv").exists()


def test_a_log_that_is_cut_off_and_a_stage_that_did_nothing(home):
    commands = read_studies({made_up(home): 0}).tables["commands"]
    assert sorted(commands["seconds"]) == [3, 7, 10, 40]
    assert set(commands["command"]) == {"python dare/script.py --seed 0"}


# ------------------------------------------------------------------------------------ the figures


def overlaps(figure, texts):
    """Pairs of the shown texts whose boxes overlap."""
    figure.canvas.draw()
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts if t.get_text()]
    pairs = itertools.combinations(boxes, 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.overlaps(other)]


def test_labels_of_the_trade_off_do_not_overlap():
    cells = tables.robustness_table(tables.unseen(read_recorded(MAIN).last))
    figure = figures.trade_off(cells)
    labels = figure.axes[0].texts
    assert len(labels) == cells["method"].nunique() - 1
    assert overlaps(figure, labels) == []
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    low, high = figure.axes[0].get_xlim()
    assert len(points) == len(labels)
    assert all(low < point.get_xdata()[0] < high for point in points)  # nothing is clamped


def test_the_figure_of_comparisons_has_a_dot_for_each_network():
    table = pd.read_csv(MAIN / "table_comparisons.csv")
    figure = figures.comparisons(table)
    drawn = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "s", "^")]
    shown = [x for line in drawn for x in line.get_xdata()]
    cells = tables.first_rows(table[table["dataset"] != "all"])
    cells = cells[~cells["other"].isin(["at-pgd"]) | (cells["kind"] != "adaptive")]
    assert len(shown) == 12 * 9
    assert set(np.round(shown, 6)) <= set(np.round(cells["difference"], 6))
    assert len(figure.axes[0].get_yticklabels()) == 12


def test_spread_moves_labels_as_little_as_it_can():
    places = figures.spread(np.array([10.0, 50.0, 50.0, 51.0, 90.0]), 4)
    np.testing.assert_allclose(places, [10, 46.333333, 50.333333, 54.333333, 90])


# ----------------------------------------------------------------------- README and recorded CSVs


def kept(name, table="table_comparisons"):
    return pd.read_csv(ROOT / f"dare/results/{name}/{table}.csv")


def section(path, begin, end):
    return (ROOT / path).read_text().split(begin)[1].split(end)[0]


def numbers(text):
    """The numbers in a text, without those in code, links and names such as VGG16 or 1e-4."""
    text = re.sub(r"`.*?`|\]\(.*?\)|\b[A-Za-z]+-?\d+\b|\b\d+e-\d+\b", "", text, flags=re.DOTALL)
    return re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.replace("95%", ""))


def test_the_readme_shows_recorded_comparisons():
    """All twelve rows over networks, and the rows of the demonstration."""
    found = section("README.md", "## What we found", "## Quick start")
    table = tables.comparisons_text(kept("main"))[["component", "DARE minus", "points", "ahead"]]
    assert set(table["ahead"].str.split(" of ").str[1]) == {"9"}
    table["ahead"] = table["ahead"].str.split(" of ").str[0]
    rows = markdown(table).splitlines()[2:]
    assert [line for line in found.splitlines() if line.startswith("| ")][1:] == rows
    assert len(numbers(found)) <= 60
    demo = tables.comparisons_text(kept("demo"))
    expected = {f"{c:28}{o:20}{p}" for c, o, p in demo.iloc[:, :3].itertuples(index=False)}
    shown = section("README.md", "component     ", "```").splitlines()[1:]
    assert len(shown) >= 3 and set(shown) <= expected


def mean_of(component, other=None, column="difference"):
    """A value of a comparison over networks in dare/results/main, to one digit."""
    rows = kept("main")
    rows = rows[(rows["dataset"] == "all") & (rows["component"] == component)]
    return round(abs((rows if other is None else rows[rows["other"] == other])[column].iloc[0]), 1)


def cells_of(component, model=None, dataset=None, seeds=False):
    rows = kept("main")
    rows = rows[(rows["dataset"] != "all") & (rows["component"] == component)]
    rows = rows if seeds else tables.first_rows(rows)
    for name, value in (("model", model), ("dataset", dataset)):
        rows = rows[rows[name] == value] if value else rows
    return rows["difference"].round(1)


def sentences():
    """What README.md and dare/results/README.md must say, with the numbers of the CSV files."""
    agreed = kept("main", "table_agreement").iloc[0]
    trained, cells = kept("main", "table_networks"), kept("main", "table")
    swept = kept("sensitivity", "table_sensitivity")
    per = swept[(swept["setting"] == "per") & (swept["method"] == "dare")]
    per = per.set_index(per["value"].astype(float))["robustness"]
    images = [f"{n:,.0f}" for column in ("images", "paper_images")
              for n in (trained[column].min(), trained[column].max())]  # fmt: skip
    lost = (trained["paper_accuracy"] - trained["test_accuracy"]).max()
    at_best = kept("main").query("dataset == 'all' and component == 'adversarial training'").iloc[0]
    history = cells_of("mined history", "alexnet")
    samples = [
        n for found in networks.training_samples(read_recorded(MAIN)).values() for n in found
    ]
    best_seeds = cells_of("best checkpoint", "alexnet", "fashion_mnist", seeds=True)
    seed_cells = cells_of("another training seed")
    assert set(cells["rule"]) == {"last", "best"}
    readme = [
        f"trained on {images[0]} to {images[1]} images, the paper's on {images[2]} to {images[3]}",
        f"DARE is best in {agreed['dare_ours']:.0f} of the paper's {agreed['scenarios']:.0f}",
        f"where the paper has it best in {agreed['dare_theirs']:.0f}.",
        f"by {mean_of('regression')} points of the paper's metric",
        f"normalisation alone by {mean_of('beyond batch normalisation')}, and",
        f"averaged epochs by {mean_of('beyond averaged epochs')}.",
        f"seed is {mean_of('another training seed')} points ahead of DARE",
        f"level with DARE (-{mean_of('adaptive attack', 'control-finetune')} points)",
    ]
    results = [
        f"in {at_best['ahead']:.0f} of {at_best['cells']:.0f} networks, by "
        f"{mean_of('adversarial training')} points on average",
        f"over networks, {at_best['low']:.1f} to {at_best['high']:.1f}, includes 0",
        f"loses {-cells_of('clean accuracy').min()} points in VGG19 on CIFAR-10",
        f"has {mean_of('adversarial training', column='clean_difference')} less than DARE",
        f"worth {history.min()} to {history.max()} points in AlexNet",
        "worth "
        + ", ".join(
            str(cells_of("mined history", model, dataset).iloc[0])
            for model, dataset in (("vgg16", "svhn"), ("vgg16", "cifar10"))
        )
        + f" and {cells_of('mined history', 'vgg19', 'svhn').iloc[0]}, and "
        f"{cells_of('mined history', 'vgg19', 'cifar10').iloc[0]} with VGG19 on CIFAR-10",
        f"by {mean_of('best checkpoint')} points on average, but seeds differ: from "
        f"{best_seeds.min()} to {best_seeds.max()} points",
        f"in all nine AlexNet seeds, by {mean_of('regression')} points on average",
        f"are {mean_of('transformation')} and {mean_of('inner layer')} points behind on average, "
        f"and {-cells_of('transformation').min()} and {-cells_of('inner layer').min()} ahead",
        f"worth {cells_of('slicing').min()} to {cells_of('slicing').max()} points",
        f"has {per[0.05]:.1f}% at `per` 0.05 and {per[0.95]:.1f}% at 0.95",
        f"DARE is {mean_of('beyond batch normalisation')} points ahead of the drift of batch "
        f"normalisation and {mean_of('beyond averaged epochs')} ahead of averaged epochs",
        f"by {-seed_cells.max()} to {-seed_cells.min()} points: the metric",
        f"gains {mean_of('adaptive attack', 'original')} points over the original",
        f"(DARE is -{mean_of('adaptive attack', 'control-finetune')} points ahead)",
        f"nearly ({mean_of('adaptive attack', 'at-pgd')})",
        f"rank correlation of {agreed['means']:.0f} means is {agreed['rank_correlation']:.2f}",
        f"best in {agreed['same_winner']:.0f} of {agreed['scenarios']:.0f} scenarios. DARE is best "
        f"in {agreed['dare_ours']:.0f} of them, in the paper in {agreed['dare_theirs']:.0f}.",
        f"had {min(samples)} to {max(samples)} samples of an attack",
        f"up to {lost:.0f} points less clean accuracy",
    ]
    return {"README.md": readme, "dare/results/README.md": results}


@pytest.mark.parametrize("path", ["README.md", "dare/results/README.md"])
def test_sentences_have_the_recorded_numbers(path):
    text = " ".join((ROOT / path).read_text().split())
    missing = [sentence for sentence in sentences()[path] if sentence not in text]
    assert missing == []


def test_every_number_of_the_sentences_is_checked():
    """No number in the bullets and findings is outside the sentences above."""
    found = {
        "README.md": section("README.md", "## What we found", "\nPoints are"),
        "dare/results/README.md": section("dare/results/README.md", "## Findings", "![Influence"),
    }
    allowed = {"dare/results/README.md": {"8", "9", "0", *map(str, range(1, 13))}}  # counts
    for path, text in found.items():
        checked = {n.strip(",") for s in sentences()[path] for n in numbers(s)}
        assert {n.strip(",") for n in numbers(text)} <= checked | allowed.get(path, set()), path


def test_the_results_show_every_network():
    table = tables.by_network(kept("main"), read_recorded(MAIN).networks)
    table = table.replace(r" \[.*?\]", "", regex=True)
    assert (
        markdown(table).splitlines()[2:]
        == [
            line
            for line in section("dare/results/README.md", "## DARE minus", "![").splitlines()
            if line.startswith("| ")
        ][1:]
    )


def test_recorded_tables_are_made_from_what_is_recorded():
    """table_comparisons.csv of dare/results/main is what the recorded scores give today."""
    found = comparisons_table(read_recorded(MAIN, ["cifar10"], ["alexnet"]))
    rows = kept("main")
    rows = rows[(rows["dataset"] == "cifar10") & (rows["model"] == "alexnet")]
    columns = ["difference", "low", "high", "clean_difference"]
    np.testing.assert_allclose(found[columns], rows[columns], atol=1e-6)


def test_results_are_small():
    files = [path for path in (ROOT / "dare/results").rglob("*") if path.is_file()]
    ignored = (".html", ".svg", ".tex", ".log")
    files = [p for p in files if p.suffix not in ignored]
    files = [p for p in files if not re.search("(demo|other)/figures", str(p))]
    assert len(files) <= 60 and sum(path.stat().st_size for path in files) < 6e6
    assert len((MAIN / "table.md").read_text().splitlines()) <= 500
