"""A rough estimate of how long a study takes, in training epochs, for the workflow to print.

The numbers are rough: medians over AlexNet, lenet, resnet20 and VGG16 on two cores, from the times
in dare/results/study/*/commands.csv and log.csv. A part can be wrong threefold. Starting processes,
slicing and mining are not counted.
"""

import csv
import statistics
from math import prod

from dare.methods import METHODS
from dare.workflow.config import training_seeds
from train.shared import artifacts, paths
from train.shared.log import clock

# How many training images take as long as ...
SAMPLE = {"fgsm": 4, "bim": 25, "pgd": 35, "cw": 100, "jsma": 45}  # making an adversarial sample
CW_STEPS_MEASURED = 40  # steps of cw with which SAMPLE was measured; jsma had at most 400 changes
CW_STEPS = 1000  # cw's own number of steps
SAMPLE_TUNED = 2  # an epoch of adversarial training, for each sample that was made
MODEL_SCORED = 700  # scoring a model, on at most 2,000 images
IMAGE_ATTACKED = 75  # an adaptive attack on an image
# Epochs of training that take as long as an epoch of another method.
TUNING = 0.8
# These are for training in float32, and all other steps are always in float32. In bfloat16 an epoch
# of training is so many times shorter.
BFLOAT16 = 2


def cost(config, images, tuned, precision="float32"):
    """{part of a study: how long it takes, in epochs of training}.

    Args:
        config: configuration of the workflow. images: number of training images.
        tuned: {method: (epochs of a model, {setting: its values})}. precision: of training.
    """
    epochs = {m: n * prod(map(len, values.values())) for m, (n, values) in tuned.items()}
    on_samples = sum(n for method, n in epochs.items() if METHODS[method].trains_on_samples)
    on_mined_images = sum(epochs.values()) - on_samples
    sample = SAMPLE | {"cw": SAMPLE["cw"] * (config["cw_steps"] or CW_STEPS) / CW_STEPS_MEASURED}
    attacks = config["samples"] * sum(sample[attack] for attack in config["attacks"])
    scores = MODEL_SCORED * sum(epochs.values())
    if config["adaptive"]:
        scores += IMAGE_ATTACKED * config["adaptive_images"] * attacked_models(config, tuned)
    after = {
        "attacks": attacks / images,
        "tuning": TUNING * on_mined_images + SAMPLE_TUNED * config["samples"] * on_samples / images,
        "scores": scores / images,
    }
    factor = BFLOAT16 if precision == "bfloat16" else 1
    # The control seeds serve all studies of a network.
    training = config["epochs"] * len(training_seeds(config)) / len(config["seeds"])
    return {"training": training} | {part: factor * value for part, value in after.items()}


def attacked_models(config, tuned):
    """Number of models that are attacked themselves: a method's best epoch at each setting."""
    number = {m: 1 for m, method in METHODS.items() if not method.script}  # existing checkpoints
    for method, (_, values) in tuned.items():
        number[method] = prod(len(v) for name, v in values.items() if name != "lr_rate")
    asked = config["adaptive_methods"] or number
    return sum(number[method] for method in asked if method in number)


def cost_line(config, dataset, model, seed, tuned):
    """About how long a study takes, in a line; tuned: as for `cost`.

    None if the number of training images is unknown, before the data are prepared.
    """
    # prepare.py keeps half of the images for mining and tuning.
    limit = config["limit"] and max(1, config["limit"] // 2)
    images = artifacts.data_info(dataset).get("images", {}).get("train", limit)
    if not images:
        return None
    folder = paths.study_folder(dataset, model, seed)
    precision = config["precision"] or artifacts.recorded_precision(folder / "checkpoints")
    parts = cost(config, images, tuned, precision)
    text = ", ".join(f"{part} {epochs:.0f}" for part, epochs in parts.items())
    if precision is None:
        text += f"; if it trains in bfloat16, all but the training takes {BFLOAT16} times as many"
    total = sum(parts.values())
    epoch = seconds_of_epoch(folder / "log.csv")
    time = f", or {clock(total * epoch)} at its {epoch:.1f} s an epoch" if epoch else ""
    return f"{folder.name} takes about as long as {total:.0f} epochs of its training ({text}){time}"


def seconds_of_epoch(path):
    """The median of the seconds in a training's log.csv, or None without one."""
    if not path.exists():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return statistics.median(seconds) if seconds else None
