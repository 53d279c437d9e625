"""Step 5: adversarial examples ("samples"), made against the original model.

    python adv/generate_adv.py --dataset digits --model lenet --attack all --samples 500
    python adv/generate_adv.py --dataset digits --attack pgd --mode fixed --epsilon 0.03
    python adv/generate_adv.py --dataset digits --attack fgsm,pgd --part test --samples 100

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
adv/<attack>.h5 there, and adv/<attack>.png, a picture of some samples. All attacks start from the
same images of x_train, which the model classifies correctly. They share their split 60/20/20 into
train (for adversarial training), validation (for selection) and test (reported).

--part test attacks images of the reporting half of x_test instead, which no model was trained on.
Its samples are all in the split test, in adv/<attack>_test.h5.

Finished chunks are kept: after an interruption the same command continues, and writes the same
file.
"""

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from adv import ATTACKS, SUCCESS_NEEDED
from adv.attacks import attack as run_attack
from adv.attacks import check_mode, norms
from adv.attacks.classifier import BatchedModel
from train.shared.artifacts import (
    already_made,
    atomic_write,
    attributes,
    data_sha256,
    other_setting,
    set_attributes,
)
from train.shared.flags import UserError, chosen_names, options, run_script
from train.shared.log import progress, stage
from train.shared.paths import samples_path
from train.shared.study import Study
from train.utils import class_names, halves_of_test, pixels, predict

dataset = "digits"
model = "lenet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, a list with commas, or all
part = "train"  # train: images of x_train; test: of the reporting half of x_test
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


def choose_images(study, part, samples):
    """Random images of one part of the data that the classifier gets right.

    Returns:
        x, uint8 (n, h, w, c), y, int64 (n,), and their index in x_train or x_test, int64 (n,),
        ascending.

    Raises:
        UserError: fewer than `samples` images of x_train are right. Of x_test all are returned.
    """
    x, y = study.data(part)
    candidates = np.arange(len(x)) if part == "train" else halves_of_test(study.dataset, len(x))[1]
    order = np.random.default_rng([study.seed, 2]).permutation(candidates)
    chosen = np.empty(0, "int64")
    # In blocks, because most images are right and not all of them have to be classified.
    for first in range(0, len(order), 4 * samples):
        block = order[first : first + 4 * samples]
        rows = np.sort(block)
        right = rows[predict(study.classifier, x[rows]).argmax(axis=1) == y[rows]]
        chosen = np.concatenate([chosen, block[np.isin(block, right)]])[:samples]
        if len(chosen) == samples:
            break
    if len(chosen) < samples:
        fewer = (
            f"--samples {samples} is more than the {len(chosen)} of {len(order)} images of "
            f"x_{part} that the model gets right"
        )
        if part == "train":
            raise UserError(f"{fewer}: ask for fewer.")
        print(f"{fewer}: these are used.", flush=True)
    index = np.sort(chosen)
    return x[index], y[index], index


def random_splits(n, seed):
    """The part of every sample, uint8 (n,): 0 train, 1 validation, 2 test; for all attacks."""
    rank = np.random.default_rng([seed, 3]).permutation(n)
    begins = [round(share * n) for share in SPLIT]
    return np.searchsorted(begins, rank, side="right").astype("uint8")


# ------------------------------------------------------------------------------------- the attack


def chunks_folder(path):
    """Where finished chunks of the samples file `path` are kept until all are finished."""
    return path.parent / f".{path.stem}.parts"


def attack_in_chunks(name, batched_model, x, y, path, provenance):
    """Run one attack in chunks that survive the end of the process at any moment.

    Args:
        name: of the attack. batched_model: BatchedModel.
        x: images, uint8 (n, h, w, c). y: their labels, int64 (n,).
        path: the samples file; finished chunks are kept in chunks_folder(path).
        provenance: of the file, with mode, epsilon, steps and seed. A chunk with another one is
            made again.

    Returns:
        Adversarial images, float32 (n, h, w, c), success, bool (n,), and the attack's seconds.
    """
    size = CHUNK // 4 if name == "cw" else CHUNK
    settings = [provenance[key] for key in ("mode", "epsilon")]
    images, successes, seconds = [], [], 0.0
    with progress(total=len(x), desc=name, unit="image") as bar:
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            chunk = chunks_folder(path) / f"{first:06d}.h5"
            expected = provenance | {"images": len(x[rows])}
            if other_setting(attributes(chunk), expected):
                start_time = time.perf_counter()
                image, success = run_attack(
                    name, batched_model, x[rows], y[rows], *settings, provenance["seed"] + first,
                    steps=provenance["steps"], progress=bar.update,
                )  # fmt: skip
                with atomic_write(chunk) as temporary, h5py.File(temporary, "w") as file:
                    set_attributes(file, expected)
                    file.attrs["seconds"] = time.perf_counter() - start_time
                    file["image"] = image
                    file["success"] = success
            with h5py.File(chunk, "r") as file:
                images.append(file["image"][()])
                successes.append(file["success"][()])
                seconds += file.attrs["seconds"]
            bar.update(min(first + size, len(x)) - bar.n)
            bar.set_postfix_str(f"success {100 * np.concatenate(successes).mean():.1f}%")
    return np.concatenate(images), np.concatenate(successes), float(seconds)


# ------------------------------------------------------------------------------------- the result


def generate(name, batched_model, chosen, path, provenance):
    """Attack the images of choose_images and write the samples; returns what the log records.

    Raises UserError if the attack succeeds on no image.
    """
    x, y, index = chosen
    image, success, seconds = attack_in_chunks(name, batched_model, x, y, path, provenance)
    if not success.any():
        larger = "" if provenance["mode"] == "minimal" else "attack with a larger --epsilon, or "
        raise UserError(
            f"{name} changed the decision on none of {len(x)} images: {larger}check the model's "
            f"gradients."
        )
    path.with_suffix(".png").unlink(missing_ok=True)  # of samples that were deleted
    splits = random_splits(len(x), provenance["seed"])
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        file["image"] = image
        file["success"] = success
        file["index"] = index
        file["label"] = y
        file["split"] = splits if provenance["part"] == "train" else np.full_like(splits, 2)
        for norm, size in norms(image - pixels(x)).items():
            file[norm] = size
    share = float(success.mean())
    speed = len(x) / seconds
    print(
        f"{path}: {success.sum()} of {len(x)} succeed ({100 * share:.1f}%), {speed:.1f} images/s",
        flush=True,
    )
    if share < SUCCESS_NEEDED:
        print(
            f"Warning: {name} succeeds on less than half of the images, so its samples are biased "
            f"towards easy images.",
            flush=True,
        )
    return {
        "attack_seconds": round(seconds, 2),
        "images_per_second": round(speed, 2),
        "success": round(share, 4),
    }


def draw(path, name, study, part):
    """Draw the first successful samples of a samples file beside it, unless that was done.

    The samples are what counts: without a picture a sentence says why.
    """
    picture = path.with_suffix(".png")
    if picture.exists():
        return
    try:
        from adv.attacks.picture import draw_samples  # attacks do not need matplotlib

        with h5py.File(path, "r") as file:
            rows = np.flatnonzero(file["success"][()])[:SHOWN]
            image, label, index = (file[key][rows] for key in ("image", "label", "index"))
        names = class_names(study.dataset, study.classifier.output_shape[-1])
        predicted = predict(study.classifier, image).argmax(axis=1)
        captions = [names[k] for k in label], [names[k] for k in predicted]
        draw_samples(picture, name, pixels(study.data(part)[0][index]), image, captions)
    except Exception as error:
        print(f"{picture} was not drawn: {error}", flush=True)


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    check_mode(args.mode, args.epsilon)
    study = Study.open(args)
    batched_model = BatchedModel.of(study.classifier)
    chosen = None
    settings = {key: getattr(args, key) for key in ("part", "samples", "mode", "epsilon", "steps")}
    if args.part == "test":
        settings["test_sha256"] = data_sha256(args.dataset, "test")
    for name in chosen_names(args.attack, ATTACKS):
        path = samples_path(study.folder, name, args.part)
        provenance = study.provenance | settings | {"attack": name}
        if name == "fgsm":
            provenance["steps"] = None  # it takes one step, whatever --steps says
        with stage(path.with_suffix(".log"), name, vars(args) | {"attack": name}) as log:
            log.idle = already_made(path, provenance)
            if log.idle:
                print(f"{path} already exists.")
            else:
                if chosen is None:
                    chosen = choose_images(study, args.part, args.samples)
                log |= generate(name, batched_model, chosen, path, provenance)
            shutil.rmtree(chunks_folder(path), ignore_errors=True)
            draw(path, name, study, args.part)


if __name__ == "__main__":
    run_script(main)
