"""Intervals, tables, verdict, warnings and report, on the paper's figures and made-up studies."""

import hashlib
import html
import itertools
import json
import shutil
import time

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.text import Text
from scipy import stats

import dare.evaluation.record
from dare import tables
from dare.evaluation import claims, differences, figures, intervals, report, runs, verdict
from dare.evaluation.runs import RecordedRuns
from train.flags import UserError

# -------------------------------------------------------------------------------- made-up studies

ATTACKS = ("fgsm", "pgd", "cw")
DEFAULTS = {"per": 0.95, "choose_layer": "conv3", "lr_rate": 1e-3}
SETTINGS = {
    "original": {},
    "dare-s": {"choose_layer": "conv3", "lr_rate": 1e-3},
    "control-finetune": {"choose_layer": "conv3", "lr_rate": 1e-3},
    "control-batchnorm": {"choose_layer": "conv3"},
    "control-checkpoint": {},
    "control-seed": {},
    "control-swa": {},
}
PLAIN = {  # method: (robustness, clean accuracy, robust accuracy under adaptive attack)
    "original": (0.0, 0.95, 0.3),
    "dare": (0.7, 0.95, 0.4),
    "dare-s": (0.7, 0.95, 0.4),
    "at-pgd": (0.5, 0.95, 0.5),
    "control-self": (0.6, 0.95, 0.3),
    "control-single": (0.6, 0.95, 0.3),
    "control-batchnorm": (0.5, 0.95, 0.3),
    "control-finetune": (0.6, 0.95, 0.3),
    "control-checkpoint": (0.5, 0.95, 0.3),
    "control-swa": (0.6, 0.95, 0.3),
    "control-noise": (0.4, 0.95, 0.3),
    "control-seed": (0.5, 0.95, 0.3),
}


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def exactly(share, n, order):
    """bool (n,): the share of images that come first in `order` are right."""
    right = np.zeros(n, bool)
    right[order[: round(share * n)]] = True
    return right


def made_up(home, methods=PLAIN, seed=0, run_count=1, n=300, model="lenet", more=()):
    """A study's folder with robustness.csv, scores.h5, adaptive.h5 and .csv, log.csv and samples.

    Harder images are harder for all methods, but for a quarter of them that are a method's own
    luck, so that results are paired. more: rows like a method of `methods`, with settings.
    """
    rng = np.random.default_rng([seed, 1])
    folder = home / "models" / f"digits_{model}_seed{seed}"
    (folder / "adv").mkdir(parents=True)
    parts = {f"{a} {s}": np.sort(rng.choice(2 * n, n, replace=False)) for a in ATTACKS
             for s in ("validation", "test")}  # fmt: skip
    parts |= {
        f"clean {half}": np.arange(n) + i * n for i, half in enumerate(("selection", "reporting"))
    }
    rows, adaptive, scores, robust = [], [], {}, {}
    difficulty = rng.random(4 * n)
    jobs = [(m, v, {}) for m, v in methods.items()] + list(more)
    for method, (robustness, clean, own), changed in jobs:
        single = method in runs.WITHOUT_RUNS
        for run in range(1 if single else run_count):
            digest = sha(len(scores))
            noise = np.random.default_rng([seed, len(scores), 2])
            of_image = difficulty + 0.25 * noise.random(4 * n)
            right = {
                part: exactly(clean if part.startswith("clean") else robustness, len(index),
                              np.argsort(of_image[index])) for part, index in parts.items()
            }  # fmt: skip
            scores[digest] = right
            about = {"dataset": "digits", "model": model, "source": f"M{seed}", "run": run}
            about |= {"seed": seed, "method": method, "epoch": 3, "sha256": digest}
            about |= {"per": None, "choose_layer": None, "batches": None, "lr_rate": None}
            about |= SETTINGS.get(method, DEFAULTS) | changed
            original = scores[sha(0)]["clean selection"].mean()
            within = right["clean selection"].mean() >= original - 0.01 - 1e-9
            for attack, split in itertools.product(ATTACKS, ("validation", "test")):
                rows.append(
                    about
                    | {"attack": attack, "split": split, "n": n, "selected": True}
                    | {"empirical_robustness": 100 * right[f"{attack} {split}"].mean()}
                    | {"test_accuracy": 100 * right["clean reporting"].mean()}
                    | {"selection_accuracy": 100 * right["clean selection"].mean()}
                    | {"selected_within_1": within}
                )
            robust[digest] = {}
            for norm, sizes in {"linf": (0, 0.01, 0.0001), "l2": (0, 0.5)}.items():
                for size in sizes:
                    share = own if size else clean
                    still = exactly(share, n, np.argsort(of_image[:n])).astype("uint8")
                    robust[digest][f"{norm}/worst/{size:g}"] = still
                    low, high = (100 * v for v in intervals.wilson(still.sum(), n))
                    row = {"norm": norm, "attack": "worst", "epsilon": size, "n": n, "unknown": 0}
                    value = {"robust_accuracy": 100 * still.mean(), "low": low, "high": high}
                    adaptive.append(about | row | value)
    pd.DataFrame(rows).to_csv(folder / "robustness.csv", index=False)
    pd.DataFrame(adaptive).to_csv(folder / "adaptive.csv", index=False)
    with h5py.File(folder / "scores.h5", "w") as file:
        for part, index in parts.items():
            file[f"parts/{part}"] = index.astype("int64")
            file[f"parts/{part}"].attrs["provenance"] = "0" * 64
        for digest, of_model in scores.items():
            for part, right in of_model.items():
                file[f"models/{digest}/{part}"] = np.packbits(right)
    with h5py.File(folder / "adaptive.h5", "w") as file:
        file["index"] = np.arange(n)
        for digest, of_model in robust.items():
            for name, still in of_model.items():
                file[f"{digest}/{name}"] = still
    others(folder, n)
    return folder


def others(folder, n):
    """log.csv, samples, targets, slices and a log of a made-up study."""
    epoch = np.arange(1, 21)
    log = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
    log |= {"val_loss": 1 / epoch, "val_accuracy": 0.97 - 0.5 / epoch, "lr": 0.01, "seconds": 1.0}
    pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
    for attack in ATTACKS:
        with h5py.File(folder / f"adv/{attack}.h5", "w") as file:
            file["success"] = np.ones(n, bool)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "ats_conv3.h5", "w") as file:
        file["index"], file["epoch"] = np.arange(200), rng.integers(10, 20, 200)
        file.attrs["first"] = 10
    with h5py.File(folder / "slice_0.95.h5", "w") as file:
        for order, name in enumerate(("conv1", "conv2", "conv3", "dense1", "predictions")):
            group = file.create_group(name)
            group.attrs["order"] = order
            group["class_mask"] = rng.random((10, 20, 20)) < 0.9
            group["mask"] = rng.random((20, 20)) < 0.95
    entry = {"stage": "mine", "command": [str(ROOT / "dare/get_ats.py"), "--seed", "0"]}
    entry |= {"start": "2024-01-01 10:00:00", "peak_memory_gb": 1.0}
    entry |= {
        "settings": {"images": 9},
        "packages": {"tensorflow": "2.21"},
        "device": "a processor",
    }
    ends = [("done", 12.5), ("idle", 0.0), (None, None)]
    lines = [json.dumps(entry | {"ended": end, "seconds": seconds}) for end, seconds in ends]
    (folder / "get_ats.log").write_text("\n".join([*lines, '{"stage": "cut o']))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """RecordedRuns of one study with one run."""
    return RecordedRuns([made_up(tmp_path_factory.mktemp("one"))])


# -------------------------------------------------------------------------------------- intervals


def test_wilson_is_scipy_s():
    for right, n in (0, 20), (7, 20), (20, 20), (111, 114):
        wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(intervals.wilson(right, n), wanted, atol=1e-12)
    low, high = intervals.wilson(np.array([3, 0]), np.array([5, 0]))
    assert np.isfinite(low[0]) and np.isnan(low[1]) and np.isnan(high[1])


def test_bootstrap_is_as_wide_as_the_standard_error():
    right = (np.random.default_rng(0).random((1, 400, 1)) < 0.7).astype(float)
    mean, low, high = intervals.bootstrap([right])
    half = 1.96 * right.std() / np.sqrt(400)
    assert mean[0] == right.mean()
    assert low[0] == pytest.approx(right.mean() - half, abs=0.006)
    assert high[0] == pytest.approx(right.mean() + half, abs=0.006)


def test_what_shares_its_images_is_not_independent():
    right = (np.random.default_rng(0).random((1, 100, 1)) < 0.7).astype(float)
    _, low, high = intervals.bootstrap([right])
    same_under_five_attacks = np.repeat(right, 5, axis=2)
    for values in (same_under_five_attacks, np.repeat(same_under_five_attacks, 3, axis=0)):
        _, low_of_many, high_of_many = intervals.bootstrap([values])
        # Five attacks or three runs that say the same are no more evidence than one.
        assert high_of_many[-1] - low_of_many[-1] == pytest.approx(high[-1] - low[-1], rel=0.1)


def test_runs_and_source_models_vary_too():
    def levels(sources):
        found = np.round(intervals.resampled_means(sources)[:, 0], 6)
        return {v: np.mean(found == v) for v in np.unique(found)}

    zero, one = np.zeros((1, 50, 1)), np.ones((1, 50, 1))
    for sources in ([zero, one], [np.concatenate([zero, one])]):  # two sources; one with two runs
        found = levels(sources)
        assert set(found) == {0, 0.5, 1}
        assert found[0.5] == pytest.approx(0.5, abs=0.05)


def test_images_that_are_no_sample_of_an_attack_do_not_count():
    values = np.ones((1, 40, 2))
    values[0, :30, 1] = np.nan
    values[0, 30:35, 1] = 0
    mean, low, high = intervals.bootstrap([values])
    assert mean.tolist() == [1, 0.5, 0.75]
    wanted = 1.96 * 0.5 / np.sqrt(10)
    assert high[1] - low[1] == pytest.approx(2 * wanted, rel=0.15) and low[0] == high[0] == 1


def test_the_bootstrap_covers_the_truth():
    """Of 95% intervals about 95% hold the true difference, here with attacks that share images."""
    rng, hits, truth = np.random.default_rng(1), 0, true_difference()
    for _ in range(200):
        image = rng.random((1, 120, 1)) + 0.3 * rng.random((1, 120, 3))
        first = (image + 0.3 * rng.random((1, 120, 3)) < 1.0).astype(float)
        second = (image + 0.3 * rng.random((1, 120, 3)) < 0.9).astype(float)
        _, low, high = intervals.paired_bootstrap([first], [second], resamples=400)
        hits += low[-1] <= truth <= high[-1]
    assert 180 <= hits <= 198


def true_difference():
    rng = np.random.default_rng(2)
    image = rng.random(10**6) + 0.3 * rng.random(10**6)
    return np.mean(image + 0.3 * rng.random(10**6) < 1.0) - np.mean(
        image + 0.3 * rng.random(10**6) < 0.9
    )


def test_the_bootstrap_is_fast_and_repeatable():
    values = [np.random.default_rng(0).random((1, 100, 5))]
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        found = intervals.bootstrap(values)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.1
    np.testing.assert_array_equal(found, intervals.bootstrap(values))
    assert not np.array_equal(found[1], intervals.bootstrap(values, seed=1)[1])


def test_mcnemar():
    first = np.array([1] * 8 + [0] + [1] * 50)
    second = np.array([0] * 8 + [1] + [1] * 50)
    wanted = 2 * (1 + 9) / 2**9  # 8 to 1 or more extreme, on either side
    assert intervals.mcnemar(first, second) == pytest.approx(wanted)
    assert intervals.mcnemar(second, first) == pytest.approx(wanted)
    assert intervals.mcnemar(first, first) == 1


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5, 6], [1, 1, 3, -1, 5, 6.5, 0], [2, -2, 2, -1]])
def test_wilcoxon_tries_all_signs(values):
    nonzero = np.array([v for v in values if v])
    ranks = stats.rankdata(np.abs(nonzero))
    found = ranks[nonzero > 0].sum()
    signs = np.array(list(itertools.product([0, 1], repeat=len(ranks))))
    sums = signs @ ranks
    extreme = np.abs(sums - ranks.sum() / 2) >= abs(found - ranks.sum() / 2) - 1e-9
    p = intervals.wilcoxon(values, np.zeros(len(values)))
    assert p == pytest.approx(extreme.mean())
    one_sided = intervals.wilcoxon(values, np.zeros(len(values)), "greater")
    assert one_sided == pytest.approx((sums >= found - 1e-9).mean())


def test_wilcoxon_of_no_difference_is_no_test():
    assert np.isnan(intervals.wilcoxon([1, 2, 3], [1, 2, 3]))


def test_holm():
    found = intervals.holm([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.7]).tolist() == [1, 1]


# ----------------------------------------------------------------------------------------- tables


def test_the_paper_s_figures_give_the_paper_s_claims():
    of_paper = runs.paper_runs()
    assert tables.wins(tables.robustness_table(of_paper)) == (22, 36)
    keys = ["model", "dataset", "attack"]
    found = differences.paper_differences(of_paper).set_index([*keys, "method"])["p"]
    published = pd.read_csv(ROOT / "dare/paper/wilcoxon.csv").set_index([*keys, "baseline"])
    assert len(published) == 88
    np.testing.assert_allclose(found[published.index], published["p_value"], rtol=1e-9)


def test_a_row_that_loses_more_than_a_point_is_marked_and_never_the_best():
    cells = tables.robustness_table(runs.paper_runs())
    assert cells["loses"].any() and not (cells["best"] & cells["loses"]).any()
    here = runs.of_network(cells, "svhn", "alexnet")
    table = tables.shown(here)
    losers = {f"{name} †" for name in here.loc[here["loses"], "method"]}
    assert {name for name in table["method"] if name.endswith("†")} == losers


def test_labels_name_what_is_not_the_default():
    def row(**changed):
        usual = {"dataset": "digits", "model": "lenet", "method": "dare", "per": 0.95}
        return usual | {"choose_layer": "conv3", "batches": np.nan} | changed

    rows = [row(per=0.5)] * 5 + [
        row(),
        row(choose_layer="conv2"),
        row(method="control-self", per=0.05, choose_layer="conv2"),
        row(method="dare-s", per=np.nan),
        row(method="dare-last", choose_layer="predictions"),
        row(method="dare-released", batches=1),
        row(method="at-pgd", per=np.nan, choose_layer=np.nan),
        row(dataset="fashion_mnist", model="vgg16", choose_layer="block4_conv3_relu"),
        row(dataset="cifar10", model="vgg16", choose_layer="block4_conv3_relu"),
    ]
    assert runs.label_rows(pd.DataFrame(rows)) == ["dare per 0.5"] * 5 + [
        "dare",
        "dare at conv2",
        "control-self per 0.05 at conv2",
        "dare-s",
        "dare-last",
        "dare-released",
        "at-pgd",
        "dare",
        "dare at block4_conv3_relu",
    ]


def test_cells_are_what_the_scores_say(one):
    cells = tables.robustness_table(one.chosen["selected"], one)
    dare = cells[cells["method"] == "dare"].set_index("attack")
    assert dare["mean"].to_dict() == pytest.approx(dict.fromkeys((*ATTACKS, "mean"), 70))
    low, high = stats.binomtest(210, 300).proportion_ci(method="wilson")
    assert dare.loc["pgd", ["low", "high"]].tolist() == pytest.approx([100 * low, 100 * high])
    assert dare.loc["mean", "low"] < 70 < dare.loc["mean", "high"]
    assert dare.loc["mean", "high"] - dare.loc["mean", "low"] < 100 * (high - low)
    table = tables.shown(cells).set_index("method")
    assert table.loc["dare", "pgd, n 300"] == f"**70.0 [{100 * low:.1f}, {100 * high:.1f}]**"
    assert table.loc["original", "pgd, n 300"] == "0.0" and table.loc["dare", "change"] == "+0.0"


def test_a_control_can_be_the_best(home):
    methods = PLAIN | {"control-self": (0.8, 0.95, 0.3), "at-pgd": (0.9, 0.9, 0.5)}
    recorded = RecordedRuns([made_up(home, methods)])
    cells = tables.robustness_table(recorded.chosen["selected"], recorded)
    assert set(cells.loc[cells["best"], "method"]) == {"control-self"}
    within = tables.robustness_table(recorded.chosen["selected_within_1"], recorded)
    assert "at-pgd" not in set(within["method"])
    assert "at-pgd †" in set(tables.shown(cells)["method"])


def test_standard_deviation_over_runs(home):
    folders = [
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, seed, 2) for seed in (0, 1)
    ]
    recorded = RecordedRuns(folders)
    values = iter((60.0, 70.0, 80.0, 90.0))
    chosen = recorded.chosen["selected"].copy()
    dare = chosen[chosen["label"] == "dare"]
    for _, of_run in dare.groupby(["folder", "run"]):
        chosen.loc[of_run.index, "empirical_robustness"] = next(values)
    cells = tables.robustness_table(chosen).set_index(["method", "attack"])
    found = cells.loc[("dare", "pgd")]
    assert (found["runs"], found["mean"]) == (4, 75)
    assert found["std"] == pytest.approx(np.std([60, 70, 80, 90], ddof=1)) and np.isnan(
        found["low"]
    )


def test_differences_of_a_single_run(one):
    table = differences.differences_table(one, "selected").set_index(["method", "attack"])
    assert "original" not in table.index.unique("method")
    row = table.loc[("control-finetune", "cw")]
    sha = {m: one.rows.loc[one.rows["method"] == m, "sha256"].iloc[0] for m in PLAIN}
    scores = one.scores("digits_lenet_seed0")
    first, second = (scores.right(sha[m], "cw test") for m in ("dare", "control-finetune"))
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    assert row["difference"] == pytest.approx(100 * (won - lost) / 300)
    assert row["test"] == "McNemar" and row["p"] == pytest.approx(
        stats.binomtest(won, won + lost).pvalue
    )
    assert row["low"] < row["difference"] < row["high"]
    tested = table[table["p"].notna()]
    assert len(tested) == (len(PLAIN) - 2) * len(ATTACKS)
    smallest = tested["p"].min() * len(tested)
    assert tested["p_holm"].min() == pytest.approx(min(smallest, 1))


@pytest.mark.parametrize("run_count, test", [(1, "none: 3 runs, 6 needed"), (2, "Wilcoxon")])
def test_differences_over_runs(home, run_count, test):
    methods = {m: PLAIN[m] for m in ("original", "dare", "control-self", "control-swa")}
    folders = [made_up(home, methods, seed, run_count, n=60) for seed in range(3)]
    table = differences.differences_table(RecordedRuns(folders), "selected")
    rows = table[table["attack"] != "mean"]
    assert set(rows["test"]) == {test}
    # control-swa has one model for all runs of a source, and is paired with each.
    assert set(rows["runs"]) == {3 * run_count}
    assert rows["p"].notna().all() == (test == "Wilcoxon")
    if test == "Wilcoxon":  # DARE is 10 points better in all six runs: 2 of 64 signs are as extreme
        assert rows["p"].to_numpy() == pytest.approx(2 / 64)


def test_scores_of_other_models_are_refused(home):
    folder = made_up(home)
    with h5py.File(folder / "scores.h5", "a") as file:
        del file["models"][sha(1)]
    recorded = RecordedRuns([folder])
    with pytest.raises(UserError, match=r"scores.h5 lacks a model.*dare/test.py"):
        differences.differences_table(recorded, "selected")


# ---------------------------------------------------------------------------------------- verdict


def judged(home, **changed):
    """The verdict on a made-up study, a row a question, and its summary."""
    methods = PLAIN | {name.replace("_", "-"): value for name, value in changed.items()}
    rows = verdict.verdict(RecordedRuns([made_up(home, methods, n=400)]), "digits", "lenet")
    return rows.set_index("question"), verdict.summary(rows)


def test_a_method_that_is_better_than_every_control(home):
    rows, text = judged(home)
    own = rows[rows["own"]]
    assert (own["answer"] == "yes").all() and (own["adaptive_answer"] == "yes").all()
    assert text.startswith("DARE is more robust than every control") and "6 of 6" in text


def test_noise_is_no_merit_of_dare(home):
    rows, text = judged(home, dare=(0.5, 0.95, 0.3), control_noise=(0.5, 0.95, 0.3))
    assert rows.loc["its direction", "answer"] != "yes"
    assert text.startswith("DARE's own merit is not shown") and "control-noise" in text


def test_a_control_that_could_not_move_is_no_comparison(home):
    rows, text = judged(home, dare=(0.5, 0.95, 0.3), control_self=(0.0, 0.95, 0.3))
    assert rows.loc["the history", "answer"] == "undecided"
    assert "control-self changed nothing" in rows.loc["the history", "sentence"]
    assert text.startswith("DARE's own merit is not shown") and "control-self" in text


def test_batch_normalisation_s_drift_is_no_merit_of_dare(home):
    rows, text = judged(home, dare=(0.62, 0.95, 0.3), control_batchnorm=(0.62, 0.95, 0.3))
    assert rows.loc["tuning", "answer"] != "yes" and rows.loc["tuning", "adaptive_answer"] != "yes"
    assert text.startswith("DARE's own merit is not shown") and "control-batchnorm" in text


def test_a_planted_effect_is_found(home):
    rows, _ = judged(home, dare=(0.65, 0.95, 0.4), control_self=(0.6, 0.95, 0.45))
    row = rows.loc["the history"]
    assert row["difference"] == pytest.approx(5) and 0 < row["low"] < 5 < row["high"] < 10
    assert row["answer"] == "yes" and row["sentence"].startswith("Yes: the mined history")
    assert row["adaptive_difference"] == pytest.approx(-5) and row["adaptive_high"] < 0
    assert row["adaptive_answer"] == "no"


def test_the_same_model_is_surely_no_better(home):
    folder = made_up(home)
    rows = pd.read_csv(folder / "robustness.csv")
    dare = rows.loc[rows["method"] == "dare", "sha256"].iloc[0]
    rows.loc[rows["method"] == "control-self", "sha256"] = dare
    rows.to_csv(folder / "robustness.csv", index=False)
    found = verdict.verdict(RecordedRuns([folder]), "digits", "lenet").set_index("question")
    assert found.loc["the history", ["low", "high", "answer"]].tolist() == [0, 0, "no"]


@pytest.mark.parametrize(("dare_has_one", "epochs"), [(True, [3, 1]), (False, [9, 2])])
def test_both_sides_of_a_difference_may_lose_as_much(dare_has_one, epochs):
    """Where DARE has no epoch within 1 point, a control is compared at its most robust one, too."""
    rows = [("dare", 3, "within"), ("dare", 9, "most"), ("swa", 1, "within"), ("swa", 2, "most")]
    table = pd.DataFrame(rows, columns=["label", "epoch", "rule"])
    table = table.assign(dataset="digits", model="lenet", folder="seed0", run=0)
    within = table[(table["rule"] == "within") & ((table["label"] != "dare") | dare_has_one)]
    recorded = RecordedRuns.__new__(RecordedRuns)
    most = table[table["rule"] == "most"]
    recorded.chosen = {"selected_within_1": within, "selected": most}
    found = recorded.compared().set_index("label")["epoch"]
    assert [found["dare"], found["swa"]] == epochs and len(found) == 2


def test_lost_clean_accuracy_gives_no_merit(home):
    rows, text = judged(home, dare=(0.9, 0.93, 0.6))
    assert set(rows["answer"]) == {"undecided"} and set(rows["adaptive_answer"]) == {"undecided"}
    assert "dare loses 2.0 points" in rows["sentence"].iloc[0]
    assert text.startswith("DARE's own merit is not shown")


def test_under_twice_chance_gives_no_merit(home):
    guessing = {m: (r, 0.19, a) for m, (r, _, a) in PLAIN.items()}
    recorded = RecordedRuns([made_up(home, guessing)])
    rows = verdict.verdict(recorded, "digits", "lenet")
    assert set(rows["answer"]) == {"undecided"} and rows["sentence"].str.contains("chance").all()
    assert any("under twice chance (20.0%)" in text for text in verdict.warnings(recorded))


def test_the_verdict_says_what_was_not_run(home):
    methods = {m: v for m, v in PLAIN.items() if m not in ("control-seed", "control-single")}
    rows = verdict.verdict(RecordedRuns([made_up(home, methods)]), "digits", "lenet")
    assert "not known before these are run: control-seed." in verdict.summary(rows)
    assert "nothing can be said" in verdict.summary(rows.iloc[:0])


def test_warnings(home, monkeypatch):
    methods = PLAIN | {"at-pgd": (0.5, 0.9, 0.5)}
    folder = made_up(home, methods, n=40, model="alexnet")
    rows = pd.read_csv(folder / "robustness.csv").assign(dataset="svhn", test_accuracy=70)
    rows["choose_layer"] = rows["choose_layer"].replace("conv3", "conv5")
    rows.loc[(rows["method"] == "dare-s") & (rows["split"] == "validation"), "n"] = 0
    rows.to_csv(folder / "robustness.csv", index=False)
    with h5py.File(folder / "adv/cw.h5", "a") as file:
        file["success"][:25] = False
    with h5py.File(folder / "ats_conv3.h5", "a") as file:
        del file["index"]
        file["index"] = np.arange(99)
    found = verdict.warnings(RecordedRuns([folder]))
    for text in (
        "70.0% clean accuracy, over 20 points below the paper's 93.3%",
        "cw succeeds on 38% of the images",
        "fewer than 50 reported samples of fgsm (40), pgd (40), cw (40)",
        "ats_conv3.h5 has 99 mined images",
        "dare-s: no validation sample",
        "no epoch within 1 point of the original's clean accuracy: at-pgd.",
    ):
        assert sum(text in warning for warning in found) == 1, (text, found)
    assert len(found) == 6


def test_a_good_run_has_no_warnings(one):
    assert verdict.warnings(one) == []


# ----------------------------------------------------------------------------------------- claims


def claimed(home, *changes, seeds=1):
    """claims_table of made-up networks "a", "b", ... by what is subtracted, rule and network.

    changes: what methods of each network do otherwise than in PLAIN.
    """
    folders = [
        made_up(home, PLAIN | changed, model=name, seed=seed)
        for name, changed in zip("abc", changes, strict=False)
        for seed in range(seeds)
    ]
    table = claims.claims_table(RecordedRuns(folders), tables.published_means())
    return table.set_index(["minus", "rule", "model"]).sort_index()


def test_claims_over_three_networks(home):
    single = {"control-single": (0.5, 0.95, 0.3)}
    table = claimed(home, single, single | {"dare-s": (0.4, 0.95, 0.4)}, {})
    rows = table.loc["control-single", "compared"]
    assert rows["difference"].to_dict() == pytest.approx({"a": 20, "b": 20, "c": 10, "all": 50 / 3})
    assert rows.loc["all", ["measured", "cells", "holds", "sources"]].tolist() == [3, 3, 3, 3]
    assert (rows["answer"] == "yes").all()
    low, high = rows.loc["all", ["low", "high"]]
    assert 8 < low < 50 / 3 < high < 23 and high - low > 5
    # One network of three says yes: nothing holds in general.
    slicing = table.loc["dare-s", "compared"]
    assert slicing.loc["b", "answer"] == "yes" and slicing.loc["a", "answer"] != "yes"
    assert slicing.loc["all", "answer"] == "undecided" and slicing.loc["all", "holds"] == 1
    adaptive = table.loc["original", "compared"].loc["all"]
    assert adaptive["difference"] == pytest.approx(10) and adaptive["answer"] == "yes"


def test_two_networks_are_too_few_for_an_answer(home):
    for other in {}, {"dare": (0.3, 0.95, 0.2)}:
        rows = claimed(home / str(len(other)), other, other).loc["control-checkpoint", "compared"]
        assert len(set(rows.loc[["a", "b"], "answer"]) - {"undecided"}) == 1
        assert rows.loc["all", "answer"] == "undecided"


def test_a_majority_is_needed_whatever_the_interval_says(home, monkeypatch):
    """Two cells of a huge and one of no difference: the interval of the mean alone is no yes."""
    large = {"dare-s": (0.1, 0.95, 0.4)}
    monkeypatch.setattr(claims, "draws", lambda n, *_: np.ones((intervals.RESAMPLES, n)))
    rows = claimed(home, large, {}, {}).loc["dare-s", "compared"]
    assert rows.loc["all", "low"] > 0 and rows.loc["all", "answer"] == "undecided"


def test_cells_are_drawn_independently_of_their_seeds(home):
    """Three networks of three seeds: every cell is as wide alone, the mean is narrower."""
    rows = claimed(home, {}, {}, {}, seeds=3).loc["control-checkpoint", "compared"]
    widths = rows["high"] - rows["low"]
    assert rows.loc["all", "sources"] == 9 and rows.loc["a", "sources"] == 3
    assert 0.4 * widths["a"] < widths["all"] < 0.9 * widths["a"]


def test_claims_leave_out_what_does_not_compare(home):
    unmoved, lossy = {"control-self": (0.0, 0.95, 0.3)}, {"control-finetune": (0.3, 0.9, 0.3)}
    table = claimed(home, unmoved, lossy, {})
    history = table.loc["control-self", "compared"]
    assert "changed nothing" in history.loc["a", "why_not"]
    assert history.loc["all", ["measured", "cells"]].tolist() == [3, 2]
    assert history.loc["all", "difference"] == pytest.approx(10)
    # Who lost clean accuracy compares only where the most robust epochs do.
    finetune = table.loc["control-finetune"]
    assert finetune.loc[("compared", "all"), "cells"] == 2
    assert finetune.loc[("selected", "all"), "cells"] == 3
    assert finetune.loc[("selected", "all"), "difference"] == pytest.approx(20)


def test_a_useless_dare_counts_against_the_paper_s_claims(home):
    broken = {"dare": (0.1, 0.1, 0.1)}
    table = claimed(home, broken, broken, broken)
    against = table.loc[(claims.BEST, "selected", "all")]
    assert against["cells"] == 3 and against["answer"] == "no"
    assert table.loc[(claims.BEST, "compared", "all"), "cells"] == 0


def test_the_best_baseline_is_chosen_on_the_validation_part(home):
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.95, 0.5), "at-bim": (0.65, 0.9, 0.5)})
    rows = pd.read_csv(folder / "robustness.csv")
    best = (rows["method"] == "at-pgd") & (rows["split"] == "validation")
    rows.loc[best, "empirical_robustness"] = 90
    rows.to_csv(folder / "robustness.csv", index=False)
    recorded = RecordedRuns([folder])
    chosen = recorded.chosen["selected"]
    assert claims.best_baseline(recorded, chosen, fair=False) == "at-pgd"
    rows.loc[best, "empirical_robustness"] = 10
    rows.to_csv(folder / "robustness.csv", index=False)
    recorded = RecordedRuns([folder])
    assert claims.best_baseline(recorded, chosen, fair=False) == "at-bim"
    assert claims.best_baseline(recorded, chosen, fair=True) == "at-fgsm"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(-0.9, 0.5, "yes"), (-1.5, -0.3, "undecided"), (-3.0, -1.1, "no")],
)
def test_the_claim_that_clean_accuracy_is_kept(low, high, answer):
    kept = next(claim for claim in claims.CLAIMS if claim.quantity == "clean")
    assert claims.answer_to(kept, low, high) == answer and kept.rules == ("selected",)


def test_the_change_of_clean_accuracy(home):
    lost = {"dare": (0.7, 0.8, 0.4)}
    rows = claimed(home, lost, lost, lost).loc["original", "selected"].loc["all"]
    kept = rows[rows["claim"].str.startswith("clean")].iloc[0]
    assert kept["difference"] == pytest.approx(-15, abs=0.2) and kept["answer"] == "no"


def test_claims_of_the_paper_s_figures(home):
    """DARE minus the best adversarial training of every cell, mean over the nine."""
    cells = pd.read_csv(ROOT / "dare/paper/robustness.csv")
    means = cells.groupby(["dataset", "model", "method", "attack"])["empirical_robustness"].mean()
    means = means.groupby(["dataset", "model", "method"]).mean().unstack("method")
    expected = (means["dare"] - means.drop(columns="dare").max(axis=1)).mean()
    table = claimed(home, {})
    assert table.loc[(claims.BEST, "selected", "all"), "paper"] == pytest.approx(expected)


# ----------------------------------------------------------------------------------------- report


def test_claims_in_the_report(home):
    for model in ("lenet", "own"):
        folder = made_up(home, PLAIN, n=100, model=model)
    tables.main([])
    text = html.unescape((folder.parent / "report.html").read_text())
    assert text.index("over all networks") < text.index("lenet on digits</h2>")
    assert (folder.parent / "figures/claims.png").exists()
    written = pd.read_csv(folder.parent / "table_claims.csv")
    assert {"cells", "holds", "paper", "answer"} <= set(written.columns)
    assert "2 measured" not in text and "of 2" in text


def test_the_figure_of_claims_where_nothing_compares(home):
    lost = {name: (0.5, 0.8, 0.3) for name in PLAIN if name != "original"}
    folders = [made_up(home, {"original": PLAIN["original"]} | lost, model=m) for m in "ab"]
    table = claims.claims_table(RecordedRuns(folders), tables.published_means())
    figure = figures.claims(table[table["claim"].str.startswith("slicing")])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in dots if len(line.get_xdata())} == {"white"}


def test_sizes_of_training_in_the_table(home):
    folder = made_up(home)
    assert np.isnan(tables.trained_on(folder))
    entry = json.loads((folder / "get_ats.log").read_text().splitlines()[0])
    entry |= {"stage": "train lenet", "settings": {"images": 718}}
    (folder / "train.log").write_text(json.dumps(entry))
    assert tables.trained_on(folder) == 718
    assert tables.models_table(RecordedRuns([folder]))["images"].tolist() == [718]


def test_tables_and_report(home, capsys):
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.9, 0.5)}, n=100)
    tables.main([])
    out = capsys.readouterr().out
    assert out.index("Warning: digits_lenet_seed0: no epoch within 1 point") < out.index("| method")
    text = html.unescape((folder.parent / "report.html").read_text())
    assert 'src="http' not in text and "href" not in text and "data:image/svg+xml;base64" in text
    assert sha(1) not in text and "seed's table" not in text and "authors' table" in text
    assert "Read these results with care" in text and "the mined history" in text
    assert "12.5" in text and text.count("python dare/get_ats.py") == 1
    assert (folder.parent / "table.tex").read_text().count(r"\toprule") >= 5
    assert r"\textbf{" in (folder.parent / "table.tex").read_text()
    written = pd.read_csv(folder.parent / "table_differences.csv")
    assert {"difference", "low", "high", "test", "p", "p_holm"} <= set(written.columns)
    assert set(pd.read_csv(folder.parent / "table.csv")["rule"]) == set(runs.RULES)


def test_one_network(home):
    for model in ("lenet", "alexnet"):
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=40, model=model)
    tables.main(["--dataset", "digits", "--model", "lenet"])
    target = home / "models/digits_lenet"
    assert "alexnet" not in (target / "table.md").read_text()
    assert (target / "report.html").exists() and list((target / "figures").glob("*.svg"))


def test_recorded_results_give_the_same_tables(home, monkeypatch):
    """Also after models/ is gone; what is kept has neither weights nor images."""
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.9, 0.5)}, n=100)
    monkeypatch.setattr(dare.evaluation.record, "RESULTS", home / "results")
    monkeypatch.setattr(tables, "RESULTS", home / "results")
    tables.main([])
    names = ("table.csv", "table_differences.csv", "table_verdict.csv")
    expected = {name: (folder.parent / name).read_text() for name in names}
    tables.main(["--record", "mine"])
    kept = home / "results/mine" / folder.name
    assert {p.name for p in kept.iterdir()} == {
        "robustness.csv", "adaptive.csv", "log.csv", "commands.csv", "scores.h5", "adaptive.h5",
    }  # fmt: skip
    assert "tensorflow" in (kept / "commands.csv").read_text()
    shutil.rmtree(home / "models")
    for name in names:
        (home / "results/mine" / name).unlink()
    tables.main(["--results", "mine"])
    assert expected == {name: (home / "results/mine" / name).read_text() for name in names}
    assert "python dare/get_ats.py" in (home / "results/mine/report.html").read_text()


def test_a_study_without_dare_or_adaptive_evaluation(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "at-pgd", "control-swa")}, n=60)
    for name in ("adaptive.csv", "adaptive.h5", "log.csv", "ats_conv3.h5", "slice_0.95.h5"):
        (folder / name).unlink()
    tables.main([])
    text = (folder.parent / "table.md").read_text()
    assert "nothing can be said" in text and "have not both been run" in text
    assert not (folder.parent / "table_verdict.csv").exists()


def test_the_verdict_without_adaptive_evaluation(home):
    folder = made_up(home)
    (folder / "adaptive.h5").unlink()
    rows = verdict.verdict(RecordedRuns([folder]), "digits", "lenet")
    assert not rows["sentence"].str.contains("Attacked itself").any()
    assert verdict.summary(rows).endswith("it was not evaluated.")


def test_paper_tables(home):
    tables.main(["--paper"])
    text = (home / "models/paper/table.md").read_text()
    assert "in 22 of 36 scenarios" in text and "**" in text
    assert (home / "models/paper/report.html").exists()


def test_nothing_to_show(home):
    with pytest.raises(UserError, match=r"robustness.csv is missing.*dare/test.py"):
        tables.main([])
    with pytest.raises(UserError, match=r"digits_alexnet_seed"):
        tables.main(["--dataset", "digits", "--model", "alexnet"])


def test_a_stage_that_did_nothing_does_not_replace_its_time(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=20)
    found = report.commands(folder)
    assert found["command"].tolist() == ["python dare/get_ats.py --seed 0"]
    assert found["seconds"].tolist() == ["12.5"]


def overlaps(figure, texts):
    """Pairs of the shown texts whose boxes overlap."""
    figure.canvas.draw()
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts if t.get_text()]
    pairs = itertools.combinations(boxes, 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.overlaps(other)]


def test_labels_of_figures_do_not_overlap(home):
    more = [("dare", (0.7, 0.95, 0.4), {"per": per}) for per in (0.05, 0.1, 0.5, 0.9)]
    methods = PLAIN | {"control-noise": (0.4, 0.2, 0.1), "at-cw": (0.4, 0.3, 0.1)}
    recorded = RecordedRuns([made_up(home, methods, n=100, more=more)])
    cells = tables.robustness_table(recorded.compared(), recorded)
    figure = figures.trade_off(cells)
    assert len(figure.axes[0].texts) == len(methods) + 4
    assert overlaps(figure, figure.axes[0].texts) == []
    figure = figures.dots(cells)
    assert overlaps(figure, figure.axes[0].get_yticklabels()) == []
    figure = figures.adaptive_curves(report.adaptive_table(recorded, "digits", "lenet"))
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["0", "0.0001", "0.01"]
    assert overlaps(figure, labels) == []


def test_spread_moves_labels_as_little_as_it_can():
    places = figures.spread(np.array([10.0, 50.0, 50.0, 51.0, 90.0]), 4, 0, 100)
    np.testing.assert_allclose(places, [10, 46.333333, 50.333333, 54.333333, 90])
    assert (np.diff(figures.spread(np.zeros(20), 4, 0, 100)) >= 4 - 1e-9).all()


def test_the_readme_shows_the_recorded_demonstration():
    readme = (ROOT / "README.md").read_text()
    rows = pd.read_csv(ROOT / "dare/results/demo/table_verdict.csv")
    adaptive = tables.with_interval(rows, "adaptive_")
    for row, ours, attacked in zip(
        rows.itertuples(), tables.with_interval(rows), adaptive, strict=True
    ):
        line = f"{row.question:40}{row.control:20}{ours:22}{attacked}"
        assert line in readme


def test_the_readme_shows_the_recorded_claims():
    """All of them, as made from what is recorded."""
    readme = (ROOT / "README.md").read_text()
    recorded = pd.read_csv(ROOT / "dare/results/study/table_claims.csv")
    text = tables.claims_section(recorded).table
    assert len(text) == len(claims.CLAIMS)
    for row in text.itertuples(index=False):
        assert f"| {' | '.join(row)} |" in readme
