"""What a study takes, as the graph says before it begins."""

import json

import pytest
from dry_runs import ONE, counts

from dare.workflow import cost

pytest_plugins = ["dry_runs"]

CONFIG = {
    "epochs": 30, "seeds": [0], "control_seeds": [], "limit": 7000, "samples": 100, "cw_steps": 40,
    "attacks": ["fgsm", "cw"], "adaptive": False, "adaptive_methods": [], "adaptive_images": 50,
    "methods": ["original", "dare"], "precision": None,
}  # fmt: skip


def test_the_parts_of_a_cost():
    tuned = {"dare": 15, "at-pgd": 10}
    parts = cost.cost(CONFIG, 3500, tuned)
    expected = {"training": 30, "attacks": 104 / 35, "tuning": 13.2, "scores": 5}
    assert parts == pytest.approx(expected)
    changed = CONFIG | {"control_seeds": [1], "cw_steps": None, "adaptive": True}
    parts = cost.cost(changed, 3500, tuned)
    more = {"training": 60, "attacks": 2504 / 35, "scores": 5 + 75 * 2 * 50 / 3500}
    assert parts == pytest.approx(expected | more)
    rounded = cost.cost(changed, 3500, tuned, "bfloat16")
    assert rounded == {k: v * (1 if k == "training" else 2.5) for k, v in parts.items()}
    named = cost.cost(changed | {"adaptive_methods": ["dare"]}, 3500, tuned)
    assert named["scores"] == pytest.approx(5 + 75 * 50 / 3500)


def test_a_dry_run_says_what_is_to_come(dry_run, home):
    """With the time, once epochs were timed; not of studies that have been scored."""
    data, study, scored = (
        home / "data/digits",
        home / "models/digits_lenet_seed0",
        home / "models/digits_lenet_seed1",
    )
    for folder in (data, study, scored):
        folder.mkdir(parents=True)
    (data / "info.json").write_text(json.dumps({"images": {"train": 700}}))
    (study / "log.csv").write_text("epoch,seconds\n1,90.0\n2,30.0\n3,36.0\n")
    (study / "train.log").write_text('{"settings": {"precision": "bfloat16"}}\n{"stage": "cut o')
    (scored / "robustness.csv").touch()
    done, text = dry_run("--config", "seeds=0,1,2", "adaptive=false")
    assert done and counts(text)["train"] == 3 * ONE["train"]
    lines = [line for line in text.splitlines() if "computes as much" in line]
    assert [line.split()[0] for line in lines] == ["digits_lenet_seed0", "digits_lenet_seed2"]
    # 11 methods tune for 5 epochs, one for 1 and five for 10; 500 samples of all attacks.
    epochs = 40 + 2.5 * (500 * 209 / 700 + 0.8 * 56 + 0.12 * 50 + 106)
    assert f"about {epochs:.0f} epochs of its training (training 40" in lines[0]
    assert f"or {cost.clock(36 * epochs)} at its 36.0 s an epoch" in lines[0]
    assert "bfloat16" not in lines[0] and "if it trains in bfloat16" in lines[1]
    assert "an epoch" not in lines[1] and lines[1].endswith("keeps 146 checkpoints.")


@pytest.mark.parametrize(
    "seconds, text", [(20, "0 min"), (3540, "59 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min")]
)
def test_clock(seconds, text):
    assert cost.clock(seconds) == text
