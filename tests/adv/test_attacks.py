"""The attacks: as good as Foolbox's own and as the literal searches of Foolbox 2.3.0; the samples.

JSMA is followed step by step.
"""

import eagerpy as ep
import foolbox
import h5py
import numpy as np
import pytest
from conftest import patterns

import adv.attacks.classifier
from adv import ATTACKS, fintune_adv, generate_adv
from adv.attacks import attack, norms
from adv.attacks.classifier import (
    BatchedModel,
    StartingPoint,
    attack_batch_size,
    chosen_logit,
    foolbox_model,
    in_full_batches,
    log_odds,
    logits_model,
    margin,
    margin_loss,
)
from adv.attacks.saliency_map import SaliencyMapAttack, saliency_map, target_classes
from train.artifacts import attributes
from train.backend import keras, ops
from train.checkpoints import load_classifier
from train.flags import UserError
from train.models import build_model
from train.utils import predict

layers = keras.layers


@pytest.fixture(scope="module")
def subject(trained):
    """(classifier, images that it gets right, labels, BatchedModel)."""
    model = load_classifier(trained / "models" / "toy_tiny_seed0")
    x, y = patterns(160, seed=7)
    x = x.astype("float32") / 255
    right = predict(model, x).argmax(axis=1) == y
    return model, x[right][:100], y[right][:100], BatchedModel(foolbox_model(model), batch=64)


def size(name, change):
    """What an attack makes small: (n, h, w, c) -> (n,)."""
    if name == "bim":
        return np.abs(change).mean(axis=(1, 2, 3))
    return norms(change)[{"cw": "l2", "jsma": "l0"}.get(name, "linf")]


def by_foolbox(make, calls, x, y, epsilons):
    """One of Foolbox's attacks: (clipped images, success), arrays (epsilons, n, ...)."""
    inputs, labels = (ep.from_numpy(calls.like, a).raw for a in (x, y))
    _, clipped, hit = make(calls.fmodel, inputs, labels, epsilons=epsilons)
    return np.stack([ep.astensor(c).numpy() for c in clipped]), ep.astensor(hit).numpy()


# ---------------------------------------------------------- against the searches of Foolbox 2.3.0


class Foolbox2:
    """The searches of Foolbox 2.3.0 in plain words, for one image, one step at a time."""

    def __init__(self, name, calls, image, label):
        self.name, self.calls, self.x, self.y = name, calls, image, label
        self.best, self.success = image, False

    def wrong(self, candidate):
        return self.calls.logits(candidate).argmax() != self.y[0]

    def run(self):
        self.fgsm() if self.name == "fgsm" else self.search()
        return self.best, self.success

    def fgsm(self):
        sign = np.sign(self.calls.gradient(self.x, self.y, log_odds)[1])
        sizes = np.linspace(0, 1, 1001)[1:]
        for _ in range(2):
            tries = [np.clip(self.x + np.float32(s) * sign, 0, 1) for s in sizes]
            hit = next((k for k, candidate in enumerate(tries) if self.wrong(candidate)), None)
            if hit is None:
                return
            self.best, self.success = tries[hit], True
            if hit >= 20 or len(sizes) == 20:
                return
            sizes = np.linspace(0, sizes[hit], 21)[1:]

    def search(self):
        low, high = 0.0, 0.3
        for _ in range(20):
            if self.attempt(high):
                break
            high *= 1.5
        else:
            return
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if self.attempt(middle) else (middle, high)

    def attempt(self, epsilon):
        steps, share = (10, 1 / 6) if self.name == "bim" else (40, 1 / 30)
        current = self.x
        for _ in range(steps):
            gradient = self.calls.gradient(current, self.y, log_odds)[1]
            if self.name == "pgd":
                change = current + share * epsilon * np.sign(gradient) - self.x
                change = np.clip(change, -epsilon, epsilon)
            else:
                gradient = gradient / max(np.abs(gradient).mean(), 1e-12)
                change = current + share * epsilon * gradient - self.x
                change = change * min(1, epsilon / max(np.abs(change).mean(), 1e-12))
            current = np.clip(self.x + change, 0, 1).astype("float32")
            if self.wrong(current):
                self.keep(current)
                return True
        return False

    def keep(self, found):
        now, before = (size(self.name, image - self.x)[0] for image in (found, self.best))
        if not self.success or now < before:
            self.best, self.success = found, True


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_no_worse_than_the_search_of_foolbox_2(subject, name):
    model, x, y, calls = subject
    n = 4 if name == "pgd" else 12
    x, y = x[:n], y[:n]
    found, success = attack(name, model, x, y, calls=calls)
    runs = [Foolbox2(name, calls, x[i : i + 1], y[i : i + 1]).run() for i in range(len(x))]
    theirs, hit = np.concatenate([r[0] for r in runs]), np.array([r[1] for r in runs])
    assert success.sum() >= hit.sum() > 0
    both = success & hit
    assert size(name, found - x)[both].mean() <= 1.05 * size(name, theirs - x)[both].mean()


# ---------------------------------------------------------------------- against Foolbox 3's attacks

GRID = np.geomspace(0.03, 0.2, 18)  # 12% from one to the next


def foolbox3(name):
    """(Foolbox 3's attack with the settings of 2.3.0, epsilons to try)."""
    if name == "fgsm":
        return foolbox.attacks.LinfFastGradientAttack(), list(GRID)
    if name == "bim":
        settings = {"rel_stepsize": 1 / 6, "steps": 10, "random_start": False}
        return foolbox.attacks.L1BasicIterativeAttack(**settings), list(GRID / 2 * 144)
    settings = {"rel_stepsize": 1 / 30, "steps": 40, "random_start": False}
    return foolbox.attacks.LinfProjectedGradientDescentAttack(**settings), list(GRID)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_no_worse_than_foolbox_3(subject, name):
    """Foolbox 3 tries a list of epsilons, and so is half a step of it above its smallest."""
    model, x, y, calls = subject
    x, y = x[:40], y[:40]
    make, epsilons = foolbox3(name)
    theirs, hit = by_foolbox(make, calls, x, y, epsilons)
    first, hit = hit.argmax(axis=0), hit.any(axis=0)
    theirs = theirs[first, np.arange(len(x))]
    found, success = attack(name, model, x, y, calls=calls)
    assert success.sum() >= hit.sum() > 0
    both = success & hit
    assert size(name, found - x)[both].mean() <= size(name, theirs - x)[both].mean()


def test_cw_with_few_steps_is_no_worse_than_foolbox_at_its_best_step_size(subject):
    model, x, y, calls = subject
    x, y = x[:40], y[:40]
    found, success = attack("cw", model, x, y, steps=30, calls=calls)
    l2 = norms(found - x)["l2"]
    for stepsize in (5e-3, 1e-2, 2e-2, 5e-2):
        settings = {"stepsize": stepsize, "initial_const": 1e-2}
        make = foolbox.attacks.L2CarliniWagnerAttack(5, 30, **settings)
        theirs, hit = (a[0] for a in by_foolbox(make, calls, x, y, [None]))
        both = success & hit
        assert success.sum() >= hit.sum() and both.any()
        assert l2[both].mean() <= 1.05 * norms(theirs - x)["l2"][both].mean()


def test_cw_with_few_steps_is_closer_than_bim(subject):
    model, x, y, calls = subject
    cw, success = attack("cw", model, x, y, steps=50, calls=calls)
    bim, hit = attack("bim", model, x, y, calls=calls)
    assert success.sum() >= hit.sum() > 0
    both = success & hit
    l2, l2_of_bim = (norms(found - x)["l2"][both] for found in (cw, bim))
    assert np.median(l2) < np.median(l2_of_bim)
    assert (l2 < l2_of_bim).mean() > 0.5


# ---------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("name", ATTACKS)
def test_what_attacks_return(subject, name):
    model, x, y, calls = subject
    wrong = (y[:1] + 1) % 4
    labels = np.concatenate([wrong, y[1:10]])
    found, success = attack(name, model, x[:10], labels, steps=60)
    assert found.dtype == np.float32 and found.shape == x[:10].shape
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(found[0], x[0])  # wrong from the start: comes back as it is
    assert success[0] and success.sum() > 5
    np.testing.assert_array_equal(predict(model, found).argmax(axis=1) != labels, success)
    np.testing.assert_array_equal(found[~success], x[:10][~success])
    again, _ = attack(name, model, x[:10], labels, steps=60, calls=calls)
    np.testing.assert_array_equal(found, again)


REFUSED = {
    "name": {"name": "deepfool"},
    "mode": {"mode": "fast"},
    "fixed without epsilon": {"mode": "fixed"},
    "minimal with epsilon": {"epsilons": 0.1},
    "nan": {"x": np.full((1, 12, 12, 1), np.nan)},
    "8 bit": {"x": np.full((1, 12, 12, 1), 2)},
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED)
def test_refusals(subject, bad):
    model, x, y, calls = subject
    with pytest.raises(UserError):
        attack(**{"name": "fgsm", "model": model, "x": x[:1], "y": y[:1], "calls": calls} | bad)


# --------------------------------------------------------------------------------------- fixed mode

EPSILON = {"fgsm": 0.15, "bim": 0.15, "pgd": 0.15, "cw": 1.0, "jsma": 20}


@pytest.fixture(scope="module")
def fixed_mode(subject):
    """{attack: (found, success)} of mode fixed on 40 images."""
    model, x, y, calls = subject
    return {
        name: attack(name, model, x[:40], y[:40], "fixed", epsilon, steps=40, calls=calls)
        for name, epsilon in EPSILON.items()
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_fixed_mode_stays_within_epsilon(subject, fixed_mode, name):
    model, x, y, _ = subject
    x, y = x[:40], y[:40]
    found, success = fixed_mode[name]
    norm = {"cw": "l2", "jsma": "l0"}.get(name, "linf")
    assert norms(found - x)[norm].max() <= EPSILON[name] + 1e-6
    np.testing.assert_array_equal(predict(model, found).argmax(axis=1) != y, success)


def test_fixed_fgsm_is_one_step_of_the_gradients_sign(subject, fixed_mode):
    _, x, y, calls = subject
    x, y = x[:40], y[:40]
    step = np.clip(x + np.float32(0.15) * np.sign(calls.gradient(x, y, log_odds)[1]), 0, 1)
    wrong = calls.logits(step).argmax(axis=1) != y
    found, success = fixed_mode["fgsm"]
    assert 0 < wrong.sum() < len(x)
    np.testing.assert_array_equal(success, wrong)
    np.testing.assert_allclose(found[wrong], step[wrong], atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "cw", "jsma"])
def test_fixed_mode_breaks_what_a_smaller_perturbation_breaks(subject, fixed_mode, name):
    model, x, y, calls = subject
    x, y = x[:40], y[:40]
    steps = None if name == "pgd" else 40
    found, success = attack(name, model, x, y, steps=steps, calls=calls)
    breakable = success & (size(name, found - x) <= EPSILON[name])
    assert 0 < breakable.sum()
    if name == "pgd":  # which starts at random there
        assert fixed_mode[name][1][breakable].mean() >= 0.9
    else:
        np.testing.assert_array_equal(fixed_mode[name][1], breakable)


def test_fixed_bim_breaks_what_fixed_fgsm_breaks(fixed_mode):
    fgsm, bim = fixed_mode["fgsm"][1], fixed_mode["bim"][1]
    assert bim[fgsm].mean() >= 0.9 and bim.sum() > fgsm.sum()


def test_fixed_mode_is_not_fooled_by_large_logits(subject):
    """Logits times 30: the same decisions; the gradient of the cross-entropy vanishes."""
    model, x, y, calls = subject
    logits = logits_model(model)
    scaled = layers.Softmax()(layers.Rescaling(30.0)(logits.output))
    scaled = keras.Model(logits.inputs[0], scaled)
    scaled_calls = BatchedModel(foolbox_model(scaled), batch=64)
    epsilon = 0.2
    _, plain = attack("pgd", model, x, y, "fixed", epsilon, calls=calls)
    _, ours = attack("pgd", scaled, x, y, "fixed", epsilon, calls=scaled_calls)
    _, theirs = by_foolbox(foolbox.attacks.LinfPGD(), scaled_calls, x, y, [epsilon])
    assert plain.mean() > 0.7
    assert abs(int(ours.sum()) - int(plain.sum())) <= 3
    assert theirs[0].sum() < 0.7 * plain.sum()


# --------------------------------------------------------------------------------------------- jsma


def definition_of_jsma(calls, image, target, theta, max_changes, steps):
    """One feature at a time: the largest gradient of the target's logit among those that can move.

    Returns the flat image and whether it is classified as the target.
    """
    x, times = image.ravel().copy(), np.zeros(image.size, int)
    for _ in range(steps):
        z, gradient = calls.gradient(x.reshape(image.shape), target, chosen_logit)
        gradient = gradient.ravel()
        if z.argmax() == target[0]:
            return x, True
        room = np.where(gradient > 0, 1 - x, x)
        movable = (times < max_changes) & (room > 0)
        feature = np.where(movable, np.abs(gradient), -1).argmax()
        x[feature] = np.clip(x[feature] + theta * np.sign(gradient[feature]), 0, 1)
        times[feature] = max_changes if x[feature] in (0, 1) else times[feature] + 1
    return x, calls.logits(x.reshape(image.shape)).argmax() == target[0]


def test_jsma_changes_the_most_salient_feature(subject):
    """With a gradient for every change, step by step against the definition."""
    _, x, y, calls = subject
    target, successes = (y[:6] + 1) % 4, 0
    settings = {"theta": 0.2, "steps": 40}
    make = SaliencyMapAttack(max_perturbations_per_pixel=3, block=0, **settings)
    for i in range(6):
        image, wanted = x[i : i + 1], target[i : i + 1]
        expected, hit = definition_of_jsma(calls, image, wanted, max_changes=3, **settings)
        criterion = foolbox.criteria.TargetedMisclassification(ep.from_numpy(calls.like, wanted))
        inputs = ep.from_numpy(calls.like, image).raw
        found, _, success = make(calls.fmodel, inputs, criterion, epsilons=None)
        assert ep.astensor(success).numpy()[0] == hit
        expected = expected if hit else image.ravel()
        np.testing.assert_allclose(ep.astensor(found).numpy().ravel(), expected, atol=1e-6)
        successes += hit
    assert successes >= 3


def test_jsma_in_blocks_is_no_worse(subject):
    """Against a gradient for every change, from the same images to the same targets."""
    _, x, y, calls = subject
    target = target_classes(StartingPoint.at(calls, x, y))
    exact, hit = saliency_map(calls, x, y, target, block=0, untargeted=True)
    gradients = calls.gradients
    found, success = saliency_map(calls, x, y, target, untargeted=True)
    assert success.sum() >= hit.sum() > len(x) / 2
    assert calls.gradients - gradients < gradients / 2
    both = success & hit
    for norm in ("l0", "l2"):
        assert norms(found - x)[norm][both].mean() <= 1.10 * norms(exact - x)[norm][both].mean()


def test_jsma_as_a_foolbox_attack(subject):
    model, x, y, calls = subject
    images, success = by_foolbox(SaliencyMapAttack(batch=64), calls, x, y, [None, 5, 1000])
    found, hit = attack("jsma", model, x, y, calls=calls)
    np.testing.assert_array_equal(success[0], hit)
    np.testing.assert_array_equal(images[0][hit], found[hit])
    np.testing.assert_array_equal(success[2], hit)
    np.testing.assert_array_equal(success[1], hit & (norms(found - x)["l0"] <= 5))
    assert norms(images[1] - x)["l0"].max() <= 5
    assert np.round(np.abs(images[0] - x) / 0.1, 3).max() <= 7
    inputs, labels = (ep.from_numpy(calls.like, a).raw for a in (x, y))
    raw, _, _ = SaliencyMapAttack()(calls.fmodel, inputs, labels, epsilons=None)
    assert type(raw) is type(inputs)
    with pytest.raises(ValueError, match="criterion"):
        either = foolbox.criteria.Misclassification(labels)
        SaliencyMapAttack()(calls.fmodel, inputs, either & either, epsilons=None)


# -------------------------------------------------------------------------------------------- model


def test_logits_and_gradients(subject):
    model, x, y, calls = subject
    z = calls.logits(x)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, predict(model, x), rtol=1e-4, atol=1e-6)
    direction = calls.gradient(x[:4], y[:4], log_odds)[1]
    labels = ep.from_numpy(calls.like, y[:4])
    _, theirs = ep.value_and_grad(
        lambda inputs: ep.crossentropy(calls.fmodel(inputs), labels).sum(),
        ep.from_numpy(calls.like, x[:4]),
    )
    for mine, other in zip(direction, theirs.numpy(), strict=True):
        np.testing.assert_allclose(
            mine / np.abs(mine).max(), other / np.abs(other).max(), atol=1e-3
        )


@pytest.mark.parametrize("loss", [chosen_logit, margin_loss, log_odds])
def test_gradients_are_slopes(subject, loss):
    """Of most images: between the two points that are compared some ReLU may bend."""
    _, x, y, calls = subject

    def value(image, label):
        logits = ep.from_numpy(calls.like, calls.logits(image))
        return loss(logits, ep.from_numpy(calls.like, label)).item()

    ratios = []
    for i in range(11):
        one, label = x[i : i + 1], y[i : i + 1]
        _, gradient = calls.gradient(one, label, loss)
        feature = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        below, above = one.copy(), one.copy()
        below[feature] -= 5e-3
        above[feature] += 5e-3
        slope = (value(above, label) - value(below, label)) / 1e-2
        ratios.append(slope / gradient[feature])
    assert np.median(ratios) == pytest.approx(1, rel=0.01)


def test_margin():
    z, y = np.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]]), np.array([1, 2])
    np.testing.assert_array_equal(margin(z, y), [2, -2])


def test_logits_of_a_separate_softmax(subject):
    x = subject[1][:2]
    flat = [layers.Flatten(), layers.Dense(3), layers.Softmax()]
    twin = keras.Sequential([keras.Input((12, 12, 1)), *flat])
    expected = ops.convert_to_numpy(ops.matmul(x.reshape(2, -1), twin.layers[1].kernel))
    found = ops.convert_to_numpy(logits_model(twin)(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="softmax"):
        logits_model(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))


def test_batches_stay_full():
    left, widths = np.array([3, 1, 5, 1, 1, 2]), []

    def step(rows):
        widths.append(len(rows))
        left[rows] -= 1
        return left[rows] == 0

    in_full_batches(6, 3, step)
    assert (left == 0).all() and sum(widths) == 13 and widths[:3] == [3, 3, 3]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw", "jsma"])
def test_samples_do_not_depend_on_the_batch(subject, name):
    model, x, y, calls = subject
    steps = {"cw": 10, "jsma": 100}.get(name)
    small = BatchedModel(calls.fmodel, batch=12)
    (one, hit), (other, other_hit) = (
        attack(name, model, x[:30], y[:30], steps=steps, calls=c) for c in (calls, small)
    )
    assert (hit == other_hit).mean() > 0.9
    difference = np.abs(size(name, one - x[:30]) / size(name, other - x[:30]) - 1)
    assert np.quantile(difference[hit & other_hit], 0.9) < 0.02  # sums in another order


def test_batches_fill_an_accelerator(monkeypatch):
    monkeypatch.setattr(adv.attacks.classifier, "accelerators", lambda: [])
    vgg, alexnet = (build_model(name, (32, 32, 3), 10) for name in ("vgg16", "alexnet"))
    assert attack_batch_size(vgg) == attack_batch_size(alexnet) == 128
    monkeypatch.setattr(adv.attacks.classifier, "accelerators", lambda: ["gpu:0"])
    assert 128 < attack_batch_size(vgg) <= attack_batch_size(alexnet) <= 1024
    assert attack_batch_size(alexnet, memory=1e8) < 128


# -------------------------------------------------------------------------------------- the samples


def arrays_of(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def interrupt(monkeypatch, after):
    """Let generate_adv attack so many chunks, then interrupt; returns the list of calls."""
    real, calls = generate_adv.run_attack, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(generate_adv, "run_attack", interrupted)
    return calls


def test_an_interrupted_run_writes_the_same_file(study, monkeypatch):
    _, folder, flags = study
    path = folder / "adv/pgd.h5"
    monkeypatch.setattr(generate_adv, "CHUNK", 16)
    flags = [*flags, "--attack", "pgd", "--samples", "50"]
    path.unlink()
    generate_adv.main(flags)
    whole, about = arrays_of(path), attributes(path)
    path.unlink()
    path.with_suffix(".png").unlink()
    calls = interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        generate_adv.main(flags)
    assert not path.exists()
    generate_adv.main(flags)
    assert len(calls) == 5  # two chunks, an interruption, the other two
    assert attributes(path) == about
    for name, value in arrays_of(path).items():
        np.testing.assert_array_equal(value, whole[name])
    assert sorted(p.name for p in (folder / "adv").iterdir() if p.name.startswith(".")) == []
    assert path.with_suffix(".png").stat().st_size > 5000


def test_chunks_of_other_settings_are_not_used(study, monkeypatch):
    _, folder, flags = study
    monkeypatch.setattr(generate_adv, "CHUNK", 16)
    flags = [*flags, "--attack", "pgd", "--samples", "32"]
    (folder / "adv/pgd.h5").unlink()
    calls = interrupt(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        generate_adv.main([*flags, "--steps", "10"])
    generate_adv.main(flags)
    assert len(calls) == 4  # a chunk, an interruption, both chunks again


def test_samples_of_other_settings_are_refused_and_kept(study, capsys):
    _, folder, flags = study
    path = folder / "adv/fgsm.h5"
    before = path.read_bytes()
    for other, name in (["--samples", "30"], "samples"), (["--steps", "5"], "steps"):
        with pytest.raises(UserError, match=f"fgsm.h5 was made with {name}"):
            generate_adv.main([*flags, "--attack", "fgsm", "--samples", "60", *other])
    generate_adv.main([*flags, "--attack", "fgsm", "--samples", "60"])
    assert "is there" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_weak_attack_is_warned_of(study, capsys):
    _, folder, flags = study
    (folder / "adv/fgsm.h5").unlink()
    flags = [*flags, "--attack", "fgsm", "--samples", "60", "--mode", "fixed"]
    generate_adv.main([*flags, "--epsilon", "0.05"])
    share = arrays_of(folder / "adv/fgsm.h5")["success"].mean()
    assert 0 < share < 0.5
    assert "Warning: fgsm succeeds on less than half" in capsys.readouterr().out


def test_sample_files(study):
    home, folder, _ = study
    x, y = (np.load(home / f"data/toy/{letter}_train.npy") for letter in "xy")
    fgsm, pgd = (arrays_of(folder / f"adv/{name}.h5") for name in ("fgsm", "pgd"))
    index, image = fgsm["index"], fgsm["image"]
    np.testing.assert_array_equal(index, pgd["index"])
    np.testing.assert_array_equal(fgsm["split"], pgd["split"])
    assert np.bincount(fgsm["split"]).tolist() == [36, 12, 12]
    np.testing.assert_array_equal(fgsm["label"], y[index])
    model = load_classifier(folder)
    assert (predict(model, x[index]).argmax(axis=1) == y[index]).all()
    np.testing.assert_array_equal(predict(model, image).argmax(axis=1) != y[index], fgsm["success"])
    change = np.abs(image - x[index].astype("float32") / 255)
    np.testing.assert_allclose(fgsm["linf"], change.max(axis=(1, 2, 3)), rtol=1e-5)
    wanted = {"attack", "mode", "samples", "checkpoint_sha256", "data_sha256", "version"}
    assert wanted <= set(attributes(folder / "adv/fgsm.h5"))


def test_adversarial_training_learns_its_own_samples(study):
    _, folder, flags = study
    flags = [*flags, "--lr_rate", "0.003", "--epoch", "12"]
    fintune_adv.main([*flags, "--attack", "fgsm,pgd"])
    original = load_classifier(folder)
    for name in ("fgsm", "pgd"):
        tuned = folder / f"tuned/at-{name}_lr0.003_run0/model.012.weights.h5"
        about = attributes(tuned)
        assert about["method"] == f"at-{name}" and about["run"] == 0
        samples = arrays_of(folder / f"adv/{name}.h5")
        rows = (samples["split"] == 0) & samples["success"]
        images, labels = samples["image"][rows], samples["label"][rows]
        assert (predict(original, images).argmax(axis=1) != labels).all()
        model = load_classifier(folder)
        model.load_weights(tuned)
        assert (predict(model, images).argmax(axis=1) == labels).mean() > 0.5
    # Tuning for pgd began from the original, not from what fgsm had made of it.
    alone = folder / "tuned/at-pgd_lr0.003_run0"
    alone.rename(folder / "together")
    fintune_adv.main([*flags, "--attack", "pgd"])
    ends = [load_classifier(folder) for _ in range(2)]
    for model, where in zip(ends, (alone, folder / "together"), strict=True):
        model.load_weights(where / "model.012.weights.h5")
    for one, other in zip(ends[0].get_weights(), ends[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
