"""DARE minus another method: in a network, over networks, and what the paper's own numbers give."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up import ATTACKS, PLAIN, made_up
from scipy import stats

from dare.evaluation import compare, results
from dare.evaluation.compare import ALL, comparisons_table, one_number_an_image
from dare.evaluation.results import read_studies
from dare.evaluation.scores import Scores


def table_of(*folders):
    seeds = {folder: int(folder.name[-1]) for folder in folders}
    return (
        comparisons_table(read_studies(seeds))
        .set_index(["component", "dataset", "model"])
        .sort_index()
    )


def naive_differences(scores, first, second, splits, attacks=ATTACKS):
    """{image: difference in points}, with a loop over attacks and images."""
    found = {}
    for attack in attacks:
        for split in splits:
            part = f"{attack} {split}"
            bits = (np.unpackbits(scores.packed[part][sha]) for sha in (first, second))
            for image, dare, other in zip(scores.index[part], *bits, strict=False):
                found.setdefault(image, []).append(100.0 * (int(dare) - int(other)))
    return {image: np.mean(values) for image, values in found.items()}


@pytest.mark.parametrize(
    ("component", "method"),
    [("mined history", "control-self"), ("slicing", "dare-s"), ("adversarial training", "at-fgsm")],
)
def test_a_difference_is_what_the_packed_bits_say(home, component, method):
    # The best adversarial training is chosen on the validation samples.
    splits = ("test",) if method == "at-fgsm" else ("training", "validation", "test")
    folder = made_up(home)
    rows = pd.read_csv(folder / "robustness.csv").drop_duplicates("method").set_index("method")
    scores = Scores.read(folder / "scores.h5")
    sha = rows["sha256"]
    values = list(naive_differences(scores, sha["dare"], sha[method], splits).values())
    row = table_of(folder).loc[(component, "digits", "lenet")]
    assert (row["method"], row["images"]) == (method, len(values))
    assert row["difference"] == pytest.approx(np.mean(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert [row["low"], row["high"]] == pytest.approx([*expected])
    clean = (scores.right(sha[m], "clean reporting").mean() for m in ("dare", method))
    assert row["clean_difference"] == pytest.approx(100 * np.subtract(*clean))
    held_out = naive_differences(scores, sha["dare"], sha[method], ["heldout"], ATTACKS[:2])
    assert row["heldout_difference"] == pytest.approx(np.mean([*held_out.values()]))


def test_seeds_count_alike_and_shared_images_count_once():
    first, second = pd.Series([0.0, 100], [1, 2]), pd.Series([100.0, 0, 0, 0], [1, 2, 3, 4])
    values = one_number_an_image([first, second])
    assert values.mean() == pytest.approx((50 + 25) / 2) and len(values) == 4
    np.testing.assert_allclose(one_number_an_image([first]), first)
    # The same images in two seeds are no more evidence than their mean.
    both = one_number_an_image([first, first])
    np.testing.assert_allclose(both, first)


def test_runs_and_seeds(home):
    folders = [made_up(home, seed=seed, runs=2) for seed in (0, 1)]
    table = comparisons_table(read_studies({f: i for i, f in enumerate(folders)}))
    rows = table[table["component"] == "regression"]
    assert rows["seeds"].tolist() == ["0, 1", "0", "1"]
    mean, *of_seeds = rows["difference"]
    assert mean == pytest.approx(np.mean(of_seeds))
    # control-swa has no runs: its one model is compared with the mean of DARE's.
    assert (table["component"] == "beyond averaged epochs").sum() == 3


def test_over_networks(home):
    weak = PLAIN | {"dare": (0.4, 0.95, 0.4)}
    folders = [made_up(home, model="lenet"), made_up(home, weak, model="alexnet")]
    folders.append(made_up(home, model="vgg16"))
    table = table_of(*folders)
    row = table.loc[("regression", ALL, ALL)]
    cells = table.loc[("regression", "digits")]["difference"]
    assert (row["cells"], row["ahead"]) == (3, 2)
    assert [row["lowest"], row["highest"]] == [cells.min(), cells.max()]
    expected = stats.ttest_1samp(cells, 0).confidence_interval()
    assert [row["low"], row["high"]] == pytest.approx([*expected])


def test_a_control_that_is_the_original(home):
    folder = made_up(home)
    assert table_of(folder).loc[("mined history", "digits", "lenet"), "originals"] == 0
    rows = pd.read_csv(folder / "robustness.csv")
    original = rows.loc[rows["method"] == "original", "sha256"].iloc[0]
    is_self = rows["method"] == "control-self"
    rows.loc[is_self, ["sha256", "empirical_robustness", "is_original"]] = original, 0, True
    rows.to_csv(folder / "robustness.csv", index=False)
    row = table_of(folder).loc[("mined history", "digits", "lenet")]
    assert row["originals"] == 1 and row["difference"] == pytest.approx(70, abs=2)
    assert table_of(folder).loc[("clean accuracy", "digits", "lenet"), "originals"] == 0


def test_the_best_adversarial_training_is_chosen_on_the_validation_samples(home):
    folder = made_up(home)
    key = "adversarial training", "digits", "lenet"
    assert table_of(folder).loc[key, "method"] == "at-fgsm"
    rows = pd.read_csv(folder / "robustness.csv")
    is_validation = (rows["method"] == "at-pgd") & (rows["split"] == "validation")
    rows.loc[is_validation, "empirical_robustness"] = 99
    rows.to_csv(folder / "robustness.csv", index=False)
    assert table_of(folder).loc[key, "method"] == "at-pgd"


def test_methods_that_were_not_run_or_not_attacked(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "dare", "at-pgd")}, held_out=False)
    (folder / "adaptive.csv").unlink()
    table = table_of(folder)
    components = table.index.get_level_values("component")
    assert set(components) == {"adversarial training", "clean accuracy"}
    assert table["heldout_difference"].isna().all()


def test_adaptive_differences_are_of_the_attacked_models(home):
    folder = made_up(home)
    table = comparisons_table(read_studies({folder: 0}))
    rows = table[table["kind"] == "adaptive"].set_index("other")["difference"]
    assert rows["original"] == pytest.approx(10) and rows["at-pgd"] == pytest.approx(-10)


def test_own_setting_is_the_default_or_the_nearest(home):
    """Also the smaller of two rates that are as near; a DARE of single batches is left out."""
    settings = [{"lr_rate": 1e-4}, {"lr_rate": 1e-2}, {"per": 0.5}, {"choose_layer": "conv2"}]
    more = [("dare", (0.9, 0.9, 0.9), changed) for changed in [*settings, {"batches": 5}]]
    folder = made_up(home, more=more)
    own = read_studies({folder: 0}).last
    assert own[own["method"] == "dare"]["lr_rate"].unique().tolist() == [1e-3]
    assert own[own["method"] == "dare"]["sha256"].nunique() == 1
    rows = pd.read_csv(folder / "robustness.csv")
    rows = rows[~((rows["method"] == "dare") & rows["lr_rate"].eq(1e-3))]
    rows.to_csv(folder / "robustness.csv", index=False)
    own = read_studies({folder: 0}).last
    assert own[own["method"] == "dare"]["lr_rate"].unique().tolist() == [1e-4]
    # Other methods are compared at DARE's rate, those with rates of their own at these.
    assert set(own["method"]) == {"original", "dare", "at-fgsm", "at-pgd", "control-swa",
                                  "control-seed"}  # fmt: skip


@pytest.mark.parametrize("settings", [{"choose_layer": ["conv1", "conv2"]}, {"per": [0.3, 0.9]}])
def test_of_two_settings_one_is_compared(home, settings):
    ((name, values),) = settings.items()
    shares = (0.5, 0.9, 0.5)
    more = [(method, shares, {name: v}) for v in values for method in ("dare", "control-self")]
    own = read_studies({made_up(home, {"original": (0, 0.9, 0)}, more=more): 0}).last
    assert own.groupby("method")["sha256"].nunique().eq(1).all()
    assert own[name].dropna().unique().tolist() == [max(values) if name == "per" else "conv1"]


def test_the_paper_s_p_values():
    found = compare.wilcoxon_table(results.paper_rows())
    keys = ["model", "dataset", "attack", "method"]
    published = pd.read_csv(ROOT / "dare/paper/wilcoxon.csv").rename(columns={"baseline": "method"})
    both = published.merge(found, on=keys, suffixes=("", "_found"))
    assert len(both) == len(published) == 88
    np.testing.assert_allclose(both["p_value_found"], both["p_value"], rtol=1e-9)


@pytest.mark.parametrize(("runs", "tested"), [(2, False), (3, True)])
def test_wilcoxon_needs_six_runs(home, runs, tested):
    folders = {made_up(home, seed=seed, runs=runs): seed for seed in (0, 1)}
    table = compare.wilcoxon_table(read_studies(folders).last)
    assert bool(len(table)) == tested


def test_agreement_with_the_paper():
    theirs = compare.scenario_means(results.paper_rows())
    assert len(theirs) == 36
    same = compare.agreement(theirs, theirs)
    expected = {"scenarios": 36, "means": 180, "same_winner": 36, "dare_theirs": 22}
    assert same | expected == same and same["rank_correlation"] == pytest.approx(1)
    reversed_order = compare.agreement(-theirs, theirs)
    assert reversed_order["rank_correlation"] == pytest.approx(-1)
    assert reversed_order["same_winner"] == 0
    few = theirs.loc[["svhn"], ["dare", "at-cw", "at-pgd"]]  # only what both have is compared
    few.iloc[0, 1] = np.nan
    found = compare.agreement(few, theirs)
    assert found["means"] == 3 * 12 - 1 and found["rank_correlation"] > 0.99
    assert compare.agreement(theirs[["at-cw"]], theirs) == {}
