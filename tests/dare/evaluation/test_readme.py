"""What README.md and dare/results/README.md say, compared with the CSV files, and their size."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from dare.evaluation import networks, tables
from dare.evaluation.compare import comparisons_table
from dare.evaluation.report import markdown
from dare.evaluation.results import read_recorded

SMALL, MAIN = (ROOT / "dare/results" / name for name in ("small", "main"))


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
    table = tables.comparisons_text(kept("small"))[["component", "DARE minus", "points", "ahead"]]
    assert set(table["ahead"].str.split(" of ").str[1]) == {"9"}
    table["ahead"] = table["ahead"].str.split(" of ").str[0]
    rows = markdown(table).splitlines()[2:]
    assert [line for line in found.splitlines() if line.startswith("| ")][1:] == rows
    assert len(numbers(found)) <= 60
    demo = tables.comparisons_text(kept("demo"))
    expected = {f"{c:28}{o:20}{p}" for c, o, p in demo.iloc[:, :3].itertuples(index=False)}
    shown = section("README.md", "component     ", "```").splitlines()[1:]
    assert len(shown) >= 3 and set(shown) <= expected


def mean_of(component, other=None, column="difference", name="small"):
    """The size of a comparison, over the networks or of the only one, to one digit."""
    rows = tables.first_rows(kept(name))
    rows = rows[rows["component"] == component]
    rows = rows if other is None else rows[rows["other"] == other]
    return round(abs(rows[column].iloc[-1]), 1)  # the row over networks is the last


def large_run(component, other=None, column="difference"):
    """The same of the large run."""
    return mean_of(component, other, column, "main")


def cells_of(component, model=None, dataset=None, seeds=False):
    rows = kept("small")
    rows = rows[(rows["dataset"] != "all") & (rows["component"] == component)]
    rows = rows if seeds else tables.first_rows(rows)
    for name, value in (("model", model), ("dataset", dataset)):
        rows = rows[rows[name] == value] if value else rows
    return rows["difference"].round(1)


def sentences():
    """What README.md and dare/results/README.md must say, with the numbers of the CSV files."""
    agreed, agreed_too = (kept(n, "table_agreement").iloc[0] for n in ("small", "main"))
    large = kept("main", "table_networks")
    trained, cells = kept("small", "table_networks"), kept("small", "table")
    swept = kept("sensitivity", "table_sensitivity")
    per = swept[(swept["setting"] == "per") & (swept["method"] == "dare")]
    per = per.set_index(per["value"].astype(float))["robustness"]
    images = [f"{n:,.0f}" for column in ("images", "paper_images")
              for n in (trained[column].min(), trained[column].max())]  # fmt: skip
    lost = (trained["paper_accuracy"] - trained["test_accuracy"]).max()
    at_best = kept("small").query("dataset == 'all' and component == 'adversarial training'")
    at_best = at_best.iloc[0]
    history, drift = (
        tables.first_rows(kept("small")[kept("small")["component"] == component])
        .query("dataset != 'all' and originals == 0")
        .set_index("model")["difference"]
        for component in ("mined history", "beyond batch normalisation")
    )
    of_alexnet, of_vgg = history["alexnet"], history.drop("alexnet")
    samples, more_samples = (
        [n for found in networks.training_samples(results).values() for n in found]
        for results in map(read_recorded, (SMALL, MAIN))
    )
    best_seeds = cells_of("best checkpoint", "alexnet", "fashion_mnist", seeds=True)
    seed_cells = cells_of("another training seed")
    held_out_seed = large_run("another training seed", column="heldout_difference")
    assert set(cells["rule"]) == {"last", "best"}
    assert kept("main")["low"].iloc[0] < 0  # of adversarial training
    readme = [
        f"up to {images[1]} training images, in the paper at least {images[2]};",
        f"accuracy is up to {lost:.0f} points lower",
        f"DARE is best in {agreed['dare_ours']:.0f} of {agreed['scenarios']:.0f} scenarios of",
        f"in the paper in {agreed['dare_theirs']:.0f}). In the large run it "
        f"leads by {large_run('adversarial training')} points; the interval includes 0.",
        f"is {mean_of('regression')} points ahead** of fine-tuning on the same images,",
        f"seed is {mean_of('another training seed')} points ahead of DARE, in the large run "
        f"{large_run('another training seed')}, and {held_out_seed} on held-out samples",
    ]
    results = [
        f"in {at_best['ahead']:.0f} of {at_best['cells']:.0f} networks, by "
        f"{mean_of('adversarial training')} points on average",
        f"over networks, {at_best['low']:.1f} to {at_best['high']:.1f}, includes 0",
        f"loses {-cells_of('clean accuracy').min()} points in VGG19 on CIFAR-10",
        f"has {mean_of('adversarial training', column='clean_difference')} less than DARE on",
        f"worth {history.mean():.1f} points on average in the seven networks with batch "
        f"normalisation: {of_alexnet.min():.1f} to {of_alexnet.max():.1f} in AlexNet, in VGG "
        + "{:.1f}, {:.1f}, {:.1f} and {:.1f}. In".format(*sorted(of_vgg, reverse=True)),
        f"by {mean_of('best checkpoint')} points on average, but seeds differ: from "
        f"{best_seeds.min()} to {best_seeds.max()} points",
        f"in all nine AlexNet seeds, by {mean_of('regression')} points on average",
        f"are {mean_of('transformation')} and {mean_of('inner layer')} points behind on average, "
        f"and {-cells_of('transformation').min()} and {-cells_of('inner layer').min()} ahead",
        f"worth {cells_of('slicing').min()} to {cells_of('slicing').max()} points",
        f"has {per[0.05]:.1f}% at 0.05 and {per[0.95]:.1f}% at 0.95",
        f"DARE is {drift.mean():.1f} points ahead of the drift of batch normalisation in the "
        f"networks that have it, and {mean_of('beyond averaged epochs')} ahead of averaged epochs",
        f"by {-seed_cells.max()} to {-seed_cells.min()} points: the metric",
        f"gains {mean_of('adaptive attack', 'original')} points over the original",
        f"Fine-tuning gains {mean_of('adaptive attack', 'control-finetune')} more, adversarial "
        f"training on pgd {mean_of('adaptive attack', 'at-pgd')} less.",
        f"rank correlation of {agreed['means']:.0f} means is {agreed['rank_correlation']:.2f}",
        f"best in {agreed['same_winner']:.0f} of {agreed['scenarios']:.0f} scenarios. DARE is best "
        f"in {agreed['dare_ours']:.0f} of them, in the paper in {agreed['dare_theirs']:.0f}.",
        f"had {min(samples)} to {max(samples)} samples of an attack",
        f"as in the paper, {large['images'].max():,.0f}, in {large['epochs'].max():.0f} epochs",
        " and ".join(f"{accuracy:.1f}%" for accuracy in large["test_accuracy"])
        + f" clean accuracy, in the paper {large['paper_accuracy'].max():.1f}%",
        f"{min(more_samples)} to {max(more_samples)} are for adversarial training",
        f"worth {large_run('inner layer')} to {large_run('mined history')} points, the best "
        f"checkpoint {large_run('best checkpoint')} and the slice {large_run('slicing')}.",
        f"with up to {max(more_samples)} samples, and has "
        f"{large_run('adversarial training', column='clean_difference')} points less clean",
        f"best in {agreed_too['dare_ours']:.0f} of {agreed_too['scenarios']:.0f} scenarios, in the "
        f"paper in {agreed_too['dare_theirs']:.0f}, but the rank correlation of "
        f"{agreed_too['means']:.0f} means with the paper's is {agreed_too['rank_correlation']:.2f}",
        f"is {large_run('another training seed')} points ahead of DARE, and {held_out_seed} on",
        f"is {large_run('adaptive attack', 'control-finetune')} points ahead of fine-tuning "
        f"({large_run('adaptive attack', 'control-finetune', 'low')} to "
        f"{large_run('adaptive attack', 'control-finetune', 'high')})",
        f"training on pgd (-{large_run('adaptive attack', 'at-pgd')}),",
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
    results = "dare/results/README.md"
    found = {
        "README.md": section("README.md", "## What we found", "\nPoints:"),
        results: section(results, "## Findings", "![Influence")
        + section(results, "\n- **The components**", "```"),
    }
    allowed = {results: {"8", "9", "0", *map(str, range(1, 13))}}  # counts
    for path, text in found.items():
        checked = {n.strip(",") for s in sentences()[path] for n in numbers(s)}
        assert {n.strip(",") for n in numbers(text)} <= checked | allowed.get(path, set()), path


def test_the_results_show_every_network():
    table = tables.by_network(kept("small"), read_recorded(SMALL).networks)
    table = table.replace(r" \[.*?\]", "", regex=True)
    shown = section("dare/results/README.md", "## DARE minus", "![").splitlines()
    assert [s for s in shown if s.startswith("| ")][2:] == markdown(table).splitlines()[2:]


def test_the_results_show_the_large_run():
    table = markdown(tables.comparisons_text(kept("main")))
    assert table in section("dare/results/README.md", "## A large run", "## What the small")


def test_recorded_tables_are_made_from_what_is_recorded():
    """table_comparisons.csv of dare/results/small is what the recorded scores give today."""
    found = comparisons_table(read_recorded(SMALL, models=["vgg16"]))
    found, rows = (table[table["dataset"] != "all"] for table in (found, kept("small")))
    rows = rows[rows["model"] == "vgg16"]
    columns = ["difference", "low", "high", "clean_difference"]
    np.testing.assert_allclose(found[columns], rows[columns], atol=1e-6)


def test_results_are_small():
    files = [path for path in (ROOT / "dare/results").rglob("*") if path.is_file()]
    ignored = (".html", ".svg", ".tex", ".log")
    files = [p for p in files if p.suffix not in ignored]
    files = [p for p in files if not re.search("(demo|other)/figures", str(p))]
    assert len(files) <= 75 and sum(path.stat().st_size for path in files) < 6e6
    assert len((SMALL / "table.md").read_text().splitlines()) <= 500
