"""fgsm, bim and pgd: steps along the gradient or its sign."""

import numpy as np

from adv.attacks.epsilon_search import EpsilonSearch, StepRule
from adv.attacks.line_search import line_search
from adv.attacks.perturbations import largest_absolute, mean_absolute, per_image

BIM_STEPSIZE = 1 / 6  # as a share of epsilon
PGD_STEPSIZE = 1 / 30


def fgsm(start, steps=None, progress=None):
    """Fast gradient sign method (Goodfellow et al. 2015): a line search along one gradient."""
    adversarial, success, _ = line_search(start, np.sign(start.gradient), progress=progress)
    return adversarial, success


def bim(start, steps=None, progress=None):
    """Basic iterative method (Kurakin et al. 2017): the smallest epsilon in L1."""
    # Ten steps predict the next epsilon badly, so the search brackets it.
    rule = StepRule(bim_step, mean_absolute, steps or 10, BIM_STEPSIZE, is_predictable=False)
    return EpsilonSearch(start, rule).run(progress)


def pgd(start, steps=None, progress=None):
    """Projected gradient descent (Madry et al. 2018): the smallest epsilon in Linf."""
    rule = StepRule(pgd_step, largest_absolute, steps or 40, PGD_STEPSIZE)
    return EpsilonSearch(start, rule).run(progress)


def bim_step(x, x0, gradient, epsilon, step_size):
    """One step of bim in L1, projected on the epsilon ball around x0 and on [0, 1]."""
    gradient_size = per_image(np.maximum(mean_absolute(gradient), 1e-12))
    perturbation = x + step_size * gradient / gradient_size - x0
    size = per_image(np.maximum(mean_absolute(perturbation), 1e-12))
    return np.clip(x0 + perturbation * np.minimum(1, epsilon / size), 0, 1)


def pgd_step(x, x0, gradient, epsilon, step_size):
    """One step of pgd in Linf, projected on the epsilon ball around x0 and on [0, 1]."""
    perturbation = x + step_size * np.sign(gradient) - x0
    return np.clip(x0 + np.clip(perturbation, -epsilon, epsilon), 0, 1)
