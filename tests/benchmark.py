"""How fast each part is, as ratios measured side by side in one run. It is not a test.

    python tests/benchmark.py --dataset fashion_mnist --model alexnet --samples 64
    python tests/benchmark.py --dataset svhn --model vgg16 --parts training,gradients

Needs a trained model (data/prepare.py, train/). Prints:

- slicer: how many times faster it is, for each synapse, than the naive loop of the tests;
- mining: its time in forward passes, and the time of two predictions of every checkpoint;
- scoring: seconds for a checkpoint on 2,000 images, two models at a time as in dare/test.py,
  compared with predictions one after the other;
- training: images per second in float32 and bfloat16, compared with Keras's own layers, with and
  without augmentation, and prediction, on every backend that is installed; the cost of saving an
  epoch;
- gradients: milliseconds of a forward pass and of a gradient by the images;
- attacks: gradients per image, and each attack against plain Foolbox 3 on the same 24 images: a
  list of epsilons as fine as our search; cw with as many steps at the best of four step sizes;
  jsma, which Foolbox 3 lacks, with a gradient for every change;
- the peak memory of all this, without the other backends.

The limit is the speed of a large float32 matrix product in the same run: a forward pass is counted
as the products in its kernels, a gradient by the images as two of them, a training step as three.
"""

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
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("", "adv", "dare"))]

import eagerpy as ep
import foolbox
import numpy as np
from attack_cases import size
from naive_slicer import Naive

from adv import ATTACKS
from adv.attacks import attack
from adv.attacks.classifier import BatchedModel
from adv.attacks.losses import log_odds
from adv.attacks.saliency_map import SaliencyMapAttack
from dare.evaluation.selection import Part, score
from dare.get_ats import historical_checkpoints, mine
from dare.nnslicer import calls_to_slice, relative_activations, slice_backwards
from train import params
from train.fit import EpochKeeper, Run
from train.precision import copy_weights, has_bfloat16, in_precision
from train.shared.backend import keras
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.flags import chosen_names, options, run_script
from train.shared.graph import up_to
from train.shared.log import device, peak_memory
from train.shared.study import Study
from train.train import compiled, train_batches
from train.utils import Batches, pixels, predict

dataset = "digits"
model = "lenet"
seed = 0
samples = 64
steps = 50  # of cw, both ways
parts = "all"  # slicer, mining, scoring, training, gradients, attacks, a list with commas, or all

PARTS = ("slicer", "mining", "scoring", "training", "gradients", "attacks")

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


def slicer(classifier, x, y):
    calls = calls_to_slice(classifier)
    relative = relative_activations(classifier, calls, x[:256], y[:256])
    fast = fastest(slice_backwards, calls, relative, 0.95, times=5)
    # On the whole network the naive loop would take minutes: a part with as many inputs a neuron.
    small = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.AveragePooling2D(7)])
    small.add(keras.layers.Flatten())
    for units in (2048, 16, int(y.max()) + 1):
        small.add(keras.layers.Dense(units, "softmax" if units < 16 else "relu"))
    slow, _ = seconds(Naive, small, pixels(x[:64]), y[:64], 0.95)
    count, of_naive = (
        sum(int(np.prod(w.kernel.shape[-2:])) for w in m.layers if hasattr(w, "kernel"))
        for m in (classifier, small)
    )
    print(
        f"slicer: {fast:.3f} s for {count:,} synapses, {slow / of_naive * count / fast:,.0f} times "
        f"as fast a synapse as the naive loop ({slow:.2f} s for {of_naive:,})",
        flush=True,
    )


def mining(study, x, y):
    checkpoints = dict(list(historical_checkpoints(study).items())[-4:])
    classifier, layer = study.classifier, study.layer(None)
    part = up_to(classifier, layer)
    predict(classifier, x), predict(part, x)

    def forward_only():
        for path in checkpoints.values():
            predict(load_weights(classifier, path), x)

    def twice():
        for path in checkpoints.values():
            load_weights(classifier, path)
            predict(classifier, x), predict(part, x)

    mine(checkpoints, x, y, classifier, layer)
    passes = fastest(forward_only, times=2) * (len(checkpoints) + 1) / len(checkpoints)
    ours = fastest(mine, checkpoints, x, y, classifier, layer, times=2)
    print(
        f"mining: {ours / passes:.2f} times its forward passes (checkpoints + 1); two predictions "
        f"of every checkpoint take {fastest(twice, times=2) / ours:.2f} times as long",
        flush=True,
    )


def scoring(study, x, y):
    """test.py's way with every checkpoint of the history: two at a time."""
    weights = dict(enumerate(historical_checkpoints(study).values()))
    predict(study.classifier, x)
    parts = {"part": Part(x, y, None, None)}
    spent = fastest(lambda: list(study.with_weights(weights, lambda c, _: score(c, parts))))
    alone = fastest(predict, study.classifier, x) * len(weights)
    print(
        f"scoring: {spent / len(weights):.2f} s a checkpoint on {len(x):,} images, "
        f"{spent / alone:.2f} times what one prediction after the other takes",
        flush=True,
    )


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
        network = compiled(in_precision(load_classifier(study.folder), precision))
        for name, of_epoch in batches.items():
            runs[precision, name] = partial(network.fit, of_epoch, verbose=0)
        runs[precision, "prediction"] = partial(predict, network, x)
        with patch("train.precision.faster_class", lambda layer, _: type(layer)):
            own = compiled(in_precision(load_classifier(study.folder), precision))
        runs[precision, "own"] = partial(own.fit, batches["plain"], verbose=0)
    for run in runs.values():
        run()  # compiled
    turns = [{name: seconds(run)[0] for name, run in runs.items()} for _ in range(3)]
    best = {name: min(turn[name] for turn in turns) for name in runs}
    # A training step takes three forward passes: one forward, two backward.
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
    return len(x) / best["bfloat16" if has_bfloat16() else "float32", "augmented"]


def on_other_backends(argv):
    """The lines of `training` from the other backends that are installed."""
    for backend in "tensorflow", "jax", "torch":
        if backend != keras.backend.backend() and importlib.util.find_spec(backend):
            code = "import sys, benchmark; benchmark.train_only(sys.argv[1:])"
            environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT / "tests")}
            subprocess.run([sys.executable, "-c", code, *argv], env=environment, check=True)


def train_only(argv):
    study = Study.open(arguments(argv))
    x, y = study.data("train")
    training(study, x[:TRAINED], y[:TRAINED])


def saving(study, rate):
    """rate: images a second of training."""
    network = compiled(load_classifier(study.folder))
    network.optimizer.build(network.trainable_variables)
    with tempfile.TemporaryDirectory(dir=study.folder) as folder:
        run = Run(folder, 9, {})
        keeper = EpochKeeper(run, None, network, study.classifier, copy_weights)
        keeper.set_model(network)
        keeper.start_time = time.time()
        spent = fastest(keeper.on_epoch_end, 0, {"loss": 0.0})
    print(
        f"saving an epoch: {spent:.2f} s, {100 * spent * rate / 25000:.1f}% of one of 25,000 images"
    )


def by_foolbox(name, batched, x, y, sizes, steps):
    """(seconds, images, success) of the plain Foolbox way; sizes: what ours found."""
    inputs, labels = (ep.from_numpy(batched.like, a).raw for a in (x, y))
    if name == "jsma":
        attacks, epsilons = [SaliencyMapAttack(block=0)], [None]
    elif name == "cw":
        make = partial(foolbox.attacks.L2CarliniWagnerAttack, 5, steps, initial_const=1e-2)
        attacks, epsilons = [make(stepsize=rate) for rate in STEP_SIZES], [None]
    else:
        # A list as fine as our search, no longer than it has to be; nobody knows that before.
        fine = np.arange(np.log(0.9 * sizes.min()), np.log(1.1 * sizes.max()), 0.05)
        features = x[0].size if name == "bim" else 1
        more = {} if name == "fgsm" else {"random_start": False}
        attacks, epsilons = [FOOLBOX[name](**more)], list(np.exp(fine) * features)
    best = None
    attacks[0](batched.fmodel, inputs, labels, epsilons=epsilons[:1])  # compiled, as ours is
    for one in attacks:
        run = partial(one, batched.fmodel, inputs, labels, epsilons=epsilons)
        spent, (_, clipped, hit) = seconds(run)
        hit = ep.astensor(hit).numpy()
        first = hit.argmax(axis=0)
        images = np.stack([ep.astensor(clipped[k]).numpy()[i] for i, k in enumerate(first)])
        success = hit.any(axis=0)
        mean = size(name, images - x)[success].mean()
        best = min(best or (np.inf,), (mean, spent, images, success), key=lambda r: r[0])
    return best[1:]


def gradients(classifier, x, y):
    """A forward pass and a gradient by the images, in full batches."""
    batched = BatchedModel.of(classifier)
    x, y = (np.resize(a, (batched.batch, *a.shape[1:])) for a in (x, y))
    forward, gradient = (
        1e3 * fastest(call, *args) / len(x)
        for call, *args in ((batched.logits, x), (batched.gradient, x, y, log_odds))
    )
    limit = 1e3 * forward_operations(classifier) / peak()  # ms for a forward pass
    shares = 100 * limit / forward, 200 * limit / gradient
    print(f"\nforward {forward:.2f} ms an image, {shares[0]:.0f}% of the limit")
    print(
        f"gradient {gradient:.2f} ms, {gradient / forward:.1f} forward passes, {shares[1]:.0f}%\n"
    )


def attacks(classifier, x, y, steps):
    batched = BatchedModel.of(classifier)
    for name in ATTACKS:  # compile everything
        attack(name, batched, x[:8], y[:8], steps=3)
    for n in [k for k in batched.SIZES if k <= batched.batch]:
        batched.logits(x[:n]), batched.gradient(x[:n], y[:n], log_odds)
    print("attack  images/s  gradients/image  success | on the same images:")
    few = slice(COMPARED)
    for name in ATTACKS:
        attack_steps = steps if name == "cw" else None
        ours = partial(attack, name, batched, steps=attack_steps)
        batched.gradients = 0
        spent, (_, success) = seconds(ours, x, y)
        gradients = batched.gradients / len(x)
        again, (found, hit) = seconds(ours, x[few], y[few])
        sizes = size(name, found - x[few])[hit]
        theirs, images, their_hit = by_foolbox(name, batched, x[few], y[few], sizes, steps)
        both = hit & their_hit
        ratio, in_l2 = (
            size(n, found - x[few])[both].mean() / size(n, images - x[few])[both].mean()
            for n in (name, "cw")
        )
        print(
            f"{name:6}{len(x) / spent:10.1f}{gradients:17.1f}"
            f"{100 * success.mean():8.1f}% | {theirs / again:.1f} times as fast, size {ratio:.3f} "
            f"(L2 {in_l2:.3f}), success {100 * hit.mean():.0f}% against "
            f"{100 * their_hit.mean():.0f}%",
            flush=True,
        )


def arguments(argv):
    return options(__doc__, argv, globals(), parts=PARTS)


def main(argv=None):
    args = arguments(argv)
    study = Study.open(args)
    x, y = study.data("train")
    print(f"{args.model} on {args.dataset}, backend {keras.backend.backend()}, {device()}")
    chosen = chosen_names(args.parts, PARTS)
    if "slicer" in chosen:
        slicer(study.classifier, x, y)
    if "mining" in chosen:
        mining(study, x[:4000], y[:4000])
    if "scoring" in chosen:
        scoring(study, x[:2000], y[:2000])
    if "training" in chosen:
        rate = training(study, x[:TRAINED], y[:TRAINED])
        on_other_backends(sys.argv[1:] if argv is None else argv)
        saving(study, rate)
    few = slice(0, 2 * args.samples + 64)
    right = predict(study.original(), x[few]).argmax(axis=1) == y[few]
    samples, labels = pixels(x[few][right][: args.samples]), y[few][right][: args.samples]
    if "gradients" in chosen:
        gradients(study.classifier, samples, labels)
    if "attacks" in chosen:
        attacks(study.classifier, samples, labels, args.steps)
    print(f"\npeak memory {peak_memory():.2f} GB")


if __name__ == "__main__":
    run_script(main)
