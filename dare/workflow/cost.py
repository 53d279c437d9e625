"""What a study takes, in epochs of its training. The graph says so before a study begins.

The numbers were measured in the cells of dare/results/study: the seconds of a step in commands.csv,
half of them where two steps ran at a time, divided by the seconds of an epoch in log.csv. They
differ up to twofold between networks.
"""

import csv
import statistics

from dare.workflow.methods import METHODS
from train import artifacts

# What making a sample takes, in images of training; cw with 40 steps.
SAMPLE = {"fgsm": 4, "bim": 25, "pgd": 35, "cw": 100, "jsma": 45}
CW_STEPS = 40, 1000  # those measured, and the attack's own number
# What an epoch of tuning takes, in epochs of training.
TUNING, ADVERSARIAL_TRAINING = 0.8, 0.12
# What scoring takes, in images of training: an epoch of a tuned model on at most 2,000 images, and
# an adaptive attack on an image.
SCORE, ADAPTIVE_ATTACK = 700, 75
IMAGES = 25000  # for training, where neither a limit nor the prepared data say how many


def cost(config, images, tuned):
    """{part of a study: how long it takes, in epochs of training}.

    Args:
        config: configuration of the graph. images: number of training images.
        tuned: {method: epochs of tuning, over all its models}.
    """
    on_samples = sum(n for method, n in tuned.items() if METHODS[method].trains_on_samples)
    on_mined_images = sum(tuned.values()) - on_samples
    sample = SAMPLE | {"cw": SAMPLE["cw"] * (config["cw_steps"] or CW_STEPS[1]) / CW_STEPS[0]}
    attacks = config["samples"] * sum(sample[attack] for attack in config["attacks"])
    scores = SCORE * sum(tuned.values())
    if config["adaptive"]:
        attacked = len(config["adaptive_methods"] or config["methods"])
        scores += ADAPTIVE_ATTACK * attacked * config["adaptive_images"]
    return {
        # The control seeds serve all studies of a network.
        "training": config["epochs"] * (1 + len(config["control_seeds"]) / len(config["seeds"])),
        "attacks": attacks / images,
        "tuning": TUNING * on_mined_images + ADVERSARIAL_TRAINING * on_samples,
        "scores": scores / images,
    }


def cost_line(config, dataset, model, seed, tuned):
    """What a study takes, in a line; tuned: as for `cost`. Starting its steps is not counted."""
    limit = config["limit"] // 2 if config["limit"] else IMAGES
    images = artifacts.data_info(dataset).get("images", {}).get("train", limit)
    parts = cost(config, images, tuned)
    folder = artifacts.study_folder(dataset, model, seed)
    text = ", ".join(f"{part} {epochs:.0f}" for part, epochs in parts.items())
    total = sum(parts.values())
    epoch = seconds_of_epoch(folder / "log.csv")
    time = f", or {clock(total * epoch)} at its {epoch:.1f} s an epoch" if epoch else ""
    checkpoints = config["epochs"] + sum(tuned.values())
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


def clock(seconds):
    """ "3 h 05 min" of seconds."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
