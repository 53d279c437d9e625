"""Several steps in one process: the same commands, files and weights as one process for each."""

import os
import shutil
import subprocess
import sys
from shlex import split

import numpy as np
import pytest
from conftest import ROOT
from dry_runs import OF_RUN, SEPARATE, counts, jobs

from dare.workflow import one_process
from train.shared.checkpoints import load_classifier, load_weights
from train.shared.flags import UserError

pytest_plugins = ["dry_runs"]

SWEEP = "per=0.5,0.95 lr_rate=1e-3,1e-4 choose_layer=conv2,conv3 runs=0,1 seeds=0,1"
TUNED = [*OF_RUN, "control-swa"]
FAMILIES = ("dare", "ablations-of-dare", "controls", "adversarial-training")


@pytest.mark.parametrize("methods", ["", "methods=control-noise,at-pgd"])
def test_the_same_commands_and_files(dry_run, methods):
    """Also for methods that need DARE, which nobody asks for."""
    sweep = [*SWEEP.split(), *methods.split()]
    _, separate = dry_run("--config", SEPARATE, *sweep)
    done, together = dry_run("--config", *sweep)
    assert done, together
    rules = [f"{family}_digits_lenet" for family in FAMILIES]
    found, expected = jobs(together, rules), jobs(separate, TUNED)
    assert len(found) == 2 * (3 if methods else 4)  # two seeds
    commands = [c for job in found for c in split(job["command"].split("one_process.py ")[1])]
    assert sorted(commands) == sorted(job["command"].rsplit(f"{ROOT}/", 1)[1] for job in expected)
    for kind in ("input", "output"):
        paths = {path for job in found for path in job[kind]}
        assert paths == {path for job in expected for path in job[kind]}
    others = {rule: n for rule, n in counts(separate).items() if rule not in TUNED}
    assert {rule: n for rule, n in counts(together).items() if rule not in rules} == others


def test_the_same_weights(study):
    """What ran before in the process leaves no trace in a tuned model."""
    home, folder, flags = study
    rate = ["--lr_rate", "0.001", "--epoch", "2"]
    commands = {
        "dare": ["dare/dare.py", *flags, *rate],
        "dare-s": ["dare/dare-s.py", *flags, *rate, "--choose_layer", "conv2"],
        "at-fgsm": ["adv/fintune_adv.py", *flags, *rate, "--attack", "fgsm"],
    }
    together = home.with_name("together")
    shutil.copytree(home, together)
    environment = os.environ | {"DARE_HOME": str(together)}
    script = str(ROOT / "dare/workflow/one_process.py")
    all_commands = [" ".join(command) for command in commands.values()]
    all_commands[0] += " --choose_layer conv2"
    subprocess.run([sys.executable, script, *all_commands], env=environment, check=True)
    for name in ("dare-s", "at-fgsm"):
        script, *arguments = commands[name]
        environment = os.environ | {"DARE_HOME": str(home)}
        command = [sys.executable, str(ROOT / script), *arguments]
        subprocess.run(command, env=environment, check=True)
        (path,) = (folder / "tuned").glob(f"{name}_*/model.002.weights.h5")
        classifier = load_classifier(folder)
        alone = load_weights(classifier, path).get_weights()
        path = together / path.relative_to(home)
        for a, b in zip(alone, load_weights(classifier, path).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_first_error_ends_it(study, monkeypatch):
    _, folder, _ = study
    monkeypatch.setattr(sys, "argv", [])
    wrong = "dare/dare.py --dataset toy --model tiny --per 2"
    with pytest.raises(UserError, match="2 is not a share"):
        one_process.main([wrong, "dare/controls.py --dataset toy --model tiny --control swa"])
    assert sys.argv[0].endswith("dare/dare.py")  # the script that the message names
    assert not (folder / "tuned").exists()
