"""About how long a study takes, as the workflow says before it begins."""

import json

import h5py
import pytest
from dry_runs import ONE, counts

from dare.workflow import cost

pytest_plugins = ["dry_runs"]

CONFIG = {
    "epochs": 30, "seeds": [0], "control_seeds": [], "limit": 7000, "samples": 100, "cw_steps": 40,
    "attacks": ["fgsm", "cw"], "adaptive": False, "adaptive_methods": [], "adaptive_images": 50,
    "methods": ["dare", "at-pgd"], "precision": None,
}  # fmt: skip
TUNED = {
    "dare": (5, {"per": [0.5, 0.95], "lr_rate": [1e-3, 1e-4, 1e-5], "run": [0]}),
    "at-pgd": (10, {"lr_rate": [1e-4], "run": [0]}),
}


def test_the_parts_of_a_cost():
    """30 epochs of DARE on mined images, 10 of at-pgd on samples."""
    parts = cost.cost(CONFIG, 3500, TUNED)
    expected = {"training": 30, "attacks": 104 / 35}
    expected |= {"tuning": 0.8 * 30 + 2 * 100 * 10 / 3500, "scores": 700 * 40 / 3500}
    assert parts == pytest.approx(expected)
    changed = cost.cost(CONFIG | {"control_seeds": [1], "cw_steps": None}, 3500, TUNED)
    assert changed == pytest.approx(expected | {"training": 60, "attacks": 2504 / 35})
    shared = cost.cost(CONFIG | {"control_seeds": [0, 1]}, 3500, TUNED)  # seed 0 is trained once
    assert shared["training"] == 60
    rounded = cost.cost(CONFIG, 3500, TUNED, "bfloat16")
    assert rounded == {part: n * (1 if part == "training" else 2) for part, n in parts.items()}


@pytest.mark.parametrize(
    "asked, models", [([], 2 + 1 + 3), (["dare"], 2), (["original", "at-pgd", "dare-s"], 2)]
)
def test_adaptive_attacks_cost(asked, models):
    """Two settings of dare, one of at-pgd, and the three checkpoints that nothing tunes."""
    config = CONFIG | {"adaptive": True, "adaptive_methods": asked}
    more = cost.cost(config, 3500, TUNED)["scores"] - cost.cost(CONFIG, 3500, TUNED)["scores"]
    assert more == pytest.approx(75 * 50 * models / 3500)


def test_a_dry_run_says_what_is_to_come(dry_run, home):
    """With the time, once epochs were timed; not of studies that have been scored."""
    data, scored = home / "data/digits", home / "models/digits_lenet_seed1"
    study = home / "models/digits_lenet_seed0"
    for folder in (data, study / "checkpoints", scored):
        folder.mkdir(parents=True)
    settings = ("--config", "seeds=0,1,2", "adaptive=false")
    assert "as long as" not in dry_run(*settings)[1]  # the number of images is not known
    (data / "info.json").write_text(json.dumps({"images": {"train": 700}}))
    (study / "log.csv").write_text("epoch,seconds\n1,90.0\n2,30.0\n3,36.0\n")
    with h5py.File(study / "checkpoints/model.001.weights.h5", "w") as file:
        file.attrs["precision"] = "bfloat16"
    (scored / "robustness.csv").touch()
    done, text = dry_run(*settings)
    assert done and counts(text)["train"] == 3 * ONE["train"]
    lines = [line for line in text.splitlines() if "as long as" in line]
    assert [line.split()[0] for line in lines] == ["digits_lenet_seed0", "digits_lenet_seed2"]
    # 11 methods tune for 5 epochs, one for 1 and five for 10; 500 samples of all attacks.
    tuning = 0.8 * 56 + 2 * 500 * 50 / 700
    rest = 500 * 209 / 700 + tuning + 700 * 106 / 700
    assert f"as long as {40 + 2 * rest:.0f} epochs of its training (training 40" in lines[0]
    assert lines[0].endswith(f"or {cost.clock(36 * (40 + 2 * rest))} at its 36.0 s an epoch")
    assert f"as long as {40 + rest:.0f} epochs" in lines[1]
    assert lines[1].endswith("bfloat16, all but the training takes 2 times as many)")


def test_a_limit_that_prepare_will_refuse(dry_run):
    """It is refused there, with a sentence, and breaks nothing here."""
    assert dry_run("--config", "limit=1")[0]


@pytest.mark.parametrize(
    "seconds, text",
    [(20, "under a minute"), (3540, "59 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min")],
)
def test_clock(seconds, text):
    assert cost.clock(seconds) == text
