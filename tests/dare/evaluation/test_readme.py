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


def rows_of(name, component, other=None):
    """The rows of a comparison in a folder of dare/results, without those of single seeds."""
    rows = tables.first_rows(kept(name))
    rows = rows[rows["component"] == component]
    return rows if other is None else rows[rows["other"] == other]


def mean_of(component, other=None, column="difference"):
    """The size of a comparison over the small networks, to one digit."""
    rows = rows_of("small", component, other)
    return round(abs(rows.loc[rows["dataset"] == "all", column].iloc[0]), 1)


def large(component, other=None, column="difference"):
    """A comparison in AlexNet's large runs on CIFAR-10 and Fashion-MNIST, to one digit."""
    rows = rows_of("main", component, other).query("model == 'alexnet'")
    return tuple(rows.set_index("dataset")[column][["cifar10", "fashion_mnist"]].round(1))


def samples_of(folder):
    """How many samples every adversarial training in a folder of dare/results was tuned on."""
    found = networks.training_samples(read_recorded(folder)).values()
    return [n for of_network in found for n in of_network]


def cells_of(component, model=None, dataset=None, seeds=False):
    rows = kept("small")
    rows = rows[(rows["dataset"] != "all") & (rows["component"] == component)]
    rows = rows if seeds else tables.first_rows(rows)
    for name, value in (("model", model), ("dataset", dataset)):
        rows = rows[rows[name] == value] if value else rows
    return rows["difference"].round(1)


def sentences():
    """What README.md and dare/results/README.md must say, with the numbers of the CSV files."""
    agreed = kept("small", "table_agreement").iloc[0]
    trained, cells = kept("small", "table_networks"), kept("small", "table")
    swept = kept("sensitivity", "table_sensitivity")
    swept = swept.set_index(["setting", "method", "value"]).sort_index()
    per, rate = (swept.loc[(name, "dare")] for name in ("per", "lr_rate"))
    of_sl = swept.loc[("lr_rate", "dare-sl"), "robustness"]
    lost = (trained["paper_accuracy"] - trained["test_accuracy"]).max()
    at_best = kept("small").query("dataset == 'all' and component == 'adversarial training'")
    at_best = at_best.iloc[0]
    history, drift = (
        rows_of("small", component)
        .query("dataset != 'all' and originals == 0")
        .set_index("model")["difference"]
        for component in ("mined history", "beyond batch normalisation")
    )
    of_alexnet, of_vgg = history["alexnet"], history.drop("alexnet")
    samples = samples_of(SMALL)
    best_seeds = cells_of("best checkpoint", "alexnet", "fashion_mnist", seeds=True)
    seed_cells = cells_of("another training seed")
    assert set(cells["rule"]) == {"last", "best"}
    assert (trained["images"] / trained["paper_images"]).max() < 1 / 6
    readme = [
        f"DARE is best in {agreed['dare_ours']:.0f} of {agreed['scenarios']:.0f} scenarios of",
        f"in the paper in {agreed['dare_theirs']:.0f}).",
        f"is {mean_of('regression')} points ahead** of fine-tuning on the same images,",
        f"seed is {mean_of('another training seed')} points ahead of DARE,",
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
        f"has {per.robustness[0.05]:.1f}% at 0.05, {per.robustness[0.95]:.1f}% at 0.95",
        f"has {rate.robustness[1e-6]:.1f}% at 1e-6 and {rate.robustness[1e-3]:.1f}% at 1e-3, for "
        f"{-rate.change[1e-3]:.1f} points of clean accuracy.",
        f"near chance ({of_sl[1e-3]:.1f}%)",
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
        f"up to {lost:.0f} points less clean accuracy",
    ]
    of_large = sentences_of_large_runs()
    return {"README.md": readme + of_large[0], "dare/results/README.md": results + of_large[1]}


def sentences_of_large_runs():
    """The same of the large runs: those of README.md, and of dare/results/README.md."""
    trained, agreed = kept("main", "table_networks"), kept("main", "table_agreement").iloc[0]
    theirs = trained.drop_duplicates("dataset")
    clean = [f"{value:.1f}%" for value in trained["test_accuracy"]]
    samples = samples_of(MAIN)
    seeds = kept("main").query("kind == 'robustness' and dataset != 'all'")
    seeds = seeds[~seeds["seeds"].astype(str).str.contains(",")]
    seeds = seeds.groupby(["component", "dataset"])["difference"].agg(["min", "max"])
    apart = (seeds["max"] - seeds["min"]).groupby("dataset").max()
    checkpoint = seeds.loc["best checkpoint"]
    at_seeds = -seeds.loc[("adversarial training", "fashion_mnist")]
    cost = kept("main", "table_cost").groupby("method")["epochs"].agg(["min", "max"])
    best, pgd = large("adversarial training"), large("adaptive attack", "at-pgd")
    original, finetune = (large("adaptive attack", o) for o in ("original", "control-finetune"))
    seed, held_out = (
        large("another training seed", column=c) for c in ("difference", "heldout_difference")
    )
    components = [v for c in ("mined history", "regression", "transformation", "inner layer")
                  for v in large(c)]  # fmt: skip
    assert best[0] > 0 > best[1] and max(*seed, *held_out, *pgd) < 0 < min(*original, *finetune)
    readme = [
        f"In the large runs it is {best[0]} points ahead (CIFAR-10) and {-best[1]} behind.",
        f"in the large runs {-seed[0]} and {-seed[1]}.",
        f"large runs a little, {original[0]} and {original[1]}; there at-pgd is up to {-pgd[1]}",
    ]
    results = [
        "in the paper, {:,.0f} and {:,.0f}, in 40 epochs".format(*theirs["images"]),
        f"is {clean[0]} and {clean[1]} on CIFAR-10 (in the paper {theirs.iloc[0].paper_accuracy}%),"
        f" {clean[2]} and {clean[3]} on Fashion-MNIST ({theirs.iloc[1].paper_accuracy}%).",
        f"had {min(samples)} to {max(samples)} samples of an attack (the paper's about 3,000). Of "
        "8,000 images {:,.0f} to {:,.0f} were mined".format(*trained["mined"].agg(["min", "max"])),
        f"worth {min(components)} to {max(components)} points, the best checkpoint "
        "{} and {} (by seed {:.1f} to {:.1f}).".format(
            *large("best checkpoint"), checkpoint["min"].min(), checkpoint["max"].max()
        ),
        f"slice adds {large('slicing')[0]} on CIFAR-10 and costs {-large('slicing')[1]} on",
        f"is {best[0]} points behind DARE on CIFAR-10, where the interval includes 0, and "
        f"{-best[1]} ahead on Fashion-MNIST (by seed {at_seeds['max']:.1f} and "
        f"{at_seeds['min']:.1f}), with "
        "{} and {} points less".format(*large("adversarial training", column="clean_difference")),
        f"best in {agreed['dare_ours']:.0f} of {agreed['scenarios']:.0f} scenarios, all of "
        f"CIFAR-10 (most robust epochs), in the paper in {agreed['dare_theirs']:.0f}; the rank "
        f"correlation of {agreed['means']:.0f} means with the paper's is "
        f"{agreed['rank_correlation']:.2f}",
        f"is {-seed[0]} and {-seed[1]} points ahead of DARE, and {-held_out[0]} and {-held_out[1]} "
        f"on held-out",
        f"is {original[0]} and {original[1]} points ahead of the original and, unlike in the small "
        f"networks, {finetune[0]} and {finetune[1]} ahead of",
        f"CIFAR-10 ({-pgd[0]} ahead) and {-pgd[1]} points ahead on Fashion-MNIST.",
        f"differ by up to {apart['fashion_mnist']:.1f} points in a comparison on",
        f"and by up to {apart['cifar10']:.1f} on CIFAR-10",
        "DARE took {:.1f} to {:.1f}, at-pgd {:.1f} to {:.1f} (less in all four), and at-bim {:.1f} "
        "to {:.1f}.".format(*cost.loc[["dare", "at-pgd", "at-bim"]].to_numpy().ravel()),
    ]
    return readme, results


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


def test_the_results_show_the_large_runs():
    table = markdown(tables.by_network(kept("main"), read_recorded(MAIN).networks))
    assert table in section("dare/results/README.md", "## Large runs", "## What the small")


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
    assert len(files) <= 80 and sum(path.stat().st_size for path in files) < 8e6
    assert len((SMALL / "table.md").read_text().splitlines()) <= 500
