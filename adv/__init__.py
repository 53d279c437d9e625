"""Adversarial samples and adversarial training."""

ATTACKS = ("fgsm", "bim", "pgd", "cw", "jsma")
SUCCESS_NEEDED = 0.5  # of the images; fewer samples are biased towards easy ones
