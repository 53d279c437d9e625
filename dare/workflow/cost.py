"""What a study takes, in epochs of its training. The graph says so before a study begins.

The numbers were measured in the cells of dare/results/study: the seconds of a step in commands.csv,
half of them where two steps ran at a time, divided by the seconds of an epoch in log.csv. They
differ up to twofold between networks.
"""

import csv
import statistics

from dare.workflow.methods import METHODS
from train import artifacts
from train.log import entries

# What making a sample takes, in images of training; cw with 40 steps.
SAMPLE = {"fgsm": 4, "bim": 25, "pgd": 35, "cw": 100, "jsma": 45}
CW_STEPS = 40, 1000  # those measured, and the attack's own number
# What an epoch of tuning takes, in epochs of training.
TUNING, ADVERSARIAL_TRAINING = 0.8, 0.12
# What scoring takes, in images of training: an epoch of a tuned model on at most 2,000 images, and
# an adaptive attack on an image.
SCORE, ADAPTIVE_ATTACK = 700, 75
# All of this is in float32: so many times as long, in epochs of a training in bfloat16.
IN_FLOAT32 = 2.5
IMAGES = 25000  # for training, where neither a limit nor the prepared data say how many


def cost(config, images, tuned, precision="float32"):
    """{part of a study: how long it takes, in epochs of training}.

    Args:
        config: configuration of the graph. images: number of training images.
        tuned: {method: epochs of tuning, over all its models}. precision: of training.
    """
    on_samples = sum(n for method, n in tuned.items() if METHODS[method].trains_on_samples)
    on_mined_images = sum(tuned.values()) - on_samples
    sample = SAMPLE | {"cw": SAMPLE["cw"] * (config["cw_steps"] or CW_STEPS[1]) / CW_STEPS[0]}
    attacks = config["samples"] * sum(sample[attack] for attack in config["attacks"])
    scores = SCORE * sum(tuned.values())
    if config["adaptive"]:
        attacked = len(config["adaptive_methods"] or config["methods"])
        scores += ADAPTIVE_ATTACK * attacked * config["adaptive_images"]
    after = {
        "attacks": attacks / images,
        "tuning": TUNING * on_mined_images + ADVERSARIAL_TRAINING * on_samples,
        "scores": scores / images,
    }
    slower = 1 if precision == "float32" else IN_FLOAT32
    # The control seeds serve all studies of a network.
    training = config["epochs"] * (1 + len(config["control_seeds"]) / len(config["seeds"]))
    return {"training": training} | {part: slower * epochs for part, epochs in after.items()}


def cost_line(config, dataset, model, seed, tuned):
    """What a study takes, in a line; tuned: as for `cost`. Starting its steps is not counted."""
    limit = config["limit"] // 2 if config["limit"] else IMAGES
    images = artifacts.data_info(dataset).get("images", {}).get("train", limit)
    folder = artifacts.study_folder(dataset, model, seed)
    precision = config["precision"] or recorded_precision(folder / "train.log")
    parts = cost(config, images, tuned, precision or "float32")
    text = ", ".join(f"{part} {epochs:.0f}" for part, epochs in parts.items())
    total = sum(parts.values())
    epoch = seconds_of_epoch(folder / "log.csv")
    time = f", or {clock(total * epoch)} at its {epoch:.1f} s an epoch" if epoch else ""
    checkpoints = config["epochs"] + sum(tuned.values())
    if precision is None:
        text += f"; if it trains in bfloat16, all but training {IN_FLOAT32:g} times as many"
    return (
        f"{folder.name} computes as much as about {total:.0f} epochs of its training "
        f"({text}){time}, and keeps {checkpoints} checkpoints."
    )


def seconds_of_epoch(path):
    """The median of the seconds in a training's log.csv, or None without one."""
    if not path.exists():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return statistics.median(seconds) if seconds else None


def recorded_precision(path):
    """The precision of a training, from its train.log; None before it has begun."""
    trainings = entries(path) if path.exists() else []
    return trainings[0]["settings"].get("precision", "float32") if trainings else None


def clock(seconds):
    """ "3 h 05 min" of seconds."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
