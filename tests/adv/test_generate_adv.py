"""The samples, and adversarial training on them."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT

from adv import fintune_adv, generate_adv
from train.shared.artifacts import attributes
from train.shared.checkpoints import load_classifier
from train.shared.flags import UserError
from train.utils import halves_of_test, predict


def arrays_of(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def interrupt(monkeypatch, after):
    """Let generate_adv attack so many chunks, then interrupt; returns the list of calls."""
    run_attack = generate_adv.run_attack
    calls = []

    def interrupted(*args, **settings):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return run_attack(*args, **settings)

    monkeypatch.setattr(generate_adv, "run_attack", interrupted)
    return calls


KILLED = """
import os, sys
from pathlib import Path
import conftest, train.shared.paths
from adv import generate_adv
train.shared.paths.HOME = Path(sys.argv[1])
set_attributes, files = generate_adv.set_attributes, []

def kill_in_the_second_file(*args):
    files.append(args)
    set_attributes(*args)
    if len(files) == 2:
        os.kill(os.getpid(), 9)

generate_adv.CHUNK, generate_adv.set_attributes = 16, kill_in_the_second_file
generate_adv.main(sys.argv[2:])
"""


def test_after_kill_9_the_same_command_writes_the_same_file(study, monkeypatch):
    """Killed in the middle of writing the second chunk, then interrupted in the fourth."""
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

    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(home), *flags]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -9
    calls = interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        generate_adv.main(flags)
    assert not path.exists()
    generate_adv.main(flags)
    assert len(calls) == 4  # the second and the third chunk, an interruption, the fourth
    assert path.read_bytes() == uninterrupted
    assert [p.name for p in (folder / "adv").iterdir() if p.name.startswith(".")] == []
    assert picture.stat().st_size > 5000


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
    path = folder / "adv/pgd.h5"
    before = path.read_bytes()
    for other, name in (["--samples", "30"], "samples"), (["--steps", "5"], "steps"):
        with pytest.raises(UserError, match=f"pgd.h5 was made with {name}"):
            generate_adv.main([*flags, "--attack", "pgd", "--samples", "60", *other])
    for attack, steps in ("pgd", []), ("fgsm", ["--steps", "5"]):  # fgsm has one step in any case
        generate_adv.main([*flags, "--attack", attack, "--samples", "60", *steps])
        assert "already exists" in capsys.readouterr().out
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
    index = fgsm["index"]
    image = fgsm["image"]
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
    assert set(found["index"]) <= set(reporting) and len(found["index"]) <= len(reporting) == 60
    assert (
        f"gets {len(found['index'])} of 60 images of the test part right" in capsys.readouterr().out
    )
    assert set(found["split"]) == {2}
    np.testing.assert_array_equal(found["label"], y[found["index"]])
    assert attributes(folder / "adv/fgsm_test.h5")["part"] == "test"


def test_a_picture_that_fails_costs_no_result(study, monkeypatch, capsys):
    """The next run draws it."""
    _, folder, flags = study
    path = folder / "adv/fgsm.h5"
    path.unlink()
    flags = [*flags, "--attack", "fgsm", "--samples", "60"]
    with monkeypatch.context() as patch:
        patch.setattr("adv.attacks.picture.draw_samples", lambda *_: 1 / 0)
        generate_adv.main(flags)
    assert "fgsm.png was not drawn" in capsys.readouterr().out
    samples = path.read_bytes()
    generate_adv.main(flags)
    assert path.read_bytes() == samples and path.with_suffix(".png").exists()


def test_adversarial_training_learns_its_own_samples(study):
    _, folder, flags = study
    flags = [*flags, "--lr_rate", "0.003", "--epoch", "12"]
    fintune_adv.main([*flags, "--attack", "fgsm,pgd"])
    original = load_classifier(folder)
    for name in ("fgsm", "pgd"):
        tuned = folder / f"tuned/at-{name}_lr0.003_run0/model.012.weights.h5"
        provenance = attributes(tuned)
        assert provenance["method"] == f"at-{name}" and provenance["run"] == 0
        samples = arrays_of(folder / f"adv/{name}.h5")
        rows = (samples["split"] == 0) & samples["success"]
        images = samples["image"][rows]
        labels = samples["label"][rows]
        assert (predict(original, images).argmax(axis=1) != labels).all()
        model = load_classifier(folder)
        model.load_weights(tuned)
        assert (predict(model, images).argmax(axis=1) == labels).mean() > 0.5
    # Tuning for pgd began from the original, not from what fgsm had made of it.
    folder_alone = folder / "tuned/at-pgd_lr0.003_run0"
    folder_alone.rename(folder / "together")
    fintune_adv.main([*flags, "--attack", "pgd"])
    ends = [load_classifier(folder) for _ in range(2)]
    for model, where in zip(ends, (folder_alone, folder / "together"), strict=True):
        model.load_weights(where / "model.012.weights.h5")
    for alone, together in zip(*(model.get_weights() for model in ends), strict=True):
        np.testing.assert_array_equal(alone, together)
