"""How fast each part is, as ratios measured side by side in one run. It is not a test.

    python tests/benchmark.py --dataset fashion_mnist --model alexnet --samples 64
    python tests/benchmark.py --dataset svhn --model vgg16 --parts dare,training

Needs a trained model (data/prepare.py, train/). Prints:

- dare: seconds of a slice; mining and an epoch of tuning, in forward passes over their images;
- training: images per second in float32 and bfloat16, compared with Keras's own layers, with and
  without augmentation, and prediction;
- backends: the lines of training on every other backend that is installed;
- attacks: gradients per image, and each attack against plain Foolbox 3 on the same 24 images: a
  list of epsilons as fine as our search; cw with as many steps at the best of four step sizes.
  Foolbox 3 has no jsma.

The limit is the speed of a large float32 matrix product in the same run: a forward pass is counted
as the products in its kernels, a training step as three of them.
"""

import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("", "adv"))]

import foolbox
import numpy as np
from attack_cases import by_foolbox, size

from adv import ATTACKS
from adv.attacks import attack
from adv.attacks.classifier import BatchedModel
from dare.dare import Tuning, tune
from dare.get_ats import historical_checkpoints, mine
from dare.nnslicer import slice_model
from train import params
from train.shared.backend import keras
from train.shared.flags import chosen_names, options, run_script
from train.shared.study import Study
from train.train import compiled, train_batches, training_copy
from train.utils import Batches, pixels, predict

dataset = "digits"
model = "lenet"
seed = 0
samples = 64
steps = 50  # of cw, both ways
parts = "dare,training,attacks"  # of PARTS, a list with commas, or all

PARTS = ("dare", "training", "backends", "attacks")

MINED = 2000  # images that are sliced and mined
TRAINED = 1280  # images of an epoch
COMPARED = 24  # images that Foolbox 3 attacks, too
STEP_SIZES = (5e-3, 1e-2, 2e-2, 5e-2)  # of Foolbox's cw
FOOLBOX = {
    "fgsm": foolbox.attacks.LinfFastGradientAttack,
    "bim": partial(foolbox.attacks.L1BasicIterativeAttack, rel_stepsize=1 / 6, steps=10),
    "pgd": partial(foolbox.attacks.LinfPGD, rel_stepsize=1 / 30, steps=40),
}


def seconds(call, *args):
    begun = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - begun, result


def fastest(call, *args, times=3):
    return min(seconds(call, *args)[0] for _ in range(times))


def forward_operations(model):
    """Floating-point operations of a forward pass of one image, in its kernels."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            positions = np.prod(layer.output.shape[1:-1]) if len(layer.output.shape) > 2 else 1
            total += 2 * np.prod(layer.kernel.shape) * positions
    return float(total)


def peak(size=2048):
    """Floating-point operations per second of a large float32 matrix product on this device."""
    a = keras.random.normal((size, size))
    spent = fastest(lambda: keras.ops.convert_to_numpy(keras.ops.matmul(a, a)), times=7)
    return 2 * size**3 / spent


def dare(study, x, y):
    """The three steps of DARE, with the last four historical checkpoints."""
    classifier, layer = study.classifier, study.layer()
    spent, slices = seconds(slice_model, classifier, x, y, params.per)
    synapses = sum(one.mask.size for one in slices.values())
    print(f"slice: {spent:.1f} s for {synapses:,} synapses on {len(x):,} images", flush=True)

    checkpoints = dict(list(historical_checkpoints(study).items())[-5:])
    mined = mine(checkpoints, x, y, classifier, layer)
    forward = fastest(predict, classifier, x)
    spent = fastest(mine, checkpoints, x, y, classifier, layer, times=2) / forward
    print(f"mining {len(checkpoints)} checkpoints: {spent:.1f} passes over {len(x):,} images")

    masks = {name: one.mask for name, one in slices.items()}
    with tempfile.TemporaryDirectory(dir=study.folder) as folder:
        tuning = Tuning(layer, params.tuning_rate(study.model), epochs=3, masks=masks)
        tune(classifier, mined, x, y, folder, tuning)
        *_, last = csv.DictReader((Path(folder) / "log.csv").open())  # the first is compiled
    images = len(mined.index)
    passes = float(last["seconds"]) / (forward * images / len(x))
    print(f"tuning: {last['seconds']} s an epoch, {passes:.1f} passes over {images:,} images")
    study.original()


def training(study, x, y):
    """One epoch in either precision, plain and augmented, and prediction; they take turns."""

    def plain(rows, _):
        return pixels(x[rows]), y[rows]

    batches = {
        "plain": Batches(len(x), plain, params.batch_size(len(x)), (0,)),
        "augmented": train_batches(x, y, study.model, study.dataset, 0),
    }
    runs = {}
    for precision in "float32", "bfloat16":
        network = compiled(training_copy(study.classifier, precision))
        for name, of_epoch in batches.items():
            runs[precision, name] = partial(network.fit, of_epoch, verbose=0)
        runs[precision, "prediction"] = partial(predict, network, x)
        with patch("train.train.faster_class", type):
            own = compiled(training_copy(study.classifier, precision))
        runs[precision, "own"] = partial(own.fit, batches["plain"], verbose=0)
    for run in runs.values():
        run()  # compiled
    turns = [{name: seconds(run)[0] for name, run in runs.items()} for _ in range(3)]
    best = {name: min(turn[name] for turn in turns) for name in runs}
    limit = peak() / forward_operations(study.classifier)
    for precision in "float32", "bfloat16":
        rates = {name: len(x) / best[precision, name] for name in (*batches, "prediction")}
        more = 100 * (rates["plain"] / rates["augmented"] - 1)
        print(
            f"training, {keras.backend.backend():10} {precision:9}"
            f"{rates['plain']:8.0f} images/s, "
            f"{best[precision, 'own'] / best[precision, 'plain']:.2f} times Keras's own layers, "
            f"augmentation {more:+.1f}%, "
            f"prediction {rates['prediction']:8.0f} images/s; of the limit "
            f"{300 * rates['plain'] / limit:.0f}% and {100 * rates['prediction'] / limit:.0f}%",
            flush=True,
        )
    times = [best["float32", name] / best["bfloat16", name] for name in ("plain", "prediction")]
    print(f"bfloat16 trains {times[0]:.2f} and predicts {times[1]:.2f} times as fast as float32")


def backends(argv):
    """This script's training on the other backends."""
    for backend in "tensorflow", "jax", "torch":
        if backend != keras.backend.backend() and importlib.util.find_spec(backend):
            command = [sys.executable, __file__, *argv, "--parts", "training"]
            subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, check=True)


def plain_foolbox(name, batched, x, y, sizes, steps):
    """(seconds, images, success) of the plain Foolbox way; sizes: what ours found."""
    if name == "cw":
        make = partial(foolbox.attacks.L2CarliniWagnerAttack, 5, steps, initial_const=1e-2)
        attacks, epsilons = [make(stepsize=rate) for rate in STEP_SIZES], [None]
    else:
        # A list as fine as our search, no longer than it has to be; nobody knows that before.
        fine = np.arange(np.log(0.9 * sizes.min()), np.log(1.1 * sizes.max()), 0.05)
        features = x[0].size if name == "bim" else 1
        more = {} if name == "fgsm" else {"random_start": False}
        attacks, epsilons = [FOOLBOX[name](**more)], list(np.exp(fine) * features)
    best = None
    by_foolbox(attacks[0], batched, x, y, epsilons[:1])  # compiled, as ours is
    for one in attacks:
        spent, (clipped, hit) = seconds(by_foolbox, one, batched, x, y, epsilons)
        images, success = clipped[hit.argmax(axis=0), np.arange(len(x))], hit.any(axis=0)
        mean = size(name, images - x)[success].mean()
        best = min(best or (np.inf,), (mean, spent, images, success), key=lambda r: r[0])
    return best[1:]


def compared(name, batched, x, y, steps):
    """Our attack against Foolbox's on the same images, in words."""
    ours = partial(attack, name, batched, x, y, steps=steps)
    ours()  # compiled
    spent, (found, hit) = seconds(ours)
    sizes = size(name, found - x)[hit]
    foolbox_seconds, images, foolbox_hit = plain_foolbox(name, batched, x, y, sizes, steps)
    both = hit & foolbox_hit
    ratio, in_l2 = (
        size(n, found - x)[both].mean() / size(n, images - x)[both].mean() for n in (name, "cw")
    )
    return (
        f"{foolbox_seconds / spent:.1f} times as fast, size {ratio:.3f} (L2 {in_l2:.3f}), success "
        f"{100 * hit.mean():.0f}% against {100 * foolbox_hit.mean():.0f}%"
    )


def attacks(classifier, x, y, cw_steps):
    batched = BatchedModel.of(classifier)
    print("attack  images/s  gradients/image  success | on the same images:")
    for name in ATTACKS:
        steps = cw_steps if name == "cw" else None
        run = partial(attack, name, batched, x, y, steps=steps)
        run()  # compiled
        batched.gradients = 0
        spent, (_, success) = seconds(run)
        few = slice(COMPARED)
        words = "-" if name == "jsma" else compared(name, batched, x[few], y[few], steps)
        print(
            f"{name:6}{len(x) / spent:10.1f}{batched.gradients / len(x):17.1f}"
            f"{100 * success.mean():8.1f}% | {words}",
            flush=True,
        )


def main(argv=None):
    args = options(__doc__, argv, globals(), parts=PARTS)
    study = Study.open(args)
    x, y = study.data("train")
    backend = f"backend {keras.backend.backend()}, {os.cpu_count()} cores"
    print(f"{args.model} on {args.dataset}, {backend}")
    chosen = chosen_names(args.parts, PARTS)
    if "dare" in chosen:
        dare(study, x[:MINED], y[:MINED])
    if "training" in chosen:
        training(study, x[:TRAINED], y[:TRAINED])
    if "backends" in chosen:
        backends(sys.argv[1:] if argv is None else argv)
    if "attacks" in chosen:
        few = slice(0, 2 * args.samples + 64)
        right = predict(study.original(), x[few]).argmax(axis=1) == y[few]
        images, labels = pixels(x[few][right]), y[few][right]
        attacks(study.classifier, images[: args.samples], labels[: args.samples], args.steps)


if __name__ == "__main__":
    run_script(main)
