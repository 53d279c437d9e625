"""Adversarial samples and adversarial training."""

ATTACKS = ("fgsm", "bim", "pgd", "cw", "jsma")
SUCCESS_NEEDED = 0.5  # of the images; fewer samples are biased towards easy ones
SPLIT = (0.6, 0.8)  # where the validation and the test part of the samples begin
