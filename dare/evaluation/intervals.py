"""95% intervals and tests of significance, as small functions on NumPy arrays.

Functions that draw random numbers take a seed and are repeatable.
"""

import functools

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
EXACT_PAIRS = 13  # up to this number of pairs, all 2**pairs signs are tried


def wilson(right, n):
    """Wilson's interval (1927) of a share, which also holds for few images and near 0 and 1.

    right, n: numbers or arrays, `right` of `n` images. Returns (low, high), shares in [0, 1]; NaN
    where n is 0.
    """
    right, n = np.asarray(right, float), np.asarray(n, float)
    z = stats.norm.ppf(0.5 + LEVEL / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def draws(n, size, resamples, rng):
    """How often each of n things is drawn in `size` draws with replacement: (resamples, n)."""
    drawn = rng.integers(n, size=(resamples, size)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)


@functools.lru_cache(maxsize=8)
def draws_of_levels(sizes, same_images, resamples, seed):
    """What every resample draws; all comparisons of the same sizes share it.

    sizes: ((runs, images) of every source model). same_images: as in `resampled_means`.

    Returns for every source model its share in each resample (resamples,), the shares of its runs
    (resamples, runs), and how often each image is drawn (resamples, images).
    """
    rng = np.random.default_rng(seed)
    shares = draws(len(sizes), len(sizes), resamples, rng).T / len(sizes)
    found, of_images = [], None
    for share, (runs, images) in zip(shares, sizes, strict=True):
        of_runs = draws(runs, runs, resamples, rng) / runs
        if of_images is None or not same_images:
            of_images = draws(images, images, resamples, rng).astype("float32")
        found.append((share, of_runs, of_images))
    return found


def resampled_means(sources, resamples=RESAMPLES, seed=0, same_images=False):
    """Means over images, runs and source models, resampled hierarchically.

    Source models are drawn, then the runs and the images of each. An image is drawn with its values
    under all attacks and in all runs of its source model. A level with one member does not vary.

    Args:
        sources: for every source model a float array (runs, images, attacks); NaN where an image
            is not a sample of an attack.
        same_images: whether all source models were scored on the same images, which are then drawn
            once for all of them.

    Returns:
        float (resamples, attacks), the mean under every attack; NaN where a resample has no image.
    """
    sizes = tuple(values.shape[:2] for values in sources)
    levels = draws_of_levels(sizes, same_images, resamples, seed)
    total = np.zeros((resamples, sources[0].shape[2]))
    for values, drawn in zip(sources, levels, strict=True):
        share, of_runs, of_images = drawn
        runs, images, attacks = values.shape
        flat = values.transpose(1, 0, 2).reshape(images, runs * attacks).astype("float32")
        present = np.isfinite(flat)
        sums = of_images @ np.where(present, flat, 0)
        with np.errstate(invalid="ignore"):
            means = (sums / (of_images @ present.astype("float32"))).reshape(-1, runs, attacks)
        total += share[:, None] * np.einsum("rk,rka->ra", of_runs, means)
    return total


def plain_means(sources):
    """The mean under every attack, which `resampled_means` resamples, float (attacks,)."""
    return np.mean([np.nanmean(values, axis=1).mean(axis=0) for values in sources], axis=0)


def interval(resampled):
    """(low, high) of resampled values (resamples, ...), by their percentiles."""
    tail = 50 * (1 - LEVEL)
    return tuple(np.nanpercentile(resampled, [tail, 100 - tail], axis=0))


def bootstrap(sources, resamples=RESAMPLES, seed=0, same_images=False):
    """Mean and 95% interval under every attack and, last, of the mean over attacks.

    The mean over attacks is resampled by image, because the attacks share their images and are not
    independent. Arguments as in `resampled_means`.

    Returns (mean, low, high), each float (attacks + 1,).
    """
    mean = plain_means(sources)
    resampled = resampled_means(sources, resamples, seed, same_images)
    low, high = interval(np.column_stack([resampled, resampled.mean(axis=1)]))
    return np.append(mean, mean.mean()), low, high


def mean_of_cells(values, null=0.0):
    """The mean of some cells, with the interval of the mean over all such cells.

    Student's t over the cells' values. It is Hartung and Knapp's random-effects interval (2001)
    with equal weights. It covers the true mean in 95% of simulated studies with 3, 6 and 9
    independent cells, whatever their spread (tests). Cells that share a data set or a network are
    not quite independent, and their interval is too narrow.

    values: (cells,). null: the mean that p tests.

    Returns (mean, low, high, p); all but the mean are NaN for a single cell.
    """
    values = np.asarray(values, float)
    k = len(values)
    if k < 2:
        return values.mean(), np.nan, np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(k)
    half = stats.t.ppf(0.5 + LEVEL / 2, k - 1) * error
    distance = abs(values.mean() - null)
    p = 2 * stats.t.sf(distance / error, k - 1) if error else float(distance == 0)
    return values.mean(), values.mean() - half, values.mean() + half, p


def paired_bootstrap(first, second, resamples=RESAMPLES, seed=0, same_images=False):
    """First minus second method on the same images, with its 95% interval.

    Where no two results differ, the bootstrap interval has no width. There the rule of three is
    used: up to 3 of n images might have differed. With a few differences it can be narrower.

    first, second: right (1) or wrong (0), as in `resampled_means`, with NaN in the same places.
    same_images: as there.
    Returns (difference, low, high) as `bootstrap` does.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, low, high = bootstrap(differences, resamples, seed, same_images)
    distinct = differences[:1] if same_images else differences
    images = sum(np.isfinite(values).any(axis=0).sum(axis=0) for values in distinct)
    all_images = sum(values.shape[1] for values in distinct)
    margin = np.where(np.isclose(low, high), 3 / np.append(images, all_images), 0)
    return mean, low - margin, high + margin


def mcnemar(first, second):
    """Exact two-sided p of McNemar's test: do two models err equally often on the same images?

    first, second: right or wrong, bool (n,). Only images on which they differ count; without any,
    p is 1.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def wilcoxon(first, second, alternative="two-sided", approximate=False):
    """p of Wilcoxon's signed-rank test on pairs of runs (n,).

    Exact, even with tied ranks, for up to EXACT_PAIRS pairs; the normal approximation for more.
    approximate: always use it, as the paper's authors did. Pairs without a difference do not
    count; if there are no others, p is NaN.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    differences = differences[differences != 0]
    if not len(differences):
        return np.nan
    method = "approx"
    if not approximate and len(differences) <= EXACT_PAIRS:
        method = stats.PermutationMethod(n_resamples=2**EXACT_PAIRS)
    return float(stats.wilcoxon(differences, alternative=alternative, method=method).pvalue)


def holm(p):
    """Holm's correction (1979) of the p-values (n,) of one table. NaN stays and does not count.

    The smallest p is multiplied by the number of tests, the next by one less, and so on; the
    corrected values keep the order.
    """
    p = np.asarray(p, float)
    corrected = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected
