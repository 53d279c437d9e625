"""How the study trains its networks (design section 3). Edit here what alexnet.py and train.py do not have as a flag."""

batch = 128
small_batch = 32  # for fewer than 2,000 images (digits), so that an epoch has some steps
momentum = 0.9  # SGD with Nesterov momentum
epochs = 200  # what the milestones below refer to; a shorter run scales them

# First epoch, of 200, of every learning rate.
milestones = {
    "alexnet": ((0, 0.01), (80, 0.005), (160, 0.001)),
    "vgg": ((0, 0.01), (60, 0.002), (120, 0.0004), (160, 0.00008)),
}

# Shifts: up to this share of height and width, and what fills the border ("constant" is 0, "edge" the nearest pixel).
shift = {"alexnet": (0.125, "constant"), "vgg": (0.1, "edge")}

# Data sets whose pictures mean something else, or nothing, in a mirror.
no_flip = ("svhn", "digits")

# Tuning (design section 6): Adam's learning rate of dare and its variants, and the first layers that dare-sl and
# adversarial training freeze, counted after the normalisation.
lr_rate = {"alexnet": 1e-3, "vgg": 1e-6}
frozen = {"alexnet": 5, "vgg": 20}


def batch_of(images):
    return batch if images >= 2000 else small_batch


def family(model):
    return "vgg" if model.startswith("vgg") else "alexnet"


def learning_rate(model, total):
    """epoch (from 0) -> learning rate of a training of `total` epochs."""
    steps = [(first * total / epochs, rate) for first, rate in milestones[family(model)]]
    return lambda epoch, _=None: max((s for s in steps if s[0] <= epoch), key=lambda s: s[0])[1]
