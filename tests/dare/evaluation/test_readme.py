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

RESULTS = ROOT / "dare/results"


def kept(name, table="table_comparisons"):
    return pd.read_csv(RESULTS / f"{name}/{table}.csv")


def section(path, begin, end):
    return (ROOT / path).read_text().split(begin)[1].split(end)[0]


def numbers(text):
    """The numbers in a text, without those in code, links and names such as VGG16 or 1e-4."""
    text = re.sub(r"`.*?`|\]\(.*?\)|\b[A-Za-z]+-?\d+\b|\b\d+e-\d+\b", "", text, flags=re.DOTALL)
    return re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.replace("95%", ""))


def over_networks():
    """The table of README.md, a DataFrame of text."""
    table = tables.comparisons_text(kept("main"))
    table["mean"] = table["points"].str.replace(r" \[.*\]", "", regex=True)
    table["ahead"] = table["ahead"].str.split(" of ").str[0]
    return table[["component", "DARE minus", "mean", "range", "ahead"]]


def test_the_readme_shows_recorded_comparisons():
    """All twelve rows over the large runs, and the rows of the demonstration."""
    found = section("README.md", "## What we found", "## Quick start")
    rows = markdown(over_networks()).splitlines()[2:]
    assert [line for line in found.splitlines() if line.startswith("| ")][1:] == rows
    assert len(numbers(found)) <= 60
    demo = tables.comparisons_text(kept("demo"))
    expected = {f"{c:28}{o:20}{p}" for c, o, p in demo.iloc[:, :3].itertuples(index=False)}
    shown = section("README.md", "component     ", "```").splitlines()[1:]
    assert len(shown) >= 3 and set(shown) <= expected


def values(name, component, other=None, column="difference"):
    """A comparison in each network of a folder of dare/results, and over them ("all"), a Series."""
    rows = tables.first_rows(kept(name))
    rows = rows[rows["component"] == component]
    rows = rows if other is None else rows[rows["other"] == other]
    return rows.set_index(["model", "dataset"])[column]


def over(name, component, other=None):
    """The size of a comparison over the networks of a folder, to one digit."""
    return f"{abs(values(name, component, other)['all', 'all']):.1f}"


def span(found, sign=1):
    """ "3.1 to 7.9" of a Series with a row for each network or seed."""
    found = (sign * found.drop(("all", "all"), errors="ignore")).round(1)
    return f"{found.min()} to {found.max()}"


def by_seed():
    """The comparisons of robustness in each training seed of the large runs, a DataFrame."""
    rows = kept("main").query("kind == 'robustness' and dataset != 'all'")
    return rows[~rows["seeds"].astype(str).str.contains(",")]


def robust(method):
    """Robustness of a method's last epochs in each large run, a Series in %.

    Without the networks in which the method is the original itself.
    """
    rows = kept("main", "table").query("rule == 'last' and attack == 'mean' and method == @method")
    return rows[rows["robustness"] > 0].set_index(["model", "dataset"])["robustness"]


def samples_of(name):
    """ "833 to 900": how many samples every adversarial training was tuned on."""
    found = networks.training_samples(read_recorded(RESULTS / name)).values()
    found = [n for of_network in found for n in of_network]
    return f"{min(found)} to {max(found)}"


def apart():
    """By how much two trainings of a network differ in a comparison, at most."""
    seeds = by_seed().groupby(["component", "dataset", "model"])["difference"]
    return (seeds.max() - seeds.min()).max()


def sentences():
    """What README.md and dare/results/README.md must say, with the numbers of the CSV files."""
    agreed, of_small = (kept(name, "table_agreement").iloc[0] for name in ("main", "small"))
    small_networks = kept("small", "table_networks")
    lost = (small_networks["paper_accuracy"] - small_networks["test_accuracy"]).max()
    swept = kept("sensitivity", "table_sensitivity")
    swept = swept.set_index(["setting", "method", "value"]).sort_index()
    per, rate = (swept.loc[(name, "dare")] for name in ("per", "lr_rate"))
    of_sl = swept.loc[("lr_rate", "dare-sl"), "robustness"]
    of_dare = robust("dare")[robust("control-self").index]
    of_last = swept.loc[("lr_rate", "dare-last")]
    cost = kept("main", "table_cost").pivot(index="study", columns="method", values="epochs")
    small = kept("small").query("dataset == 'all' and component == 'adversarial training'").iloc[0]
    heldout = values("main", "adversarial training", column="heldout_difference")
    checkpoint = by_seed().query("component == 'best checkpoint'")
    gain, *others = (
        values("main", "adaptive attack", other)
        for other in ("original", "control-finetune", "at-pgd")
    )
    assert (small_networks["images"] / small_networks["paper_images"]).max() < 1 / 6
    readme = [
        f"DARE is best in {agreed['dare_ours']:.0f} of {agreed['scenarios']:.0f} scenarios of "
        f"network and attack (in the paper in {agreed['dare_theirs']:.0f})",
        f"is {over('main', 'regression')} points behind DARE on average",
        f"another seed is {over('main', 'another training seed')} points ahead of DARE",
        f"DARE gains {span(gain)} points over the original, fine-tuning "
        f"{span(gain - others[0])} and adversarial training on pgd {span(gain - others[1])}.",
        f"differ by up to {apart():.1f} points",
    ]
    results = [
        f"has {span(values('main', 'adversarial training', column='clean_difference'))} points "
        f"less clean accuracy than DARE. It was tuned on {samples_of('main')} samples",
        f"by {span(checkpoint['difference'])} points in single seeds",
        f"has {per.robustness[0.05]:.1f}% at 0.05, {per.robustness[0.95]:.1f}% at 0.95",
        f"by {span(values('main', 'another training seed', column='heldout_difference'), -1)} "
        f"points",
        f"has {rate.robustness[1e-6]:.1f}% at 1e-6 and {rate.robustness[1e-3]:.1f}% at 1e-3, "
        f"nearer to adversarial training, at the cost of {-rate.change[1e-3]:.1f} points of clean "
        f"accuracy.",
        f"`dare-last` has {of_last.robustness[1e-3]:.1f}% and loses {-of_last.change[1e-3]:.1f}",
        f"near chance ({of_sl[1e-3]:.1f}%)",
        f"rank correlation of {agreed['means']:.0f} means with the paper's is "
        f"{agreed['rank_correlation']:.2f}. The same method is best in {agreed['same_winner']:.0f} "
        f"of {agreed['scenarios']:.0f} scenarios, and DARE in {agreed['dare_ours']:.0f} (in the "
        f"paper in {agreed['dare_theirs']:.0f}).",
        f"DARE took {span(cost['dare'] / cost['at-pgd'])} times as long as at-pgd and "
        f"{span(cost['dare'] / cost['at-cw'])} times as long as at-cw",
        f"fgsm and pgd it is {-heldout['all', 'all']:.1f} points ahead on average",
        f"reaches {span(robust('control-self'))}% where DARE has {span(of_dare)}%",
        f"reaches {span(robust('control-batchnorm'))}%, the mean of the earlier epochs' weights "
        f"{span(robust('control-swa'))}%",
        f"reach up to {lost:.0f} points less clean accuracy than the paper's, and adversarial "
        f"training had {samples_of('small')} samples",
        f"in {small['ahead']:.0f} of {small['cells']:.0f} networks, by {small['difference']:.1f} "
        f"points on average [{small['low']:.1f}, {small['high']:.1f}]",
        f"rank correlation is {of_small['rank_correlation']:.2f}; DARE is best in "
        f"{of_small['dare_ours']:.0f} of {of_small['scenarios']:.0f} scenarios, in the paper in "
        f"{of_small['dare_theirs']:.0f}.",
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
        "README.md": section("README.md", "## What we found", "\n| component"),
        results: section(results, "## Findings", "![Influence")
        + section(results, "## The small networks", "Most were tuned"),
    }
    for path, text in found.items():
        text = re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE)
        checked = {n.strip(",") for s in sentences()[path] for n in numbers(s)}
        assert {n.strip(",") for n in numbers(text)} <= checked, path


def test_the_results_show_every_network():
    path = "dare/results/README.md"
    results = read_recorded(RESULTS / "main")
    trained = networks.networks_text(networks.networks_table(results))
    assert markdown(trained) in section(path, "# What we found", "## DARE minus")
    table = tables.by_network(kept("main"), results.networks)
    assert markdown(table) in section(path, "## DARE minus", "## Findings")


def test_recorded_tables_are_made_from_what_is_recorded():
    """table_comparisons.csv of dare/results/small is what the recorded scores give today."""
    found = comparisons_table(read_recorded(RESULTS / "small", models=["vgg16"]))
    found, rows = (table[table["dataset"] != "all"] for table in (found, kept("small")))
    rows = rows[rows["model"] == "vgg16"]
    columns = ["difference", "low", "high", "clean_difference"]
    np.testing.assert_allclose(found[columns], rows[columns], atol=1e-6)


def test_results_are_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    ignored = (".html", ".svg", ".tex", ".log")
    files = [p for p in files if p.suffix not in ignored]
    files = [p for p in files if not re.search("(demo|other)/figures", str(p))]
    assert len(files) <= 80 and sum(path.stat().st_size for path in files) < 8e6
    assert len((RESULTS / "small/table.md").read_text().splitlines()) <= 500
