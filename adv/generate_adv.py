"""Step 5: adversarial samples, made against the original model from images of x_train.

    python adv/generate_adv.py --dataset digits --model lenet --attack all --samples 500
    python adv/generate_adv.py --dataset digits --attack pgd --mode fixed --epsilon 0.03

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
adv/<attack>.h5 there, and adv/<attack>.png, a picture of some samples. Finished chunks are kept:
interrupted, the same command goes on after the last one and writes the same file. All attacks start
from the same images, which the model classifies correctly, and share their split 60/20/20 into
train (adversarial training), validation (selection) and test (reported).
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import matplotlib
import numpy as np

from adv import ATTACKS
from adv.attacks import attack as run_attack
from adv.attacks import norms
from adv.attacks.classifier import BatchedModel, per_image
from train.artifacts import (
    already_made,
    atomic_write,
    attributes,
    remove_temporary_files,
    samples_path,
    set_attributes,
)
from train.flags import UserError, chosen_names, options, run_script
from train.log import progress, stage
from train.study import Study
from train.utils import class_names, pixels, predict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

dataset = "digits"
model = "lenet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, several with commas, or all
samples = 5000
mode = "minimal"  # minimal: the smallest perturbation of each image; fixed: one epsilon
epsilon = None  # mode fixed: Linf for fgsm, bim, pgd; L2 for cw; features for jsma
steps = None  # iterations, instead of the attack's own

# Images that an interruption can cost. More keep the batches full for longer; cw has a quarter.
CHUNK = 1000
SPLIT = (0.6, 0.8)  # shares of the samples where validation and test begin
SHOWN = 8  # samples in a picture


# ------------------------------------------------------------------------------ images and splits


def choose(classifier, x, y, samples, seed):
    """Indices of `samples` random images of x (n, h, w, c) that the classifier gets right.

    Returns int64 (samples,), ascending. Raises UserError if there are fewer.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(x))
    chosen = np.empty(0, "int64")
    for first in range(0, len(x), 4 * samples):  # most are right: no need to classify all of x
        block = order[first : first + 4 * samples]
        rows = np.sort(block)
        right = rows[predict(classifier, x[rows]).argmax(axis=1) == y[rows]]
        chosen = np.concatenate([chosen, block[np.isin(block, right)]])
        if len(chosen) >= samples:
            return np.sort(chosen[:samples])
    raise UserError(
        f"--samples {samples} is more than the {len(chosen)} of {len(x)} training images that the "
        f"model gets right: ask for fewer."
    )


def splits(n, seed):
    """uint8 (n,): 0 train, 1 validation, 2 test, at random; the same for every attack."""
    rank = np.random.default_rng([seed, 3]).permutation(n)
    begins = [round(share * n) for share in SPLIT]
    return np.searchsorted(begins, rank, side="right").astype("uint8")


# ------------------------------------------------------------------------------------- the attack


@dataclass
class Chunk:
    """What an attack found for some images, and what it took.

    image: float32 (n, h, w, c). success: bool (n,). seconds: of the attack; inside: of these, in
    the model.
    """

    image: np.ndarray
    success: np.ndarray
    seconds: float
    inside: float

    @classmethod
    def read(cls, path):
        with h5py.File(path, "r") as file:
            seconds, inside = float(file.attrs["seconds"]), float(file.attrs["inside"])
            return cls(file["image"][()], file["success"][()], seconds, inside)

    def write(self, path, provenance):
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, provenance)
            file.attrs.update(seconds=self.seconds, inside=self.inside)
            file["image"], file["success"] = self.image, self.success

    @classmethod
    def join(cls, chunks):
        image, success = (
            np.concatenate([getattr(chunk, name) for chunk in chunks])
            for name in ("image", "success")
        )
        seconds, inside = sum(c.seconds for c in chunks), sum(c.inside for c in chunks)
        return cls(image, success, seconds, inside)


def parts_folder(path):
    """Where the finished chunks of the samples file `path` wait for the others."""
    return path.parent / f".{path.stem}.parts"


def attack_chunk(name, calls, classifier, x, y, provenance, seed, progress):
    """One attack on images x (n, h, w, c), uint8, with labels y (n,). Returns a Chunk."""
    begun, calls.seconds = time.perf_counter(), 0.0
    image, success = run_attack(
        name, classifier, pixels(x), y, provenance["mode"], provenance["epsilon"], seed,
        provenance["steps"], progress, calls,
    )  # fmt: skip
    return Chunk(image, success, time.perf_counter() - begun, calls.seconds)


def attack_all(name, calls, classifier, x, y, index, path, provenance):
    """One attack on images x[index], in chunks that survive the end of the process at any moment.

    A finished chunk waits in parts_folder(path), with provenance as its attributes; one that was
    made from something else is made anew. Returns a Chunk of all.
    """
    parts, chunks, hits = parts_folder(path), [], 0
    parts.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(parts)
    size = CHUNK // 4 if name == "cw" else CHUNK
    with progress(total=len(index), desc=name, unit="image") as bar:
        for first in range(0, len(index), size):
            rows, part = index[first : first + size], parts / f"{first:06d}.h5"
            made_so, there = provenance | {"images": len(rows)}, attributes(part)
            if all(there.get(name) == wanted for name, wanted in made_so.items()):
                bar.update(len(rows))
            else:
                seed = provenance["seed"] + first
                one = x[rows], y[rows], provenance, seed, bar.update
                attack_chunk(name, calls, classifier, *one).write(part, made_so)
            chunks.append(Chunk.read(part))
            hits += chunks[-1].success.sum()
            bar.set_postfix_str(f"success {100 * hits / (first + len(rows)):.1f}%")
    return Chunk.join(chunks)


# ------------------------------------------------------------------------------------- the result


def write_samples(path, found, original, label, index, provenance):
    """The samples file, last of all: where it is, the samples are complete.

    found: Chunk. original: the pixels it started from. label, index: int (n,).
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        file["image"], file["success"], file["index"] = found.image, found.success, index
        file["label"], file["split"] = label, splits(len(index), provenance["seed"])
        for norm, size in norms(found.image - original).items():
            file[norm] = size


def picture(path, original, adversarial, label, classifier, name, names):
    """A grid: originals, adversarials, their differences, and what the classifier takes them for.

    Each difference is magnified to full contrast. names: of the classes.
    """
    difference = adversarial - original
    largest = np.abs(difference).max(axis=(1, 2, 3))
    magnified = 0.5 + 0.5 * difference / per_image(largest)
    predicted = predict(classifier, adversarial).argmax(axis=1)
    rows = {
        "original": (original, [names[k] for k in label]),
        name: (adversarial, [f"taken for\n{names[k]}" for k in predicted]),
        "difference": (magnified, [f"x{0.5 / size:.3g}" for size in largest]),
    }
    figure, axes = plt.subplots(
        3, len(label), figsize=(1.2 * len(label) + 0.6, 4.6), squeeze=False, layout="constrained"
    )
    for row, (title, (images, captions)) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, image, caption in zip(row, images, captions, strict=True):
            axis.imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_title(caption, fontsize=7)
    with atomic_write(path, ".png") as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def report(path, found):
    """Say how it went, and warn where it means little. Returns what the log records."""
    n, hits, share = len(found.success), int(found.success.sum()), float(found.success.mean())
    speed = n / found.seconds
    outside = 100 * (1 - found.inside / found.seconds)
    print(
        f"{path}: {hits} of {n} succeed ({100 * share:.1f}%), {speed:.1f} images/s, "
        f"{outside:.0f}% of the time outside the model",
        flush=True,
    )
    if share < 0.5:
        print(
            f"Warning: {path.stem} succeeds on less than half of the images: what is made from "
            f"its samples rests on the easy ones.",
            flush=True,
        )
    return {
        "attack_seconds": round(found.seconds, 2),
        "images_per_second": round(speed, 2),
        "success": round(share, 4),
    }


def generate(name, calls, study, x, y, index, path, provenance):
    """Attack images x[index] and write the samples file `path`, its picture first.

    provenance: attributes of the file, with mode, epsilon, steps and seed. Returns what the log
    records. Raises UserError if not one image can be attacked.
    """
    found = attack_all(name, calls, study.classifier, x, y, index, path, provenance)
    if not found.success.any():
        raise UserError(
            f"{name} changed the decision on none of {len(index)} images: attack with a larger "
            f"epsilon, or check the model's gradients."
        )
    original, label = pixels(x[index]), y[index]
    shown = np.flatnonzero(found.success)[:SHOWN]
    names = class_names(study.dataset, study.classifier.output_shape[-1])
    some = original[shown], found.image[shown], label[shown]
    picture(path.with_suffix(".png"), *some, study.classifier, name, names)
    write_samples(path, found, original, label, index, provenance)
    return report(path, found)


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    if (args.mode == "fixed") != (args.epsilon is not None):
        raise UserError(
            f"--mode {args.mode} with --epsilon {args.epsilon}: mode fixed needs an epsilon, mode "
            f"minimal takes none."
        )
    study = Study.open(args)
    x, y = study.data("train")
    if args.samples > len(x):
        raise UserError(
            f"--samples {args.samples} is more than the {len(x)} images of x_train: ask for fewer."
        )
    calls, index = BatchedModel.of(study.classifier), None
    settings = {k: getattr(args, k) for k in ("samples", "mode", "epsilon", "steps")}
    for name in chosen_names(args.attack, ATTACKS):
        path = samples_path(study.folder, name)
        provenance = study.provenance | settings | {"attack": name}
        with stage(path.with_suffix(".log"), name, vars(args) | {"attack": name}) as record:
            record.idle = already_made(path, provenance)
            if record.idle:
                print(f"{path} is there.")
            else:
                if index is None:
                    index = choose(study.classifier, x, y, args.samples, args.seed)
                record |= generate(name, calls, study, x, y, index, path, provenance)
        # Not in generate: a run that was killed after its last write leaves them.
        shutil.rmtree(parts_folder(path), ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
