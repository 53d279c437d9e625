"""Adversarial samples and adversarial training."""

ATTACKS = ("fgsm", "bim", "pgd", "cw", "jsma")
