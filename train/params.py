"""Settings of the networks, and the defaults that several scripts share.

At its top, a script lists the shared defaults that it uses, as in `per = params.per`. Edit a value
here to change it in every script, or in one script to change it there alone.

A network of your own: a module in train/models/, its name in NETWORKS there, and its chosen layer
below.
"""

from train.shared.artifacts import data_info

# ------------------------------------------------------------------- defaults of several scripts

per = 0.95  # share of each neuron's synapses in the slice, and of key neurons in the layer
choose_layer = None  # layer whose activations are the targets; None: chosen_layer below
lr_rate = None  # of Adam in DARE, its variants and the controls; None: network_lr_rate below
tune_epochs = 10  # of DARE, its variants and the controls
adv_lr_rate = 1e-4  # of Adam in adversarial training
adv_epochs = 20  # of adversarial training
epochs = 200  # of training
precision = "float32"  # of training; "bfloat16" is faster on processors made for it

# ------------------------------------------------------------------------------ layers and rates

# The layer whose activations are the regression targets. For images smaller than 32x32 pixels the
# VGG networks have fewer blocks, or fewer convolutions in a block.
chosen_layer = {
    "alexnet": "conv5",
    "lenet": "conv3",
    "resnet20": "stage3_block3_relu",
    "vgg16": "block5_conv3_relu",
    "vgg19": "block5_conv4_relu",
}
chosen_layer_of_small_images = {"vgg16": "block4_conv3_relu", "vgg19": "block5_conv3_relu"}
# Data sets of images smaller than 32x32, until prepare.py has written their size.
small_images = ("digits", "fashion_mnist")

# Adam's learning rate in tuning, by network or family of networks. The released code writes
# "10e-3" for AlexNet and "10e-7" for VGG. With 1e-3 AlexNet loses clean accuracy, and dare-sl ends
# near chance.
network_lr_rate = {"alexnet": 1e-4, "lenet": 1e-3, "resnet": 1e-4, "vgg": 1e-6}
# The released code, taken literally; ResNet takes AlexNet's value.
released_lr_rate = {"alexnet": 1e-2, "resnet": 1e-2, "vgg": 1e-6}

# How many of the first layers dare-sl and adversarial training freeze. As in the released code, the
# input layer counts and our normalisation does not. Networks that are not listed freeze none.
frozen = {"alexnet": 5, "lenet": 5, "resnet20": 25, "vgg16": 20, "vgg19": 20}

# -------------------------------------------------------------------------------------- training

batch = 128  # images in a step of training and of DARE's tuning
small_batch = 32  # for fewer than 2,000 images (digits), so that an epoch has enough steps
momentum = 0.9  # SGD with Nesterov momentum

# The length of training that the milestones and the decay are for; another length scales them.
schedule_epochs = 200

# (first epoch, learning rate from there on)
milestones = {
    "alexnet": ((0, 0.01), (80, 0.005), (160, 0.001)),
    "resnet": ((0, 0.1), (100, 0.01), (150, 0.001)),  # as He et al.
    "vgg": ((0, 0.01), (60, 0.002), (120, 0.0004), (160, 0.00008)),
}

# The rates are divided by 1 + decay * steps taken, as SGD's decay does in the released code.
decay = {"alexnet": 0, "resnet": 0, "vgg": 5e-4}

# Random shifts: the largest, as a share of height and width, and how the border is filled: with the
# mean that the network subtracts ("constant": 0 after the subtraction) or the nearest pixel
# ("edge").
shift = {"alexnet": (0.125, "constant"), "resnet": (0.125, "constant"), "vgg": (0.1, "edge")}

# Data sets whose images change their meaning when they are mirrored.
no_flip = ("svhn", "digits")


def network_family(model):
    """The family whose schedule, augmentation and rates a network uses; by default "alexnet"."""
    return next((family for family in ("resnet", "vgg") if model.startswith(family)), "alexnet")


def batch_size(images):
    """Images in a training step, for a training set of this size."""
    return batch if images >= 2000 else small_batch


def recipe(model, dataset, images):
    """The settings above that the training of a network depends on, in one text."""
    family = network_family(model)
    settings = {
        "schedule of epochs": schedule_epochs,
        "batch": batch_size(images),
        "momentum": momentum,
        "milestones": milestones[family],
        "decay": decay[family],
        "shift": shift[family],
        "flip": dataset not in no_flip,
    }
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def tuning_rate(model, released=False):
    """Adam's learning rate for tuning a network: as released, lr_rate above, or the network's."""
    rates = released_lr_rate if released else network_lr_rate
    of_network = rates.get(model, rates[network_family(model)])
    return of_network if released else lr_rate or of_network


def default_layer(dataset, model):
    """Name of the layer that DARE transforms in a network, or None for an unknown network."""
    if choose_layer:
        return choose_layer
    shape = data_info(dataset).get("shape")
    is_small = is_small_image(shape) if shape else dataset in small_images
    if is_small and model in chosen_layer_of_small_images:
        return chosen_layer_of_small_images[model]
    return chosen_layer.get(model)


def is_small_image(shape):
    """Whether images of this shape (h, w, c) get the smaller VGG networks."""
    return min(shape[:2]) < 32


def learning_rate_schedule(model, total_epochs, steps_per_epoch):
    """The learning rate of training, as a function of the epoch (from 0).

    A shorter training scales the milestones, and its rate decays as far as that of
    schedule_epochs.
    """
    family = network_family(model)
    starts = [(first * total_epochs / schedule_epochs, rate) for first, rate in milestones[family]]
    decay_per_epoch = decay[family] * steps_per_epoch * schedule_epochs / total_epochs

    def rate_of(epoch, _=None):
        rate = max((start for start in starts if start[0] <= epoch), key=lambda s: s[0])[1]
        return rate / (1 + decay_per_epoch * epoch)

    return rate_of
