"""Step 6: DARE. Tune the regression model on the mined targets, inside the slice, and synchronise it into the classifier.

    python dare/dare.py --dataset digits --model alexnet --lr_rate 1e-3

Reads data/<dataset>/, and of models/<dataset>_<model>/ the final checkpoint, slice_<per>.h5 and ats_<layer>.h5. Writes the
classifier after every epoch, dare/model.001.weights.h5 ..., and log.csv; flags that differ from the constants below are
part of the folder's name, dare_lr0.0001. The variants dare-s.py, dare-sl.py and dare-last.py,
adv/fintune_adv.py and controls.py call what is here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dare.get_ats import Mined, default_layer, part_up_to
from dare.nnslicer import key_neurons, load_slice
from train import params
from train.files import UserError, artifact, data_sha256, options, pixels, run, sha256, stage, tuned_folder
from train.utils import Batches, fit, load_fitting_data, load_study, set_seed

import keras  # isort: skip
from keras import ops  # isort: skip

dataset = "digits"
model = "alexnet"
seed = 0
lr_rate = None  # None: 1e-3 for alexnet, 1e-6 for vgg (params.lr_rate)
epoch = 10  # epochs of tuning
per = 0.95  # the slice to use
choose_layer = None  # None: get_ats.default_layer
run_number = 0  # --run: seed of the tuning

BATCH = 128


class InsideSlice(keras.constraints.Constraint):
    """Puts the weights outside the slice back after every update (design section 6).

    mask: bool (n_in, n_out), shared by all taps of a kernel. kernel: the weights before tuning.
    """

    def __init__(self, mask, kernel):
        self.mask, self.kernel = ops.convert_to_tensor(mask), ops.convert_to_tensor(kernel)

    def __call__(self, w):
        return ops.where(self.mask, ops.convert_to_tensor(w), self.kernel)


def regression_loss(neurons, key):
    """Mean squared difference over the key neurons, for activations whose other neurons are 0 in target and output.

    neurons: of the layer; key: of these, key ones of a class (the same number for all classes).
    """

    def loss(target, output):
        return ops.mean(ops.square(target - output), axis=tuple(range(1, len(output.shape)))) * (neurons / key)

    return loss


def tune(classifier, layer, mined, x, y, folder, lr_rate, epochs, masks=None, key=None, seed=(0,), made_from=None):
    """Transform, tune and synchronise (ASE 2022; design section 6).

    The regression model is made of the classifier's own layers, so that a tuned weight is in the classifier, and saved
    with it, in the moment it is tuned: synchronising needs no copy. The layers after the chosen one are not touched.

    Args:
        classifier: the trained network; tuned in place. layer: name of the chosen layer.
        mined: Mined, whose index points into x (n, h, w, c) and y (n,), and whose activation are the targets.
        folder: gets the classifier after every epoch. epochs, lr_rate: of Adam, batch 128.
        masks: {layer name: bool (n_in, n_out)}, the slice; None lets all weights move (dare-s).
        key: bool (classes, neurons), the key neurons; None: all neurons (dare-s).
    """
    set_seed(*seed)
    regression = part_up_to(classifier, layer)
    _release(classifier, masks)
    shape = regression.output_shape[1:]
    if mined.activation.shape[1:] != shape:
        raise UserError(f"the targets have shape {mined.activation.shape[1:]} and layer {layer} {shape}: mine again with dare/get_ats.py.")
    key = np.ones((int(np.max(y)) + 1, shape[-1]), bool) if key is None else np.asarray(key)
    here = keras.Input((*[1] * (len(shape) - 1), shape[-1]), name="key_neurons")
    masked = keras.Model([regression.inputs[0], here], regression.output * here)
    labels = np.asarray(y)[mined.index]

    def make(rows, _):
        keys = key[labels[rows]].astype("float32").reshape(len(rows), *here.shape[1:])
        return (pixels(x[mined.index[rows]]), keys), mined.activation[rows] * keys

    loss = regression_loss(shape[-1], int(key[0].sum()))
    masked.compile(keras.optimizers.Adam(lr_rate), loss)
    batches = Batches(len(mined.index), make, BATCH, (*seed, 1))
    fit(masked, batches, folder, epochs, made_from or {}, classifier=classifier)
    return classifier


def tune_classifier(classifier, x, y, rows, folder, loss, lr_rate, epochs, frozen=0, until=None, seed=(0,), made_from=None):
    """Tune the classifier itself on images x[rows] (n, h, w, c) and their labels y[rows], in place, with Adam, batch 128.

    loss: "mse" (on the softmax, one-hot labels) or "categorical_crossentropy". frozen: so many first layers, the input and
    its normalisation not counted, do not move; until: nor do those after this layer. Otherwise as tune.
    """
    set_seed(*seed)
    _release(classifier, None)
    layers = classifier.layers[2:]
    end = len(layers) if until is None else [layer.name for layer in layers].index(until) + 1
    for i, layer in enumerate(layers):
        layer.trainable = frozen <= i < end
    onehot = np.eye(classifier.output_shape[-1], dtype="float32")
    # A model of its own, so that the classifier stays uncompiled and is saved without this training.
    trained = keras.Model(classifier.inputs[0], classifier.outputs[0])
    trained.compile(keras.optimizers.Adam(lr_rate), loss, metrics=["accuracy"])
    batches = Batches(len(rows), lambda at, _: (pixels(x[rows[at]]), onehot[y[rows[at]]]), BATCH, (*seed, 1))
    fit(trained, batches, folder, epochs, made_from or {}, classifier=classifier)
    return classifier


def _release(classifier, masks):
    """Let kernels move inside the slice only, and drop the l2 terms of training: they are no part of the tuning losses."""
    for layer in classifier.layers:
        for variable in layer.variables:
            variable.regularizer = None
        if masks and layer.name in masks:
            layer.kernel.constraint = InsideSlice(masks[layer.name], ops.copy(ops.convert_to_tensor(layer.kernel)))


def key_of(classifier, layer, slices, per):
    """Key neurons bool (classes, neurons) of `layer`, from the contributions of the sliced layer that it passes on."""
    before = None
    for candidate in classifier.layers:
        before = candidate.name if candidate.name in slices else before
        if candidate.name == layer:
            break
    if before is None or slices[before].contribution.shape[1] != classifier.get_layer(layer).output.shape[-1]:
        raise UserError(f"--choose_layer {layer} has no neurons of its own: choose a dense or convolutional layer, or what follows it.")
    return key_neurons(slices[before].contribution, per)


def read_mined(file):
    """Mined of an open ats file; the activations stay on disk."""
    arrays = {name: file[name][()] for name in Mined.__dataclass_fields__ if name != "activation"}
    return Mined(**arrays, activation=file["activation"])


def study_arguments(doc, argv, **constants):
    """options() and load_study() of a tuning script, with the learning rate and layer of the network filled in.

    Returns args, folder, classifier, the attributes that every tuned model gets, and the changes from the constants, which
    are part of the folder's name.
    """
    args = options(doc, argv, dataset=dataset, model=model, seed=seed, **constants)
    folder, classifier, _, digest = load_study(args)
    given = {k: getattr(args, k) for k in ("lr_rate", "choose_layer", "per") if k in constants}
    changed = {k: v for k, v in given.items() if v != constants[k]}
    args.lr_rate = args.lr_rate or params.lr_rate[params.family(args.model)]
    made_from = {"dataset": args.dataset, "model": args.model, "seed": args.seed, "run": args.run, "lr_rate": args.lr_rate}
    made_from |= {"checkpoint_sha256": digest, "data_sha256": data_sha256(args.dataset)}
    return args, folder, classifier, made_from, changed


def tune_from_artifacts(method, doc, argv, sliced, layer=None, **constants):
    """What dare.py, dare-s.py and dare-last.py do: find the artifacts, check that they belong together, tune.

    sliced: use slice and key neurons. layer: function of the classifier, instead of --choose_layer.
    """
    args, folder, classifier, made_from, changed = study_arguments(doc, argv, **constants)
    chosen = layer(classifier) if layer else args.choose_layer or default_layer(classifier)
    part_up_to(classifier, chosen)
    same = {"checkpoint_sha256": made_from["checkpoint_sha256"], "data_sha256": made_from["data_sha256"]}
    x, y = load_fitting_data(args, "validation", classifier)
    target = tuned_folder(folder, method, args.run, **changed)
    with stage(target / "tune.log", method, **vars(args) | {"choose_layer": chosen}):
        command = f"--dataset {args.dataset} --model {args.model} --seed {args.seed}"
        masks = key = None
        if sliced:
            path = folder / f"slice_{args.per:g}.h5"
            with artifact(path, f"python dare/nnslicer.py {command} --per {args.per:g}", per=args.per, **same) as file:
                slices = load_slice(file)
            masks, key = {n: s.mask for n, s in slices.items()}, key_of(classifier, chosen, slices, args.per)
            made_from |= {"per": args.per, "slice_sha256": sha256(path)}
        path = folder / f"ats_{chosen}.h5"
        made_from |= {"method": method, "choose_layer": chosen}
        with artifact(path, f"python dare/get_ats.py {command} --choose_layer {chosen}", choose_layer=chosen, **same) as file:
            made_from |= {"ats_sha256": sha256(path)}
            mined = read_mined(file)
            tune(classifier, chosen, mined, x, y, target, args.lr_rate, args.epoch, masks, key, (args.seed, args.run), made_from)


def main(argv=None):
    constants = {"lr_rate": lr_rate, "epoch": epoch, "per": per, "choose_layer": choose_layer, "run": run_number}
    tune_from_artifacts("dare", __doc__, argv, sliced=True, **constants)


if __name__ == "__main__":
    run(main)
