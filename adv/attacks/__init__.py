"""The attacks of the study: fgsm, bim, pgd, cw and jsma on pixels in [0, 1].

`minimal` mode looks for the smallest perturbation that changes the decision, as Foolbox 2.3.0 did,
which the paper used: the same attacks, for all images of a batch at once, each with its own
epsilon; finished images leave the batch. `fixed` mode attacks at given epsilons, with Foolbox 3's
own attacks.
"""

from functools import partial

import eagerpy as ep
import foolbox
import numpy as np

from adv import ATTACKS
from adv.attacks.classifier import (
    BatchedModel,
    StartingPoint,
    in_full_batches,
    log_odds,
    margin,
    margin_loss,
    per_image,
)
from adv.attacks.saliency_map import saliency_map, target_classes
from adv.attacks.search import EpsilonSearch, line_search
from train.flags import UserError
from train.utils import set_seed


def attack(
    name, model, x, y, mode="minimal", epsilons=None, seed=0, steps=None, progress=None, calls=None
):
    """Adversarial images of a Keras softmax classifier.

    Args:
        name: fgsm, bim, pgd, cw or jsma. model: a Keras classifier on pixels in [0, 1].
        x: float32 (n, h, w, c) in [0, 1]. y: int labels (n,). Images that the model gets wrong
            come back as they are, as successes.
        mode: "minimal" or "fixed". epsilons: fixed mode, the size of the perturbation: a number
            (fgsm, bim, pgd: Linf; cw: L2; jsma: number of features), or several, of which the
            first that succeeds counts.
        seed: of random starts and random target classes. steps: iterations, instead of the
            attack's own.
        progress: called with the number of images that have been finished. calls: a BatchedModel to use
            again, instead of `model`.

    Returns:
        adversarial images float32 (n, h, w, c), the image itself where the attack failed, and
        success bool (n,).

    Raises:
        UserError: unknown name or mode, fixed mode without epsilon, images outside [0, 1] or NaN.
    """
    if name not in ATTACKS:
        raise UserError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}.")
    if mode not in ("minimal", "fixed") or (mode == "fixed") == (epsilons is None):
        raise UserError(
            f"mode {mode!r} with epsilon {epsilons}: mode fixed needs an --epsilon, mode minimal "
            f"takes none."
        )
    x, y = np.asarray(x, "float32"), np.asarray(y, "int64")
    if not (np.isfinite(x).all() and x.min(initial=0) >= 0 and x.max(initial=1) <= 1):
        raise UserError(
            "the images are not pixels in [0, 1], or some are NaN: divide 8-bit images by 255."
        )
    calls = calls or BatchedModel.of(model)
    set_seed(seed)
    if not len(x):
        return x, np.zeros(0, bool)
    start = StartingPoint.at(calls, x, y, seed)
    right = start.logits.argmax(axis=1) == y
    result, success = x.copy(), ~right
    if progress is not None:
        progress(int(success.sum()))
    if right.any():
        find = MINIMAL[name] if mode == "minimal" else partial(fixed, name, np.atleast_1d(epsilons))
        settings = {"steps": steps} if steps else {}
        found = find(start.of(right), **settings, progress=progress)
        result[right], success[right] = found
    return result, success


def norms(perturbation):
    """{"linf", "l2", "l0"} of perturbations (n, ...): float32 (n,), l0 as number of features."""
    flat = perturbation.reshape(len(perturbation), -1)
    sizes = {
        "linf": np.abs(flat).max(axis=1, initial=0),
        "l2": np.linalg.norm(flat, axis=1),
        "l0": (flat != 0).sum(axis=1),
    }
    return {name: size.astype("float32") for name, size in sizes.items()}


def mean_absolute(change):
    """(n, h, w, c) -> (n,): the L1 norm per feature, Foolbox 2's measure of an L1 epsilon."""
    return np.abs(change).mean(axis=(1, 2, 3))


def largest_absolute(change):
    """(n, h, w, c) -> (n,): the Linf norm."""
    return np.abs(change).max(axis=(1, 2, 3))


# ------------------------------------------------------------------------ gradient sign, and steps


def fgsm(start, steps=None, progress=None):
    """Fast gradient sign method (Goodfellow et al. 2015): a line search along one gradient."""
    return line_search(start, np.sign(start.gradient), progress=progress)[:2]


def bim_step(x, x0, gradient, epsilon, rel_stepsize=1 / 6):
    """A step of the L1 basic iterative method (Kurakin et al. 2017)."""
    size = per_image(np.maximum(mean_absolute(gradient), 1e-12))
    change = x + rel_stepsize * epsilon * gradient / size - x0
    size = per_image(np.maximum(mean_absolute(change), 1e-12))
    return np.clip(x0 + change * np.minimum(1, epsilon / size), 0, 1)


def pgd_step(x, x0, gradient, epsilon, rel_stepsize=1 / 30):
    """A step of projected gradient descent in Linf (Madry et al. 2018)."""
    change = x + rel_stepsize * epsilon * np.sign(gradient) - x0
    return np.clip(x0 + np.clip(change, -epsilon, epsilon), 0, 1)


def bim(start, steps=10, progress=None):
    """Basic iterative method, the smallest L1 epsilon. Ten steps predict badly: it is bracketed."""
    search = EpsilonSearch(start, bim_step, mean_absolute, steps, 1 / 6, predictable=False)
    return search.run(progress)


def pgd(start, steps=40, progress=None):
    """Projected gradient descent, the smallest Linf epsilon."""
    return EpsilonSearch(start, pgd_step, largest_absolute, steps, 1 / 30).run(progress)


# ---------------------------------------------------------------------------- Carlini and Wagner


def cw(start, steps=1000, progress=None):
    """Carlini and Wagner's L2 attack."""
    search = CarliniWagner(start.calls, start.x, start.y, steps)
    in_full_batches(len(start.x), start.calls.batch, search.step, progress)
    return search.best, np.isfinite(search.best_norm)


def cw_pace(margin, gradient, slope, steps):
    """How fast Carlini and Wagner's attack goes, each image by what is known where it starts.

    With all 1,000 steps: as the paper's tool, Adam at 5e-3 and a first constant of 1e-2. With fewer
    steps one rate does not fit all: where boundaries are far it does not arrive, where they are
    near it overshoots, and the searches with too small a constant are wasted. So both come from the
    linearised margin, which a change of -margin * gradient / |gradient|^2 brings to 0:

    - rate: all steps together can go a few times as far as the largest component of that change,
      in tanh space. It falls tenfold during a search: early steps arrive, late ones settle.
    - constant: 2 margin / |gradient|^2, for which the minimum of |change|^2 + constant * margin
      lies on the boundary.

    Args:
        margin: (n,). gradient: of the margin by the images, (n, h, w, c). slope: of pixels by tanh
            space there, (n, h, w, c). steps: of a search.

    Returns:
        rate and constant, float32 (n,), and the share of its rate that a search ends with.
    """
    if steps >= 1000:
        return np.full(len(margin), 5e-3, "float32"), np.full(len(margin), 1e-2, "float32"), 1.0
    axes, tiny = (1, 2, 3), 1e-6
    in_tanh_space = np.abs(gradient * slope)
    reach = np.square(in_tanh_space).sum(axis=axes) / in_tanh_space.max(axis=axes, initial=tiny)
    reach = np.minimum(margin / np.maximum(reach, tiny), WIDEST)
    constant = 2 * margin / np.maximum(np.square(gradient).sum(axis=axes), tiny)
    return (5 * reach / steps).astype("float32"), constant.astype("float32"), 0.1


# Pixels are kept so far inside of [-1, 1] that tanh space has a slope everywhere. Foolbox's
# 0.999999 leaves next to none on black and white pixels: hundreds of steps pass before one moves.
INSIDE = np.float32(0.99)
WIDEST = 2 * np.arctanh(INSIDE)  # from black to white in tanh space


class CarliniWagner:
    """Carlini and Wagner's L2 attack (2017), untargeted, confidence 0, each image at its own pace.

    Minimises |x - x0|^2 + constant * max(margin, 0) by Adam in tanh space, for `SEARCHES` values of
    the constant: ten times as large until the attack succeeds, then bisected. An image that makes
    no progress for a while goes on to its next constant; Foolbox waits for the whole batch.
    """

    SEARCHES = 5

    def __init__(self, calls, x, y, steps):
        n, shape = len(x), x.shape
        self.calls, self.x0, self.y, self.steps = calls, x, y, steps
        self.patience = max(steps // 20, 10)  # iterations
        self.w0 = np.arctanh(INSIDE * (2 * x - 1))
        # Adam: what is added to w0, and the means of the gradient and of its square.
        self.delta, self.m, self.v = (np.zeros(shape, "float32") for _ in range(3))
        self.taken = np.zeros(n, "int64")
        # The search over the constant.
        z, gradient = calls.gradient(x, y, margin_loss)
        _, slope = self.image(np.arange(n))
        self.rate, self.constant, self.last_rate = cw_pace(margin(z, y), gradient, slope, steps)
        self.low, self.high = np.zeros(n, "float32"), np.full(n, np.inf, "float32")
        self.searches, self.succeeded = np.zeros(n, "int64"), np.zeros(n, bool)
        # The objective: lowest so far, and when progress was last checked.
        self.lowest, self.lowest_before = np.full(n, np.inf), np.full(n, np.inf)
        self.best, self.best_norm = x.copy(), np.full(n, np.inf, "float32")

    def image(self, rows):
        """x0 + (tanh(w0 + delta) - tanh(w0)) / 2 in [0, 1], x0 itself at 0; and its slope."""
        before, now = np.tanh(self.w0[rows]), np.tanh(self.w0[rows] + self.delta[rows])
        return np.clip(self.x0[rows] + (now - before) / 2, 0, 1), (1 - now * now) / 2

    def step(self, rows):
        """One step of Adam; returns which images have been through all constants."""
        image, slope = self.image(rows)
        z, gradient = self.calls.gradient(image, self.y[rows], margin_loss)
        left, change = margin(z, self.y[rows]), image - self.x0[rows]
        weight = self.constant[rows] * (left > 0)
        objective = np.square(change).sum(axis=(1, 2, 3)) + weight * left
        self.adam(rows, (2 * change + per_image(weight) * gradient) * slope)
        self.keep_best(rows, image, z.argmax(axis=1) != self.y[rows])
        ended = self.no_progress(rows, objective) | (self.taken[rows] >= self.steps)
        self.next_constant(rows[ended])
        return self.searches[rows] >= self.SEARCHES

    def adam(self, rows, gradient):
        """Kingma and Ba 2015, with its usual constants, at a rate that falls during a search."""
        gone = per_image((self.taken[rows] / self.steps).astype("float32"))
        rate = per_image(self.rate[rows]) * (1 - (1 - self.last_rate) * gone)
        self.taken[rows] += 1
        t = per_image(self.taken[rows].astype("float32"))
        self.m[rows] = m = 0.9 * self.m[rows] + np.float32(0.1) * gradient
        self.v[rows] = v = 0.999 * self.v[rows] + np.float32(0.001) * gradient * gradient
        self.delta[rows] -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def keep_best(self, rows, image, hit):
        self.succeeded[rows] |= hit
        norm = norms(image - self.x0[rows])["l2"]
        closer = hit & (norm < self.best_norm[rows])
        self.best[rows[closer]], self.best_norm[rows[closer]] = image[closer], norm[closer]

    def no_progress(self, rows, objective):
        """Which images' objective has fallen by less than 1% since the last check."""
        self.lowest[rows] = np.minimum(self.lowest[rows], objective)
        checked = self.taken[rows] % self.patience == 0
        stuck = checked & ~(self.lowest[rows] <= 0.99 * self.lowest_before[rows])
        self.lowest_before[rows[checked]] = self.lowest[rows[checked]]
        return stuck

    def next_constant(self, rows):
        constant, hit = self.constant[rows], self.succeeded[rows]
        self.high[rows] = np.where(hit, np.minimum(self.high[rows], constant), self.high[rows])
        self.low[rows] = np.where(hit, self.low[rows], np.maximum(self.low[rows], constant))
        halfway = (self.low[rows] + self.high[rows]) / 2
        self.constant[rows] = np.where(np.isinf(halfway), constant * 10, halfway)
        self.searches[rows] += 1
        self.delta[rows] = self.m[rows] = self.v[rows] = 0
        self.taken[rows], self.succeeded[rows] = 0, False
        self.lowest[rows] = self.lowest_before[rows] = np.inf


# ------------------------------------------------------------------------------------------ jsma


def jsma(start, steps=2000, progress=None):
    """The saliency map attack, towards the class that a gradient attack lands in."""
    at = start.calls, start.x, start.y, target_classes(start)
    return saliency_map(*at, steps=steps, untargeted=True, progress=progress)


MINIMAL = {"fgsm": fgsm, "bim": bim, "pgd": pgd, "cw": cw, "jsma": jsma}

# ------------------------------------------------------------------------------------- fixed mode


def fixed(name, epsilons, start, steps=None, progress=None):
    """Attack at given epsilons. Of several, the first that succeeds counts."""
    if name in ("cw", "jsma"):
        return fixed_minimal(name, max(epsilons), start, steps, progress)
    settings = {"steps": steps} if steps else {}
    linf = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack,
        "bim": partial(foolbox.attacks.LinfBasicIterativeAttack, **settings),
        "pgd": partial(foolbox.attacks.LinfPGD, **settings),
    }
    return fixed_linf(on_log_odds(linf[name]()), epsilons, start, progress)


def fixed_minimal(name, epsilon, start, steps=None, progress=None):
    """cw and jsma have no epsilon of their own: what they find counts if it is small enough."""
    settings = {"steps": steps} if steps else {}
    found, success = MINIMAL[name](start, **settings, progress=progress)
    success &= norms(found - start.x)["l2" if name == "cw" else "l0"] <= epsilon
    return np.where(per_image(success), found, start.x), success


def fixed_linf(foolbox_attack, epsilons, start, progress=None):
    """One of Foolbox's Linf attacks, in batches."""
    calls, result, success = start.calls, start.x.copy(), np.zeros(len(start.x), bool)
    for first in range(0, len(result), calls.batch):
        rows = slice(first, first + calls.batch)
        inputs, labels = (ep.from_numpy(calls.like, a[rows]).raw for a in (start.x, start.y))
        _, images, hits = foolbox_attack(
            calls.fmodel, inputs, labels, epsilons=[float(e) for e in epsilons]
        )
        hits = ep.astensor(hits).numpy()
        for found, hit in zip(images[::-1], hits[::-1], strict=True):  # the first ends on top
            result[rows][hit] = ep.astensor(found).numpy()[hit]
            success[rows] |= hit
        if progress is not None:
            progress(len(hits[0]))
    return result, success


def on_log_odds(foolbox_attack):
    """A Foolbox gradient attack that raises the log-odds, where its cross-entropy goes blind."""

    def get_loss_fn(model, labels):
        return lambda inputs: log_odds(model(inputs), labels)

    foolbox_attack.get_loss_fn = get_loss_fn
    return foolbox_attack
