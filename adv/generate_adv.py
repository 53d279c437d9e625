"""Step 5: adversarial samples, crafted against the original model from images of x_train that it classifies correctly.

    python adv/generate_adv.py --dataset digits --model alexnet --attack all --samples 500
    python adv/generate_adv.py --dataset digits --model alexnet --attack pgd --mode fixed --epsilon 0.03

Reads data/<dataset>/ and the final checkpoint of models/<dataset>_<model>/. Writes adv/<attack>.h5 there, with a picture of
some samples beside it, adv/<attack>.png. Finished chunks are kept: interrupted, the same command goes on after the last one
and writes the same file. The samples are split 60/20/20 into train (adversarial training), validation (selection) and
test (reported); all attacks attack the same images.
"""

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import matplotlib
import numpy as np
from tqdm import tqdm

from adv.adapter import Calls, each, foolbox_model
from adv.attacks import attack as run_attack
from adv.attacks import norms
from train.files import ATTACKS, UserError, attributes, data_sha256, options, pixels, run, set_attributes, stage, sweep, whole
from train.utils import load_fitting_data, load_study, predict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

dataset = "digits"
model = "alexnet"
seed = 0
attack = "all"  # fgsm, bim, pgd, cw, jsma, several with commas, or all
samples = 5000
mode = "minimal"  # minimal: the smallest perturbation of each image; fixed: one epsilon
epsilon = None  # mode fixed: Linf for fgsm, bim, pgd; L2 for cw; features for jsma
steps = None  # iterations, instead of the attack's own

CHUNK = 1000  # images; what an interruption can cost. A larger one keeps the batches full for longer; slow cw has a quarter
SPLIT = (0.6, 0.8)  # shares of the samples where validation and test begin


def choose(classifier, x, y, samples, seed):
    """Indices of `samples` random images of x (n, h, w, c) that the classifier gets right; sorted, int64.

    Raises UserError if there are fewer.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(x))
    chosen = np.empty(0, "int64")
    for start in range(0, len(x), 4 * samples):  # most are right: no need to classify all of x_train
        block = order[start : start + 4 * samples]
        rows = np.sort(block)
        right = rows[predict(classifier, x[rows]).argmax(axis=1) == y[rows]]
        chosen = np.concatenate([chosen, block[np.isin(block, right)]])
        if len(chosen) >= samples:
            return np.sort(chosen[:samples])
    raise UserError(f"--samples {samples} is more than the {len(chosen)} of {len(x)} training images that the model gets right.")


def splits(n, seed):
    """uint8 (n,): 0 train, 1 validation, 2 test, at random; the same for every attack."""
    rank = np.random.default_rng([seed, 3]).permutation(n)
    return np.searchsorted([round(share * n) for share in SPLIT], rank, side="right").astype("uint8")


def parts_of(path):
    """Where the finished chunks of the samples file `path` wait for the others."""
    return path.parent / f".{path.stem}.parts"


def generate(name, calls, classifier, x, y, index, path, seed, mode, epsilon, steps, made_from):
    """Attack images x[index] into the file `path`; as attack() of adv/attacks.py, in chunks that survive an interruption.

    Returns what the log records: seconds of attacking, images a second, success rate.
    """
    parts = parts_of(path)
    parts.mkdir(parents=True, exist_ok=True)
    sweep(parts)
    made_from = {k: v for k, v in made_from.items() if v is not None}
    seconds, inside, found = 0.0, 0.0, []
    with tqdm(total=len(index), desc=name, unit="image", disable=None) as bar:
        hits = 0
        chunk = CHUNK // 4 if name == "cw" else CHUNK
        for start in range(0, len(index), chunk):
            rows = index[start : start + chunk]
            part, made_so = parts / f"{start:06d}.h5", made_from | {"images": len(rows)}
            if {k: attributes(part).get(k) for k in made_so} != made_so:
                begun, calls.seconds = time.perf_counter(), 0.0
                image, success = run_attack(name, classifier, pixels(x[rows]), y[rows], mode, epsilon, seed + start, steps, bar.update, calls)
                with whole(part) as temporary, h5py.File(temporary, "w") as file:
                    set_attributes(file, **made_so, seconds=time.perf_counter() - begun, inside=calls.seconds)
                    file["image"], file["success"] = image, success
            else:
                bar.update(len(rows))
            with h5py.File(part, "r") as file:
                found.append((file["image"][()], file["success"][()]))
                seconds, inside = seconds + file.attrs["seconds"], inside + file.attrs["inside"]
            hits += found[-1][1].sum()
            bar.set_postfix_str(f"success {100 * hits / (start + len(rows)):.1f}%")
    image, success = (np.concatenate(part) for part in zip(*found, strict=True))
    if not success.any():
        raise UserError(f"{name} changed the decision on none of {len(index)} images: attack with a larger epsilon, or check the model's gradients.")
    picture(path.with_suffix(".png"), pixels(x[index[success][:8]]), image[success][:8], y[index[success][:8]], classifier, name)
    with whole(path) as temporary, h5py.File(temporary, "w") as file:  # last: where it is, the samples are complete
        set_attributes(file, **made_from)
        file["image"], file["success"], file["index"] = image, success, index
        file["label"], file["split"] = y[index], splits(len(index), seed)
        for norm, size in norms(image - pixels(x[index])).items():
            file[norm] = size
    print(
        f"{path}: {success.sum()} of {len(index)} succeed ({100 * success.mean():.1f}%), {len(index) / seconds:.1f} images/s, "
        f"{100 * (1 - inside / seconds):.0f}% of the time outside the model",
        flush=True,
    )
    return {"attack_seconds": round(seconds, 2), "images_per_second": round(len(index) / seconds, 2), "success": round(float(success.mean()), 4)}


def picture(path, original, adversarial, label, classifier, name):
    """A grid: original, adversarial, and their difference, each magnified to full contrast, with both predictions."""
    difference = adversarial - original
    largest = np.abs(difference).max(axis=(1, 2, 3))
    rows = [(original, "original"), (adversarial, name), (0.5 + 0.5 * difference / each(largest), "difference")]
    predictions = [predict(classifier, images).argmax(axis=1) for images in (original, adversarial)]
    figure, axes = plt.subplots(3, len(label), figsize=(1.2 * len(label) + 0.6, 4.4), squeeze=False, layout="constrained")
    for i, (images, title) in enumerate(rows):
        axes[i, 0].set_ylabel(title)
        for j, image in enumerate(images):
            axes[i, j].imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
            caption = f"is {label[j]}, taken for {predictions[i][j]}" if i < 2 else f"x{0.5 / largest[j]:.3g}"
            axes[i, j].set_title(caption, fontsize=6)
    with whole(path, ".png") as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def main(argv=None):
    constants = {"attack": attack, "samples": samples, "mode": mode, "epsilon": epsilon, "steps": steps}
    args = options(__doc__, argv, dataset=dataset, model=model, seed=seed, **constants)
    if (args.mode == "fixed") != (args.epsilon is not None):
        raise UserError(f"--mode {args.mode} with --epsilon {args.epsilon}: mode fixed needs an epsilon, mode minimal takes none.")
    folder, classifier, _, digest = load_study(args)
    x, y = load_fitting_data(args, "train", classifier)
    if args.samples > len(x):
        raise UserError(f"--samples {args.samples} is more than the {len(x)} images of x_train.")
    calls = Calls(foolbox_model(classifier))
    data, index = data_sha256(args.dataset), choose(classifier, x, y, args.samples, args.seed)
    for name in ATTACKS if args.attack == "all" else args.attack.split(","):
        path = folder / "adv" / f"{name}.h5"
        settings = {k: getattr(args, k) for k in ("dataset", "model", "seed", "samples", "mode", "epsilon", "steps")}
        made_from = settings | {"attack": name, "checkpoint_sha256": digest, "data_sha256": data}
        if {k: attributes(path).get(k) for k in made_from} == made_from:
            print(f"{path} is there.")
        else:
            with stage(folder / "adv" / f"{name}.log", name, **settings) as log:
                log |= generate(name, calls, classifier, x, y, index, path, args.seed, args.mode, args.epsilon, args.steps, made_from)
        shutil.rmtree(parts_of(path), ignore_errors=True)  # here, not in generate: a run that was killed behind its last write leaves them


if __name__ == "__main__":
    run(main)
