"""Carlini and Wagner's L2 attack (2017)."""

import numpy as np

from adv.attacks.classifier import in_full_batches
from adv.attacks.losses import margin, margin_loss, norms, per_image

# Pixels in [-1, 1] are scaled by this, so that tanh space has a slope everywhere. Foolbox's
# 0.999999 leaves almost none on black and white pixels: hundreds of steps pass before one moves.
INSIDE = np.float32(0.99)
WIDTH = 2 * np.arctanh(INSIDE)  # from black to white in tanh space


def cw(start, steps=None, progress=None):
    """Carlini and Wagner's L2 attack, untargeted, confidence 0.

    Returns adversarial images, where the attack failed the image itself, and success, bool (n,).
    """
    search = CarliniWagner(start, steps or 1000)
    in_full_batches(len(start.x), start.model.batch, search.step, progress, search.share_done)
    return search.x_best, np.isfinite(search.norm_best)


def pace(margin, gradient, slope, steps):
    """The step size and first constant of each image, from the margin where it starts.

    With all 1,000 steps they are those of the paper's tool, 5e-3 and 1e-2. With fewer steps no
    single step size does: far boundaries are not reached, near ones are overshot, and searches with
    too small a constant are wasted. Both then come from the linearised margin, which a perturbation
    of -margin * gradient / |gradient|^2 brings to 0:

    - step size: all steps together can go a few times as far as the largest component of that
      perturbation, in tanh space. It falls tenfold during a search, so that early steps arrive and
      late ones settle.
    - constant: 2 margin / |gradient|^2, for which the minimum of |perturbation|^2 + constant *
      margin lies on the boundary.

    Args:
        margin: (n,). gradient: of the margin with respect to the images, (n, h, w, c).
        slope: derivative of the pixels with respect to tanh space, (n, h, w, c).
        steps: of a search.

    Returns:
        step_size and constant, float32 (n,), and the last step size as a share of the first.
    """
    if steps >= 1000:
        return np.full(len(margin), 5e-3, "float32"), np.full(len(margin), 1e-2, "float32"), 1.0
    axes = (1, 2, 3)
    tiny = 1e-6
    in_tanh_space = np.abs(gradient * slope)
    # How far the margin falls per unit of the largest component.
    fall = np.square(in_tanh_space).sum(axis=axes) / in_tanh_space.max(axis=axes, initial=tiny)
    reach = np.minimum(margin / np.maximum(fall, tiny), WIDTH)
    constant = 2 * margin / np.maximum(np.square(gradient).sum(axis=axes), tiny)
    return (5 * reach / steps).astype("float32"), constant.astype("float32"), 0.1


class CarliniWagner:
    """The attack on n images, each at its own pace.

    For SEARCHES values of the constant, Adam minimises

        |x - x0|^2 + constant * max(margin, 0),    x = x0 + (tanh(w0 + delta) - tanh(w0)) / 2.

    The constant grows tenfold until the attack succeeds and is then bisected. An image that makes
    no progress for a while goes on to its next constant; Foolbox waits for the whole batch.
    """

    SEARCHES = 5

    def __init__(self, start, steps):
        """start: StartingPoint. steps: of each search."""
        n = len(start.x)
        self.model = start.model
        self.x0 = start.x
        self.y = start.y
        self.steps = steps
        self.patience = max(steps // 20, 10)  # steps without progress that end a search
        self.w0 = np.arctanh(INSIDE * (2 * start.x - 1))
        # Adam: the variable, and the moving averages of the gradient and of its square.
        self.delta = np.zeros_like(start.x)
        self.m = np.zeros_like(start.x)
        self.v = np.zeros_like(start.x)
        self.steps_taken = np.zeros(n, "int64")
        # The search over the constant, between the largest that failed and the smallest that
        # succeeded.
        z, gradient = self.model.gradient(start.x, start.y, margin_loss)
        _, slope = self.image(np.arange(n))
        self.step_size, self.constant, self.last_share = pace(
            margin(z, start.y), gradient, slope, steps
        )
        self.constant_low = np.zeros(n, "float32")
        self.constant_high = np.full(n, np.inf, "float32")
        self.searches = np.zeros(n, "int64")
        self.has_succeeded = np.zeros(n, bool)  # in the present search
        # The lowest objective of the search, now and when progress was last checked.
        self.objective_best = np.full(n, np.inf)
        self.objective_checked = np.full(n, np.inf)
        self.x_best = start.x.copy()
        self.norm_best = np.full(n, np.inf, "float32")

    def image(self, rows):
        """x in [0, 1], which is x0 itself where delta is 0, and d pixels / d delta."""
        before = np.tanh(self.w0[rows])
        after = np.tanh(self.w0[rows] + self.delta[rows])
        return np.clip(self.x0[rows] + (after - before) / 2, 0, 1), (1 - after * after) / 2

    def share_done(self, rows):
        """An estimate for progress; searches that end early make it too low."""
        return (self.searches[rows] + self.steps_taken[rows] / self.steps) / self.SEARCHES

    def step(self, rows):
        """One step of Adam; returns which images have been through all constants."""
        image, slope = self.image(rows)
        z, gradient = self.model.gradient(image, self.y[rows], margin_loss)
        margin_now = margin(z, self.y[rows])
        perturbation = image - self.x0[rows]
        weight = self.constant[rows] * (margin_now > 0)  # of max(margin, 0) and its gradient
        objective = np.square(perturbation).sum(axis=(1, 2, 3)) + weight * margin_now
        # The gradient of the objective by delta: by the image, times the slope of tanh space.
        self.adam(rows, (2 * perturbation + per_image(weight) * gradient) * slope)
        self.keep_best(rows, image, z.argmax(axis=1) != self.y[rows])
        is_over = self.makes_no_progress(rows, objective) | (self.steps_taken[rows] >= self.steps)
        self.next_constant(rows[is_over])
        return self.searches[rows] >= self.SEARCHES

    def adam(self, rows, gradient):
        """A step of Adam (Kingma and Ba 2015), with a step size that falls during a search."""
        share = per_image((self.steps_taken[rows] / self.steps).astype("float32"))
        step_size = per_image(self.step_size[rows]) * (1 - (1 - self.last_share) * share)
        self.steps_taken[rows] += 1
        t = per_image(self.steps_taken[rows].astype("float32"))
        # beta1 is 0.9, beta2 is 0.999; dividing by 1 - beta^t corrects the bias of the first steps.
        m = 0.9 * self.m[rows] + np.float32(0.1) * gradient
        v = 0.999 * self.v[rows] + np.float32(0.001) * gradient * gradient
        self.m[rows] = m
        self.v[rows] = v
        self.delta[rows] -= step_size * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def keep_best(self, rows, image, is_hit):
        """Keep the successes that are closer in L2 than all before."""
        self.has_succeeded[rows] |= is_hit
        norm = norms(image - self.x0[rows])["l2"]
        is_better = is_hit & (norm < self.norm_best[rows])
        self.x_best[rows[is_better]] = image[is_better]
        self.norm_best[rows[is_better]] = norm[is_better]

    def makes_no_progress(self, rows, objective):
        """Images whose objective has fallen by less than 1% since the last check."""
        self.objective_best[rows] = np.minimum(self.objective_best[rows], objective)
        is_check = self.steps_taken[rows] % self.patience == 0
        has_fallen = self.objective_best[rows] <= 0.99 * self.objective_checked[rows]
        self.objective_checked[rows[is_check]] = self.objective_best[rows[is_check]]
        return is_check & ~has_fallen

    def next_constant(self, rows):
        """Begin the next search of some images: ten times the constant, or the middle."""
        constant = self.constant[rows]
        is_hit = self.has_succeeded[rows]
        low = self.constant_low[rows]
        high = self.constant_high[rows]
        self.constant_high[rows] = np.where(is_hit, np.minimum(high, constant), high)
        self.constant_low[rows] = np.where(is_hit, low, np.maximum(low, constant))
        # Until a search succeeds, high and so the middle are infinite.
        middle = (self.constant_low[rows] + self.constant_high[rows]) / 2
        self.constant[rows] = np.where(np.isinf(middle), constant * 10, middle)
        self.searches[rows] += 1
        self.delta[rows] = self.m[rows] = self.v[rows] = 0
        self.steps_taken[rows] = 0
        self.has_succeeded[rows] = False
        self.objective_best[rows] = self.objective_checked[rows] = np.inf
