"""Matplotlib for files alone, in its own style: no matplotlibrc and no notebook's MPLBACKEND.

from train.shared.figures import plt
"""

import os

os.environ["MPLBACKEND"] = "agg"  # a notebook's may be unknown to this process

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("agg")  # in a process that had imported it
matplotlib.rcdefaults()

__all__ = ["plt"]
