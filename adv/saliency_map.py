"""JSMA under the name that other people's code imports it by."""

from adv.attacks.saliency_map import SaliencyMapAttack

__all__ = ["SaliencyMapAttack"]
