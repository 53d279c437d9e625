"""Intervals and tests of significance, against SciPy and by hand."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from dare.evaluation import intervals


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


def test_images_that_all_source_models_share_are_drawn_once():
    """Three source models that say the same of the same images are no more evidence than one."""
    values = (np.random.default_rng(0).random((1, 400, 1)) < 0.7).astype(float)
    widths = []
    for sources, same_images in ([values], False), ([values] * 3, True), ([values] * 3, False):
        _, low, high = intervals.bootstrap(sources, same_images=same_images)
        widths.append(high[0] - low[0])
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.8 * widths[0]
    *_, high = intervals.paired_bootstrap([values] * 3, [values] * 3, same_images=True)
    assert high.tolist() == pytest.approx([3 / 400] * 2)  # the rule of three, for 400 images


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


def test_without_a_difference_the_rule_of_three():
    """An attack on which no result differs, with samples of 40 of 50 images, and one with some."""
    first = np.zeros((1, 50, 2))
    first[0, 40:, 0] = np.nan
    second = first.copy()
    first[0, :5, 1] = 1
    mean, low, high = intervals.paired_bootstrap([first], [second])
    assert mean.tolist() == pytest.approx([0, 0.1, 0.05])
    assert (low[0], high[0]) == (-3 / 40, 3 / 40)
    assert 0 < low[1] < 0.1 < high[1] < 0.25 and 0 < low[2]
    *_, high = intervals.paired_bootstrap([second], [second])
    assert high.tolist() == [3 / 40, 3 / 50, 3 / 50]


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


@pytest.mark.parametrize("cells", [3, 6, 9])
@pytest.mark.parametrize("spread", [0, 10])
def test_the_interval_over_cells_covers_the_true_mean(cells, spread):
    """In 95 of 100 made-up studies, each with cells of different precision."""
    rng = np.random.default_rng(cells)
    covered = 0
    for _ in range(2000):
        true = 3 + spread * rng.standard_normal(cells)
        values = true + rng.uniform(2, 7, cells) * rng.standard_normal(cells)
        _, low, high, p = intervals.mean_of_cells(values)
        covered += low <= 3 <= high
        assert (p < 0.05) == (low > 0 or high < 0)
    assert 0.93 < covered / 2000 < 0.97
