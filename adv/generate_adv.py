"""Step 5: adversarial examples ("samples"), made against the original from images of x_train.

    python adv/generate_adv.py --dataset digits --model lenet --attack all --samples 500
    python adv/generate_adv.py --dataset digits --attack pgd --mode fixed --epsilon 0.03
    python adv/generate_adv.py --dataset digits --attack fgsm,pgd --part test --samples 100

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>_seed<N>/. Writes
adv/<attack>.h5 there, and adv/<attack>.png, a picture of some samples. All attacks start from the
same images, which the model classifies correctly. They share their split 60/20/20 into train (for
adversarial training), validation (for selection) and test (reported). With --part test the images
are of the reporting half of x_test, which no network was trained on, all in the split test, and
the files are adv/<attack>_test.h5. Finished chunks are kept: after an interruption the same command
continues, and writes the same file.
"""

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from adv import ATTACKS, SPLIT, SUCCESS_NEEDED
from adv.attacks import attack as run_attack
from adv.attacks import check_mode, norms
from adv.attacks.classifier import BatchedModel
from adv.attacks.fixed import NORM
from train.shared.artifacts import (
    atomic_write,
    attributes,
    check,
    data_sha256,
    fingerprint,
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
part = "train"  # images of x_train, or "test": of the reporting half of x_test
samples = 5000
mode = "minimal"  # minimal: the smallest perturbation of each image; fixed: one epsilon
epsilon = None  # for mode fixed: Linf for fgsm, bim, pgd; L2 for cw; number of features for jsma
steps = None  # number of iterations; None: the attack's own

# At most this many images are attacked again after an interruption. Larger chunks keep batches full
# for longer. For cw it is a quarter.
CHUNK = 1000
SHOWN = 8  # samples in a picture


# ----------------------------------------------------------------------------- images and splits


def choose_images(classifier, x, y, candidates, samples):
    """The first images, in the order of the candidates, that the classifier gets right.

    x: (n, h, w, c). y: labels (n,). candidates: indices. Returns int64 indices, ascending, of
    `samples` images, or of all that are right where these are fewer.
    """
    chosen = np.empty(0, "int64")
    # In blocks, because most images are right and not all of x has to be classified.
    for first in range(0, len(candidates), 4 * samples):
        block = candidates[first : first + 4 * samples]
        is_right = predict(classifier, x[block]).argmax(axis=1) == y[block]
        chosen = np.concatenate([chosen, block[is_right]])
        if len(chosen) >= samples:
            break
    return np.sort(chosen[:samples])


def images_to_attack(study, part, samples):
    """x, y and the index into them of the images that all attacks of a part start from.

    Raises UserError if fewer images of x_train than asked for are classified correctly; of x_test
    all that are right will do.
    """
    x, y = study.data(part)
    rng = np.random.default_rng([study.seed, 2])
    candidates = halves_of_test(study.dataset, len(y))[1] if part == "test" else np.arange(len(y))
    index = choose_images(study.classifier, x, y, rng.permutation(candidates), samples)
    if len(index) < samples:
        right = f"the model gets {len(index)} of {len(candidates)} images of the {part} part right"
        if part == "train" or not len(index):
            raise UserError(f"--samples {samples}, but {right}: ask for fewer.")
        print(f"{right}: these are attacked.", flush=True)
    return x, y, index


def random_splits(n, seed):
    """The part of every sample, uint8 (n,): 0 train, 1 validation, 2 test; for all attacks."""
    rank = np.random.default_rng([seed, 3]).permutation(n)
    begins = [round(share * n) for share in SPLIT]
    return np.searchsorted(begins, rank, side="right").astype("uint8")


# ------------------------------------------------------------------------------------- the attack


def parts_folder(path):
    """Where finished chunks of the samples file `path` are kept until all are finished."""
    return path.parent / f".{path.stem}.parts"


def attack_images(name, batched_model, x, y, path, provenance):
    """Run one attack in chunks that survive the end of the process at any moment.

    Args:
        name: of the attack. batched_model: BatchedModel. x: uint8 (n, h, w, c). y: labels (n,).
        path: the samples file; finished chunks are kept in parts_folder(path).
        provenance: of the file, with mode, epsilon, steps and seed. A chunk with another one, or of
            other images, is made again.

    Returns:
        Adversarial images, float32 (n, h, w, c), success, bool (n,), and the seconds it took.
    """
    images, success, seconds = np.empty(x.shape, "float32"), np.zeros(len(x), bool), 0.0
    size = CHUNK // 4 if name == "cw" else CHUNK
    with progress(total=len(x), desc=name, unit="image") as bar:
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            chunk = parts_folder(path) / f"{first:06d}.h5"
            expected = provenance | {"images": fingerprint(x[rows])}
            if other_setting(attributes(chunk), expected):
                start_time = time.perf_counter()
                found = run_attack(
                    name, batched_model, pixels(x[rows]), y[rows], provenance["mode"],
                    provenance["epsilon"], provenance["seed"] + first, provenance["steps"],
                    bar.update,
                )  # fmt: skip
                with atomic_write(chunk) as temporary, h5py.File(temporary, "w") as file:
                    set_attributes(file, expected)
                    file.attrs["seconds"] = time.perf_counter() - start_time
                    file["image"], file["success"] = found
            else:
                bar.update(len(x[rows]))
            with h5py.File(chunk, "r") as file:
                images[rows], success[rows] = file["image"][()], file["success"][()]
                seconds += float(file.attrs["seconds"])
            bar.set_postfix_str(f"success {100 * success[: first + size].mean():.1f}%")
    return images, success, seconds


# ------------------------------------------------------------------------------------- the result


def draw_some(path, picture, name, study, x):
    """Draw the first successful samples of the file `path`.

    x: uint8 (n, h, w, c), from which the file's index chooses.
    """
    from adv.attacks.picture import draw_samples  # attacks do not need matplotlib

    with h5py.File(path, "r") as file:
        rows = np.flatnonzero(file["success"][()])[:SHOWN]
        images, labels, index = (file[key][rows] for key in ("image", "label", "index"))
    names = class_names(study.dataset, study.classifier.output_shape[-1])
    predicted = predict(study.classifier, images).argmax(axis=1)
    captions = [names[k] for k in labels], [names[k] for k in predicted]
    draw_samples(picture, name, pixels(x[index]), images, captions)


def generate(name, batched_model, study, inputs, path, provenance):
    """Attack images and write the samples file; returns what the log records.

    inputs: x, y and index of images_to_attack. Raises UserError if the attack succeeds on no image.
    """
    x, y, index = inputs
    x, y = x[index], y[index]
    images, success, seconds = attack_images(name, batched_model, x, y, path, provenance)
    if not success.any():
        larger = "" if provenance["mode"] == "minimal" else "attack with a larger --epsilon, or "
        raise UserError(
            f"{name} changed the decision on none of {len(x)} images: {larger}check the model's "
            f"gradients."
        )
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        set_attributes(file, provenance)
        file["image"], file["success"], file["index"], file["label"] = images, success, index, y
        is_test = provenance["part"] == "test"
        file["split"] = (
            np.full(len(x), 2, "uint8") if is_test else random_splits(len(x), study.seed)
        )
        for norm, size in norms(images - pixels(x)).items():
            file[norm] = size
    share, speed = float(success.mean()), len(x) / seconds
    print(
        f"{path}: {success.sum()} of {len(x)} succeed ({100 * share:.1f}%), {speed:.1f} images/s",
        flush=True,
    )
    if share < SUCCESS_NEEDED:
        print(f"Warning: {name} succeeds on less than half of the images, so its samples are "
              f"biased towards easy images.", flush=True)  # fmt: skip
    return {"attack_seconds": round(seconds, 2)}


def main(argv=None):
    args = options(__doc__, argv, globals(), attack=ATTACKS)
    check_mode(args.mode, args.epsilon)
    names = chosen_names(args.attack, ATTACKS)
    if args.mode == "fixed" and len({NORM[name] for name in names}) > 1:
        raise UserError(
            f"--attack {args.attack} with --epsilon {args.epsilon}: for cw it is L2, for jsma a "
            f"number of features, so attack with each of them alone."
        )
    study = Study.open(args)
    batched_model = BatchedModel.of(study.classifier)
    inputs = None
    settings = {name: getattr(args, name) for name in ("part", "samples", "mode", "epsilon")}
    if args.part == "test":  # the study's fingerprint of the data covers the training set alone
        settings["test_sha256"] = data_sha256(args.dataset, "test")
    for name in names:
        path = samples_path(study.folder, name, args.part)
        picture = path.with_suffix(".png")
        # fgsm takes one step, whatever --steps says.
        steps_taken = None if name == "fgsm" else args.steps
        provenance = study.provenance | settings | {"steps": steps_taken, "attack": name}
        title = name if args.part == "train" else f"{name} test"
        with stage(path.with_suffix(".log"), title, vars(args) | {"attack": name}) as log:
            log["idle"] = check(path, provenance)
            if log["idle"]:
                print(f"{path} already exists.")
            else:
                inputs = inputs or images_to_attack(study, args.part, args.samples)
                picture.unlink(missing_ok=True)  # of samples that were deleted
                log |= generate(name, batched_model, study, inputs, path, provenance)
            if not picture.exists():
                draw_some(path, picture, name, study, study.data(args.part)[0])
        # Here and not in generate, because a run that is killed after its last write leaves them.
        shutil.rmtree(parts_folder(path), ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
