"""How fast each part is, as ratios measured side by side in one run. Not part of the tests.

    python tests/benchmark.py --dataset fashion_mnist --model alexnet --samples 64

Needs a trained model (data/prepare.py, train/). Prints milliseconds per forward and gradient call, and for every attack how far it is from
the cost of its model calls; each attack against the plain Foolbox 3 way on the same 24 images at equal quality (a list of epsilons as
fine as ours; jsma, which Foolbox 3 lacks, against a gradient for every change); the slicer against the naive loop of
tests/test_nnslicer.py; mining against two predictions a checkpoint; training with and without augmentation.
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import eagerpy as ep
import numpy as np
from test_attacks import size
from test_nnslicer import naive

from adv.adapter import Calls, cross_entropy, foolbox_model
from adv.attacks import attack, cw_rate
from adv.saliency_map import SaliencyMapAttack
from dare.get_ats import default_layer, history_of, mine, part_up_to
from dare.nnslicer import backward, chain, relative_activations
from train import params
from train.files import ATTACKS, options, pixels, run
from train.train import train_batches
from train.utils import Batches, load_fitting_data, load_study, load_weights, predict

import keras  # isort: skip
import foolbox  # isort: skip

dataset = "digits"
model = "alexnet"
seed = 0
samples = 64
steps = 100  # of cw, both ways


def seconds(call, *args):
    begun = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - begun, result


def attacks(classifier, x, y, steps):
    calls = Calls(foolbox_model(classifier))
    for name in ATTACKS:  # compile everything
        attack(name, classifier, x[:8], y[:8], steps=3, calls=calls)
    for n in [k for k in calls.SIZES if k <= calls.batch]:
        calls.logits(x[:n]), calls.gradient(x[:n], y[:n], cross_entropy)
    forward = min(seconds(calls.logits, x)[0] for _ in range(3)) / len(x) * 1e3
    gradient = min(seconds(calls.gradient, x, y, cross_entropy)[0] for _ in range(3)) / len(x) * 1e3
    print(f"\nforward {forward:.2f} ms an image, gradient {gradient:.2f} ms an image\n")
    plain = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack(),
        "bim": foolbox.attacks.L1BasicIterativeAttack(
            rel_stepsize=1 / 6, steps=10, random_start=False
        ),
        "pgd": foolbox.attacks.LinfProjectedGradientDescentAttack(
            rel_stepsize=1 / 30, steps=40, random_start=False
        ),
        "cw": foolbox.attacks.L2CarliniWagnerAttack(
            5, steps, stepsize=cw_rate(steps), initial_const=1e-2
        ),
        "jsma": SaliencyMapAttack(block=0),
    }
    print(
        f"{'attack':8}{'images/s':>10}{'success':>9}{'outside calls':>15}{'Foolbox 3 images/s':>20}{'success (ours)':>16}{'faster':>8}{'size ratio':>12}"
    )
    for name in ATTACKS:
        calls.seconds = 0
        most = steps if name == "cw" else None

        def ours(rows, name=name, most=most):
            return attack(name, classifier, x[rows], y[rows], steps=most, calls=calls)

        spent, (found, success) = seconds(ours, slice(None))
        line = f"{name:8}{len(x) / spent:10.1f}{100 * success.mean():8.1f}%{100 * (1 - calls.seconds / spent):14.1f}%"
        few = slice(24)
        again, (found, success) = seconds(ours, few)
        inputs, labels = (ep.from_numpy(calls.like, a[few]).raw for a in (x, y))
        # A list as fine as our searches, and no longer than it has to be: in practice nobody knows where it may begin and end.
        sizes = size(name, found - x[few])[success]
        fine = np.exp(np.arange(np.log(0.9 * sizes.min()), np.log(1.1 * sizes.max()), 0.05)) * (
            x[0].size if name == "bim" else 1
        )
        epsilons = [None] if name in ("cw", "jsma") else list(fine)
        theirs, (_, clipped, hit) = seconds(
            lambda name=name, a=inputs, b=labels, e=epsilons: plain[name](
                calls.fmodel, a, b, epsilons=e
            )
        )
        hit = ep.astensor(hit).numpy()
        best = np.stack(
            [ep.astensor(clipped[k]).numpy()[i] for i, k in enumerate(hit.argmax(axis=0))]
        )
        both = hit.any(axis=0) & success
        ratio, in_l2 = (
            size(n, found - x[few])[both].mean() / size(n, best - x[few])[both].mean()
            for n in (name, "cw")
        )
        rate = f"{len(hit[0]) / theirs:20.2f}{100 * hit.any(axis=0).mean():4.0f}% ({100 * success.mean():.0f}%)"
        line += f"{rate}{theirs / again:8.1f}{ratio:12.3f}" + (
            f" (L2 {in_l2:.3f})" if name == "jsma" else ""
        )
        print(line, flush=True)


def slicer(classifier, x, y):
    links = chain(classifier)
    outputs, inputs = relative_activations(classifier, links, x[:256], y[:256])
    fast = min(seconds(backward, links, outputs, inputs, 0.95)[0] for _ in range(5))
    # The naive loop would take minutes on the whole network: time it on a part of one, with as many inputs to a neuron, and count synapses.
    layers = keras.layers
    small = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.AveragePooling2D(7), layers.Flatten()]
    )
    for units in (2048, 16, int(y.max()) + 1):
        small.add(layers.Dense(units, "softmax" if units < 16 else "relu"))
    slow, _ = seconds(naive, small, pixels(x[:64]), y[:64], 0.95)
    count = [
        sum(int(np.prod(w.kernel.shape[-2:])) for w in m.layers if hasattr(w, "kernel"))
        for m in (classifier, small)
    ]
    print(
        f"slicer: {fast:.2f} s for {count[0]:,} synapses; naive loop {slow:.2f} s for {count[1]:,}: "
        f"{slow / count[1] * count[0] / fast:,.0f} times as fast a synapse"
    )


def mining(folder, classifier, x, y):
    checkpoints = dict(list(history_of(folder).items())[-4:])
    layer = default_layer(classifier)
    part = part_up_to(classifier, layer)
    predict(classifier, x), predict(part, x)

    def forward_only():
        for path in checkpoints.values():
            predict(load_weights(classifier, path), x)

    def twice():
        for path in checkpoints.values():
            load_weights(classifier, path)
            predict(classifier, x), predict(part, x)

    mine(checkpoints, x, y, classifier, layer)
    passes = (
        min(seconds(forward_only)[0] for _ in range(2)) * (len(checkpoints) + 1) / len(checkpoints)
    )
    ours = min(seconds(mine, checkpoints, x, y, classifier, layer)[0] for _ in range(2))
    print(
        f"mining: {ours / passes:.2f} times its forward passes (checkpoints + 1); "
        f"two predictions a checkpoint take {seconds(twice)[0] / ours:.2f} times as long"
    )


def augmentation(classifier, x, y, args):
    network = keras.Model(classifier.inputs[0], classifier.outputs[0])
    network.compile(keras.optimizers.SGD(1e-6), "sparse_categorical_crossentropy")
    plain = Batches(
        len(x), lambda rows, _: (pixels(x[rows]), y[rows]), params.batch_of(len(x)), (0,)
    )
    batches = {"plain": plain, "augmented": train_batches(x, y, args.model, args.dataset, 0)}
    network.fit(plain, verbose=0)
    turns = [
        {name: seconds(lambda b=b: network.fit(b, verbose=0))[0] for name, b in batches.items()}
        for _ in range(5)
    ]  # taking turns
    times = {name: min(turn[name] for turn in turns) for name in batches}
    more = 100 * (times["augmented"] / times["plain"] - 1)
    print(f"training: {len(x) / times['plain']:.0f} images/s; augmentation takes {more:+.1f}% time")


def main(argv=None):
    args = options(
        __doc__, argv, dataset=dataset, model=model, seed=seed, samples=samples, steps=steps
    )
    folder, classifier, path, _ = load_study(args)
    x, y = load_fitting_data(args, "train", classifier)
    few = slice(0, 2 * args.samples + 64)
    right = predict(classifier, x[few]).argmax(axis=1) == y[few]
    slicer(classifier, x, y)
    mining(folder, classifier, x[:4000], y[:4000])
    augmentation(load_weights(classifier, path), x[:1280], y[:1280], args)
    attacks(
        load_weights(classifier, path),
        pixels(x[few][right][: args.samples]),
        y[few][right][: args.samples],
        args.steps,
    )


if __name__ == "__main__":
    run(main)
