"""Step 5: adversarial examples ("samples"), made against the original from images of x_train.

    python adv/generate_adv.py --dataset digits --model lenet --attack all --samples 500
    python adv/generate_adv.py --dataset digits --attack pgd --mode fixed --epsilon 0.03

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
adv/<attack>.h5 there, and adv/<attack>.png, a picture of some samples. All attacks start from the
same images, which the model classifies correctly. They share their split 60/20/20 into train (for
adversarial training), validation (for selection) and test (reported). Finished chunks are kept:
after an interruption the same command continues, and writes the same file.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from adv import ATTACKS, SUCCESS_NEEDED
from adv.attacks import attack as run_attack
from adv.attacks import check_mode, norms
from adv.attacks.classifier import BatchedModel
from train.shared.artifacts import atomic_write, attributes, check, set_attributes
from train.shared.flags import UserError, chosen_names, options, run_script
from train.shared.log import progress, stage
from train.shared.paths import samples_path
from train.shared.study import Study
from train.utils import class_names, pixels, predict

dataset = "digits"
model = "lenet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, a list with commas, or all
samples = 5000
mode = "minimal"  # minimal: the smallest perturbation of each image; fixed: one epsilon
epsilon = None  # for mode fixed: Linf for fgsm, bim, pgd; L2 for cw; number of features for jsma
steps = None  # number of iterations; None: the attack's own

# At most this many images are attacked again after an interruption. Larger chunks keep batches full
# for longer. For cw it is a quarter.
CHUNK = 1000
SPLIT = (0.6, 0.8)  # where the validation and the test part of the samples begin
SHOWN = 8  # samples in a picture


# ----------------------------------------------------------------------------- images and splits


def choose_images(classifier, x, y, samples, seed):
    """Indices of random images of x (n, h, w, c) that the classifier gets right.

    Returns int64 (samples,), ascending. Raises UserError if there are too few.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(x))
    chosen = np.empty(0, "int64")
    # In blocks, because most images are right and not all of x has to be classified.
    for first in range(0, len(x), 4 * samples):
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


def random_splits(n, seed):
    """The part of every sample, uint8 (n,): 0 train, 1 validation, 2 test; for all attacks."""
    rank = np.random.default_rng([seed, 3]).permutation(n)
    begins = [round(share * n) for share in SPLIT]
    return np.searchsorted(begins, rank, side="right").astype("uint8")


# ------------------------------------------------------------------------------------- the attack


@dataclass
class Samples:
    """What an attack found for some images.

    image: float32 (n, h, w, c). success: bool (n,).
    seconds: duration of the attack. inside: how much of it the model took.
    """

    image: np.ndarray
    success: np.ndarray
    seconds: float
    inside: float

    @classmethod
    def read(cls, path):
        with h5py.File(path, "r") as file:
            seconds = float(file.attrs["seconds"])
            inside = float(file.attrs["inside"])
            return cls(file["image"][()], file["success"][()], seconds, inside)

    def write(self, path, provenance):
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            set_attributes(file, provenance)
            file.attrs.update(seconds=self.seconds, inside=self.inside)
            file["image"] = self.image
            file["success"] = self.success

    @classmethod
    def join(cls, chunks):
        return cls(
            np.concatenate([chunk.image for chunk in chunks]),
            np.concatenate([chunk.success for chunk in chunks]),
            sum(chunk.seconds for chunk in chunks),
            sum(chunk.inside for chunk in chunks),
        )


@dataclass
class Images:
    """Images x[index] to attack; x: uint8 (n, h, w, c), y: labels (n,), index: int64, sorted."""

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray

    def chunks(self, size):
        """{number of the first image: Images} of chunks of this size."""
        starts = range(0, len(self.index), size)
        return {first: Images(self.x, self.y, self.index[first : first + size]) for first in starts}


def parts_folder(path):
    """Where finished chunks of the samples file `path` are kept until all are finished."""
    return path.parent / f".{path.stem}.parts"


def attack_images(name, batched_model, images, path, provenance):
    """Run one attack in chunks that survive the end of the process at any moment.

    Args:
        name: of the attack. batched_model: BatchedModel. images: Images.
        path: the samples file; finished chunks are kept in parts_folder(path).
        provenance: of the file, with mode, epsilon, steps and seed. A chunk with another one is
            made again.

    Returns:
        Samples of all images.
    """
    parts = parts_folder(path)
    parts.mkdir(parents=True, exist_ok=True)
    chunks = []
    with progress(total=len(images.index), desc=name, unit="image") as bar:
        update = bar.update
        for first, chunk in images.chunks(CHUNK // 4 if name == "cw" else CHUNK).items():
            part = parts / f"{first:06d}.h5"
            expected = provenance | {"images": len(chunk.index)}
            kept = attributes(part)
            if all(kept.get(key) == value for key, value in expected.items()):
                update(len(chunk.index))
            else:
                seed = provenance["seed"] + first
                adversarial = attack_chunk(name, batched_model, chunk, provenance, seed, update)
                adversarial.write(part, expected)
            chunks.append(Samples.read(part))
            success = np.mean(np.concatenate([chunk.success for chunk in chunks]))
            bar.set_postfix_str(f"success {100 * success:.1f}%")
    return Samples.join(chunks)


def attack_chunk(name, batched_model, images, provenance, seed, report_done):
    """One attack on some Images, as Samples; report_done: function (number of images)."""
    x = pixels(images.x[images.index])
    y = images.y[images.index]
    start_time = time.perf_counter()
    batched_model.seconds = 0.0
    image, success = run_attack(
        name, batched_model, x, y, provenance["mode"], provenance["epsilon"], seed,
        steps=provenance["steps"], progress=report_done,
    )  # fmt: skip
    return Samples(image, success, time.perf_counter() - start_time, batched_model.seconds)


# ------------------------------------------------------------------------------------- the result


def write_samples(path, adversarial, images, provenance):
    """Write the samples file, last of all: if it exists, the samples are complete.

    adversarial: Samples. images: Images.
    """
    original = pixels(images.x[images.index])
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        file["image"] = adversarial.image
        file["success"] = adversarial.success
        file["index"] = images.index
        file["label"] = images.y[images.index]
        file["split"] = random_splits(len(images.index), provenance["seed"])
        for norm, size in norms(adversarial.image - original).items():
            file[norm] = size


def draw_some(path, name, study, adversarial, images):
    """Draw the first successful samples."""
    from adv.attacks.picture import draw_samples  # attacks do not need matplotlib

    rows = np.flatnonzero(adversarial.success)[:SHOWN]
    index = images.index[rows]
    names = class_names(study.dataset, study.classifier.output_shape[-1])
    predicted = predict(study.classifier, adversarial.image[rows]).argmax(axis=1)
    captions = [names[k] for k in images.y[index]], [names[k] for k in predicted]
    draw_samples(path, name, pixels(images.x[index]), adversarial.image[rows], captions)


def summarise(path, adversarial):
    """Print success and speed, with a warning if they are low; returns them for the log."""
    n = len(adversarial.success)
    hits = int(adversarial.success.sum())
    share = float(adversarial.success.mean())
    speed = n / adversarial.seconds
    outside = 100 * (1 - adversarial.inside / adversarial.seconds)
    print(
        f"{path}: {hits} of {n} succeed ({100 * share:.1f}%), {speed:.1f} images/s, "
        f"{outside:.0f}% of the time outside the model",
        flush=True,
    )
    if share < SUCCESS_NEEDED:
        print(
            f"Warning: {path.stem} succeeds on less than half of the images, so its samples are "
            f"biased towards easy images.",
            flush=True,
        )
    return {
        "attack_seconds": round(adversarial.seconds, 2),
        "images_per_second": round(speed, 2),
        "success": round(share, 4),
    }


def generate(name, batched_model, study, images, path, provenance):
    """Attack images and write the picture and the samples file; returns what the log records.

    Raises UserError if the attack succeeds on no image.
    """
    adversarial = attack_images(name, batched_model, images, path, provenance)
    if not adversarial.success.any():
        larger = "" if provenance["mode"] == "minimal" else "attack with a larger --epsilon, or "
        raise UserError(
            f"{name} changed the decision on none of {len(images.index)} images: {larger}check the "
            f"model's gradients."
        )
    draw_some(path.with_suffix(".png"), name, study, adversarial, images)
    write_samples(path, adversarial, images, provenance)
    return summarise(path, adversarial)


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    check_mode(args.mode, args.epsilon)
    study = Study.open(args)
    x, y = study.data("train")
    if args.samples > len(x):
        raise UserError(
            f"--samples {args.samples} is more than the {len(x)} images of x_train: ask for fewer."
        )
    batched_model = BatchedModel.of(study.classifier)
    images = None
    settings = {name: getattr(args, name) for name in ("samples", "mode", "epsilon", "steps")}
    for name in chosen_names(args.attack, ATTACKS):
        path = samples_path(study.folder, name)
        provenance = study.provenance | settings | {"attack": name}
        if name == "fgsm":
            provenance["steps"] = None  # it takes one step, whatever --steps says
        with stage(path.with_suffix(".log"), name, vars(args) | {"attack": name}) as log:
            log["idle"] = check(path, provenance)
            if log["idle"]:
                print(f"{path} already exists.")
            else:
                if images is None:
                    index = choose_images(study.classifier, x, y, args.samples, args.seed)
                    images = Images(x, y, index)
                log |= generate(name, batched_model, study, images, path, provenance)
        # Here and not in generate, because a run that is killed after its last write leaves them.
        shutil.rmtree(parts_folder(path), ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
