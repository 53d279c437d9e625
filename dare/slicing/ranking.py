"""The k largest synapses of every neuron, found fast; what is kept is decided in nnslicer.py.

Ranking is what slicing costs: a dense layer of VGG has 16 million synapses, ranked once for each
class. So the neurons of a layer are ranked in blocks that fit the cache of a core, on all cores.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

BLOCK_SYNAPSES = 2**17  # a core ranks this many at a time: they fit its cache


def map_blocks(function, weights):
    """Call a function on blocks of neurons, on all cores.

    Args:
        function: called as function(block, w, ranking), with `block` the slice of the neurons, `w`
            their weights, float32 (neurons, n_in), and a Ranking to compute in.
        weights: (n_in, n_out).

    Returns:
        A list of what the function returned.
    """
    n_in, n_out = weights.shape
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # one number for each level
    cores = int(threads or os.cpu_count() or 1)
    block_size = max(1, min(BLOCK_SYNAPSES // n_in, -(-n_out // cores)))
    starts = range(0, n_out, block_size)

    def of_one_core(core):
        ranking = Ranking(block_size, n_in)
        memory = np.empty((block_size, n_in), "float32")
        results = []
        for first in starts[core::cores]:
            block = slice(first, min(first + block_size, n_out))
            w = memory[: block.stop - first]
            w[:] = weights[:, block].T  # the synapses of a neuron are now neighbours in memory
            results.append(function(block, w, ranking))
        return results

    # The threads of BLAS would compete with these.
    with ThreadPoolExecutor(cores) as pool, ThreadpoolController().limit(limits=1):
        return [result for part in pool.map(of_one_core, range(cores)) for result in part]


class Ranking:
    """Memory to rank blocks of neurons in, used again for every block.

    It stays in the core's cache. New memory would be cleared by the system first, which takes half
    of the time.
    """

    def __init__(self, neurons, n_in):
        self.local, self.scratch = np.empty((2, neurons, n_in), "float32")
        # Rows that do not share a line of the cache.
        self.mask = np.empty((neurons, n_in + 64), bool)[:, :n_in]
        self.by_index = np.arange(n_in, 0, -1, dtype="float32")

    def local_contribution(self, g, w, d):
        """local = g_i * w_ij * d_j of a block; where g_i is 0, synapses are ranked by index.

        g: (neurons,). w: (neurons, n_in). d: (n_in,). Returns float32 (neurons, n_in), which the
        next call overwrites.
        """
        local = self.local[: len(w)]
        np.multiply(w, d, out=local)
        local *= g.astype("float32")[:, None]
        local[g == 0] = self.by_index
        return local

    def largest(self, values, k):
        """Mask of the k largest values of every row, which the next call overwrites."""
        scratch = self.scratch[: len(values)] if values.dtype == np.float32 else None
        return largest(values, k, scratch, self.mask[: len(values)])


def ceil_share(per, n):
    """ceil(per * n), at least 1; 0.05 * 20 is 1, however its product is rounded."""
    return max(1, int(np.ceil(round(per * n, 9))))


def largest(values, k, scratch=None, mask=None):
    """Mask of the k largest values of every row; among equal values the lower index comes first.

    Args:
        values: (rows, n). k: how many.
        scratch, mask: arrays of the same shape to compute in, or None.

    Returns:
        bool (rows, n).
    """
    rows, n = values.shape
    mask = np.empty((rows, n), bool) if mask is None else mask
    if k >= n:
        mask[:] = True
        return mask
    ranked = np.empty_like(values) if scratch is None else scratch
    ranked[:] = values
    ranked.partition(n - k, axis=1)
    threshold = ranked[:, n - k]
    np.greater_equal(values, threshold[:, None], out=mask)
    # Rows with more values at the threshold than places for them.
    is_tied = ranked[:, : n - k].max(axis=1) == threshold
    if is_tied.any():
        above = values[is_tied] > threshold[is_tied, None]
        at_threshold = values[is_tied] == threshold[is_tied, None]
        places = k - above.sum(axis=1, keepdims=True)
        mask[is_tied] = above | (at_threshold & (np.cumsum(at_threshold, axis=1) <= places))
    return mask
