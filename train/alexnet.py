"""Step 2 for AlexNet: train it on x_train and keep every epoch.

    python data/prepare.py --dataset fashion_mnist
    python train/alexnet.py --dataset fashion_mnist --epochs 20

Reads and writes the same files as train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import params
from train.shared.flags import options, run_script
from train.train import train

dataset = "fashion_mnist"  # digits, fashion_mnist, cifar10, svhn, or your own
seed = 0
epochs = params.epochs
precision = params.precision


def main(argv=None):
    args = options(__doc__, argv, globals())
    train(model="alexnet", **vars(args))


if __name__ == "__main__":
    run_script(main)
