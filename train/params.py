"""What belongs to a network. Edit here what the scripts have no flag for.

A network of your own: a module in train/models/, its name in NETWORKS there, and a layer below.
"""

batch = 128  # of training and of DARE's tuning
small_batch = 32  # for fewer than 2,000 images (digits), so that an epoch has some steps
momentum = 0.9  # SGD with Nesterov momentum
precision = None  # of training: "float32", "bfloat16", or None: bfloat16 if the hardware has it
epochs = 200  # what the milestones below refer to; a shorter run scales them

# First epoch, of 200, of every learning rate.
milestones = {
    "alexnet": ((0, 0.01), (80, 0.005), (160, 0.001)),
    "vgg": ((0, 0.01), (60, 0.002), (120, 0.0004), (160, 0.00008)),
}

# The rates are divided by 1 + decay times the steps taken: SGD's decay in the released code.
decay = {"alexnet": 0, "vgg": 5e-4}

# Shifts: up to this share of height and width, and what fills the border: the mean image of x_train
# ("constant": 0 after the mean is subtracted) or the nearest pixel ("edge").
shift = {"alexnet": (0.125, "constant"), "vgg": (0.1, "edge")}

# Data sets whose pictures mean something else, or nothing, in a mirror.
no_flip = ("svhn", "digits")

# The chosen layer of DARE, whose activations are the regression targets. The vgg networks have
# fewer blocks, or fewer convolutions in one, for images of less than 32 pixels.
chosen_layer = {
    "alexnet": "conv5",
    "lenet": "conv3",
    "vgg16": "block5_conv3_relu",
    "vgg19": "block5_conv4_relu",
}
chosen_layer_of_small = {"vgg16": "block4_conv3_relu", "vgg19": "block5_conv3_relu"}
small_images = ("digits", "fashion_mnist")  # data sets of less than 32 pixels

# The default setting of DARE: tables name other slices and layers, "dare per 0.5".
per = 0.95

# Adam's learning rate in tuning, of a network or its family, and what the released code writes
# ("10e-3", "10e-7"). At 1e-3 AlexNet loses clean accuracy, and dare-sl and dare-last end at chance.
lr_rate = {"alexnet": 1e-4, "lenet": 1e-3, "vgg": 1e-6}
released_lr_rate = {"alexnet": 1e-2, "vgg": 1e-6}
# First layers that dare-sl and adversarial training freeze, counted as the released code does: with
# the input, without our normalisation. A network of your own freezes none.
frozen = {"alexnet": 5, "lenet": 5, "vgg16": 20, "vgg19": 20}


def batch_size(images):
    return batch if images >= 2000 else small_batch


def network_family(model):
    """Whose schedule, augmentation and rates a network takes: all but the vgg take AlexNet's."""
    return "vgg" if model.startswith("vgg") else "alexnet"


def rate_of(model, released=False):
    """The learning rate of tuning: a network's own, else its family's; or the released one."""
    rates = released_lr_rate if released else lr_rate
    return rates.get(model, rates[network_family(model)])


def is_small_image(shape):
    """Whether images of this shape (h, w, c) take the smaller vgg networks."""
    return min(shape[:2]) < 32


def layer_of(model, small):
    """Name of the chosen layer of a network, for small images or not; None: the user has to say."""
    return (small and chosen_layer_of_small.get(model)) or chosen_layer.get(model)


def learning_rate(model, total, steps=0):
    """epoch (from 0) -> learning rate of a training of `total` epochs of so many steps.

    A shorter training scales the milestones, and its steps decay as those of 200 epochs do.
    """
    starts = [(first * total / epochs, rate) for first, rate in milestones[network_family(model)]]
    decay_of_epoch = decay[network_family(model)] * steps * epochs / total

    def rate(epoch, _=None):
        latest = max((s for s in starts if s[0] <= epoch), key=lambda s: s[0])[1]
        return latest / (1 + decay_of_epoch * epoch)

    return rate
