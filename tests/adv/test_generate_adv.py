"""The samples, and adversarial training on them."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import python

from adv import fintune_adv, generate_adv
from adv.fintune_adv import training_samples
from train.shared.artifacts import attributes
from train.shared.checkpoints import load_classifier
from train.shared.flags import UserError
from train.shared.study import Study
from train.utils import halves_of_test, predict


def arrays_of(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


KILLED = """
import os, sys
import conftest
from adv import generate_adv
set_attributes, files = generate_adv.set_attributes, []

def kill_in_the_second_file(*args):
    files.append(args)
    set_attributes(*args)
    if len(files) == 2:
        os.kill(os.getpid(), 9)

generate_adv.CHUNK, generate_adv.set_attributes = 16, kill_in_the_second_file
generate_adv.main(sys.argv[1:])
"""


def test_after_kill_9_the_same_command_writes_the_same_file(study, monkeypatch):
    """Killed in writing the second chunk, interrupted in the fourth; the first made otherwise."""
    home, folder, flags = study
    path = folder / "adv/pgd.h5"
    monkeypatch.setattr(generate_adv, "CHUNK", 16)
    flags = [*flags, "--attack", "pgd", "--samples", "50"]
    path.unlink()
    generate_adv.main(flags)
    uninterrupted = path.read_bytes()
    path.unlink()
    picture = path.with_suffix(".png")
    picture.write_text("of other samples")
    assert python("-c", KILLED, *flags, DARE_HOME=str(home)).returncode == -9

    run_attack, chunks = generate_adv.run_attack, []

    def interrupted(*args):
        chunks.append(args)
        if len(chunks) in (3, 5):
            raise KeyboardInterrupt
        return run_attack(*args)

    monkeypatch.setattr(generate_adv, "run_attack", interrupted)
    for more in [], ["--steps", "10"]:
        with pytest.raises(KeyboardInterrupt):
            generate_adv.main([*flags, *more])
    assert not path.exists()
    generate_adv.main(flags)
    # The second, the third, an interruption; the first otherwise, another; the first, the fourth.
    assert len(chunks) == 7
    assert path.read_bytes() == uninterrupted
    assert [p.name for p in (folder / "adv").iterdir() if p.name.startswith(".")] == []
    assert picture.stat().st_size > 5000


def test_samples_of_other_settings_are_refused_and_kept(study, capsys):
    _, folder, flags = study
    path = folder / "adv/pgd.h5"
    before = path.read_bytes()
    for other, name in (["--samples", "30"], "samples"), (["--steps", "5"], "steps"):
        with pytest.raises(UserError, match=f"pgd.h5 was made with {name}"):
            generate_adv.main([*flags, "--attack", "pgd", "--samples", "60", *other])
    for attack, steps in ("pgd", []), ("fgsm", ["--steps", "5"]):  # fgsm has one step in any case
        generate_adv.main([*flags, "--attack", attack, "--samples", "60", *steps])
        assert "already exists" in capsys.readouterr().out
    assert path.read_bytes() == before


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


def test_samples_of_test_images(study, capsys):
    """Files of their own, from the reporting half of x_test, all in the split test."""
    home, folder, flags = study
    before = (folder / "adv/fgsm.h5").read_bytes()
    generate_adv.main([*flags, "--attack", "fgsm", "--part", "test", "--samples", "100"])
    assert (folder / "adv/fgsm.h5").read_bytes() == before
    found = arrays_of(folder / "adv/fgsm_test.h5")
    y = np.load(home / "data/toy/y_test.npy")
    _, reporting = halves_of_test("toy", len(y))
    index = found["index"]
    assert set(index) <= set(reporting) and len(index) <= len(reporting) == 60
    assert f"gets {len(index)} of 60 images of the test part right" in capsys.readouterr().out
    assert set(found["split"]) == {2}
    np.testing.assert_array_equal(found["label"], y[index])
    assert attributes(folder / "adv/fgsm_test.h5")["part"] == "test"


def test_a_weak_attack_is_warned_of(study, capsys):
    _, folder, flags = study
    path = folder / "adv/fgsm.h5"
    path.unlink()
    flags = [*flags, "--attack", "fgsm", "--samples", "60", "--mode", "fixed", "--epsilon", "0.05"]
    generate_adv.main(flags)
    assert 0 < arrays_of(path)["success"].mean() < 0.5
    assert "Warning: fgsm succeeds on less than half" in capsys.readouterr().out
    samples = path.read_bytes()
    generate_adv.main(flags)
    assert path.read_bytes() == samples and path.with_suffix(".png").exists()


def test_adversarial_training_learns_its_own_samples(study):
    _, folder, flags = study
    flags = [*flags, "--lr_rate", "0.003", "--epoch", "12"]
    fintune_adv.main([*flags, "--attack", "fgsm,pgd"])
    for name in ("fgsm", "pgd"):
        tuned = folder / f"tuned/at-{name}_lr0.003_run0/model.012.weights.h5"
        provenance = attributes(tuned)
        assert provenance["method"] == f"at-{name}" and provenance["run"] == 0
        samples = arrays_of(folder / f"adv/{name}.h5")
        rows = (samples["split"] == 0) & samples["success"]
        images, labels = samples["image"][rows], samples["label"][rows]
        opened = Study.open(SimpleNamespace(dataset="toy", model="tiny", seed=0))
        for found, expected in zip(training_samples(opened, name), (images, labels), strict=False):
            np.testing.assert_array_equal(found, expected)
        model = load_classifier(folder)
        model.load_weights(tuned)
        assert (predict(model, images).argmax(axis=1) == labels).mean() > 0.5
    # Tuning for pgd began from the original, not from what fgsm had made of it.
    together = tuned.read_bytes()
    shutil.rmtree(tuned.parent)
    fintune_adv.main([*flags, "--attack", "pgd"])
    assert tuned.read_bytes() == together
