"""The Snakefile: the jobs of every sweep, what it refuses, and all of it as a cluster runs it."""

import os
import re
import sys
from shlex import quote

import pytest
from conftest import ROOT
from dry_runs import AT, CONTROLS, DARE, OF_RATE, OF_RUN, ONE, SLICED, counts, jobs

import train.shared.paths
from adv import ATTACKS

pytest_plugins = ["dry_runs"]


def twice(methods):
    return dict.fromkeys(methods, 2)


def without(*methods):
    return dict.fromkeys(methods, 0)


def studies(n):
    return {rule: n * one for rule, one in ONE.items() if rule not in ("prepare", "tables", "all")}


# What changes in the jobs of the demonstration, counted by hand.
SWEEPS = {
    "": {},
    "methods=dare-s,controls": {"mine": 1} | without(*DARE, *AT) | {"dare-s": 1},
    "methods=control-swa": without("slice", *DARE, *CONTROLS, *AT) | {"mine": 1, "control-swa": 1},
    "heldout_attacks=null": {"attack_held_out": 0},
    "adv_lr_rate=1e-3,1e-4": twice(AT),
    # conv3 comes first: the probabilities that mining it keeps serve predictions, too
    "methods=dare-last": without(*DARE, *CONTROLS, *AT) | {"dare-last": 1},
    "attacks=fgsm,pgd": {"attack": 2} | {f"at-{attack}": 0 for attack in ("bim", "cw", "jsma")},
    # adversarial training on an attack that nobody scores needs its samples all the same
    "attacks=fgsm,pgd methods=at-cw": without("slice", "mine", *DARE, *CONTROLS, *AT)
    | {"attack": 3, "at-cw": 1},
    "control_seeds=1,2": {"train": 3},
    # 2 layers, slices, rates and runs; dare-released has a rate of its own; besides the layers
    # predictions is mined
    "choose_layer=conv2,conv3 per=0.5,0.95 lr_rate=1e-3,1e-4 runs=0,1": {
        **{"mine": 3, "slice": 2, "dare": 16, "dare-released": 8, "dare-s": 8, "dare-last": 8},
        **{"dare-sl": 4, "control-self": 16, "control-random": 16, "control-finetune": 8},
        **{"control-batchnorm": 4, "control-swa": 1},
        **twice(AT),
    },
}


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep or "demo")
def test_jobs_of_a_sweep(dry_run, sweep):
    done, text = dry_run("--config", *sweep.split())
    assert done, text
    assert counts(text) == {rule: n for rule, n in (ONE | SWEEPS[sweep]).items() if n}


def test_names_reach_the_scripts_as_they_are(dry_run):
    names = ["my leaves", "it's", "a&b", "a;touch x", "$HOME", "yes", "null", "NA", "nan"]
    _, text = dry_run("--config", f"dataset={','.join(names)}", f"record=r.{names[0]}")
    for rule in "prepare", "train", "mine", "dare":
        commands = [job["command"] for job in jobs(text, rule)]
        given = [re.search(r"--dataset (.*?)( --model .*)?$", c)[1] for c in commands]
        assert {*given} == {quote(name) for name in names}
    (tables,) = jobs(text, "tables")
    record = f"--record {quote(f'r.{names[0]}')} --dataset {quote(','.join(names))} --model "
    assert record in tables["command"]


def test_a_folder_that_cannot_be_written(home, monkeypatch, dry_run):
    (home / "file").touch()
    monkeypatch.setattr(train.shared.paths, "HOME", home / "file/home")
    done, text = dry_run()
    assert not done and re.search(r"^\S+/file/home cannot be written: .*\.$", text, re.MULTILINE)


def test_jobs_of_the_study(dry_run):
    """AlexNet on 3 data sets with 2 seeds; one cell of VGG16, to be recorded."""
    study, vgg = (str(ROOT / f"dare/workflow/{name}.yaml") for name in ("study", "study_vgg"))
    done, text = dry_run("--configfile", study)
    assert done, text
    assert counts(text) == ONE | studies(6) | {"prepare": 3}
    assert all("--images 8000" in job["command"] for job in jobs(text, "mine"))
    done, text = dry_run("--configfile", study, vgg, "--config", "dataset=svhn", "record=main")
    assert done and counts(text) == ONE, text
    (tables,) = jobs(text, "tables")
    assert tables["command"].endswith("dare/tables.py --record main --dataset svhn --model vgg16")


def test_jobs_of_the_papers_grid(dry_run):
    """3 data sets, 3 networks, 3 seeds and 3 runs, each with its own layer and rates."""
    done, text = dry_run("--configfile", str(ROOT / "dare/workflow/paper.yaml"))
    assert done, text
    assert counts(text) == ONE | studies(27) | {rule: 81 for rule in OF_RUN} | {"prepare": 3}
    mined = {job["output"][0] for job in jobs(text, "mine")}
    for study, layer in {
        "cifar10_alexnet": "conv5",
        "cifar10_vgg16": "block5_conv3_relu",
        "svhn_vgg19": "block5_conv4_relu",
        "fashion_mnist_alexnet": "conv5",
        "fashion_mnist_vgg16": "block4_conv3_relu",
        "fashion_mnist_vgg19": "block5_conv3_relu",
    }.items():
        files = {f for f in mined if f.startswith(f"models/{study}_seed2/")}
        folder = f"models/{study}_seed2"
        assert files == {f"{folder}/ats_{layer}.h5", f"{folder}/ats_predictions.h5"}
    rates = {
        re.search(r"([^_]+)_seed\d/tuned/([^_]+)_.*lr(.*)_run\d/", *job["output"]).groups()
        for job in jobs(text, OF_RUN - {*AT, "control-batchnorm"})
    }
    own = {"vgg16": "1e-06", "vgg19": "1e-06", "alexnet": "0.0001"}
    released = {"vgg16": "1e-06", "vgg19": "1e-06", "alexnet": "0.01"}
    assert rates == {(model, method, own[model]) for model in own for method in OF_RATE} | {
        (model, "dare-released", released[model]) for model in own
    }
    assert all("--epochs 200" in job["command"] for job in jobs(text, "train"))
    attacks = [job["command"] for job in jobs(text, "attack")]
    assert all("--samples 5000" in c and "--steps" not in c for c in attacks)
    assert not any("--adaptive" in job["command"].split() for job in jobs(text, "score"))


# Folders of tuned models and the scripts that make them.
SCRIPTS = {
    "dare_conv2_per0.5_lr1e-05_run2": "dare.py",
    "dare-released_conv2_per0.5_batches1_lr0.01_run2": "dare.py --batches 1",
    "dare-s_conv2_lr1e-05_run2": "dare-s.py",
    "dare-sl_lr1e-05_run2": "dare-sl.py",
    "dare-last_predictions_per0.5_lr1e-05_run2": "dare-last.py",
    "control-self_conv2_per0.5_lr1e-05_run2": "controls.py --control self",
    "control-random_conv2_per0.5_lr1e-05_run2": "controls.py --control random",
    "control-batchnorm_conv2_run2": "controls.py --control batchnorm",
    "control-finetune_conv2_lr1e-05_run2": "controls.py --control finetune",
    "control-swa": "controls.py --control swa",
    **{f"at-{attack}_lr0.001_run2": f"fintune_adv.py --attack {attack}" for attack in ATTACKS},
}


def test_commands_say_what_the_paths_say(dry_run):
    sweep = "choose_layer=conv2 per=0.5 lr_rate=1e-5 adv_lr_rate=1e-3 runs=2 seeds=1 limit=300"
    _, text = dry_run("--config", *sweep.split(), "adaptive=false", "source=my files")
    flags = {"conv2": "--choose_layer conv2", "per0.5": "--per 0.5", "run2": "--run 2"}
    flags |= {f"lr{rate}": f"--lr_rate {rate}" for rate in ("1e-05", "0.01", "0.001")}
    expected = {}
    for folder, script in SCRIPTS.items():
        method, *settings = folder.split("_")
        epoch = 1 if method == "control-swa" else 10 if method.startswith("at-") else 5
        command = [script, "--dataset digits --model lenet --seed 1"]
        command += [flags[name] for name in settings if name in flags] + [f"--epoch {epoch}"]
        path = f"models/digits_lenet_seed1/tuned/{folder}/model.{epoch:03d}.weights.h5"
        expected[path] = " ".join(command)
    assert expected == {
        job["output"][0]: re.split("/dare/|/adv/", job["command"])[-1]
        for job in jobs(text, OF_RUN | {"control-swa"})
    }
    (prepare,) = jobs(text, "prepare")
    assert prepare["command"].endswith(
        f"--dataset digits --source '{os.getcwd()}/my files' --limit 300"
    )
    assert "--adaptive" not in jobs(text, "score")[0]["command"].split()
    assert "--adaptive" in jobs(dry_run()[1], "score")[0]["command"].split()


def test_what_waits_for_what(dry_run):
    sweep = "per=0.5,0.95 lr_rate=1e-3,1e-4 runs=0,1 choose_layer=conv2,conv3 seeds=0,1"
    methods = "methods=dare-s,controls,at-bim"
    _, text = dry_run("--config", *sweep.split(), methods)
    folder = "models/digits_lenet_seed0"

    def reads(method, settings, epoch=5):
        """What the only job for these settings reads besides the checkpoint."""
        path = f"{folder}/tuned/{method}{settings}/model.{epoch:03d}.weights.h5"
        (found,) = [job["input"] for job in jobs(text, method) if path in job["output"]]
        assert f"{folder}/checkpoints/model.040.weights.h5" in found
        return {name.removeprefix(f"{folder}/") for name in found if "checkpoints" not in name}

    settings = "_conv2_per0.5_lr0.0001_run1"
    targets, slices = "ats_conv2.h5", "slice_0.5.h5"
    assert reads("control-self", settings) == {targets, slices}
    assert reads("dare-s", "_conv2_lr0.0001_run1") == {targets}
    assert reads("control-finetune", "_conv2_lr0.0001_run1") == {targets}
    assert reads("control-batchnorm", "_conv2_run1") == {targets}
    assert reads("control-swa", "", 1) == {"ats_conv3.h5"}
    assert reads("at-bim", "_lr0.0001_run1", 10) == {"adv/bim.h5"}
    mine = {job["output"][0]: job["input"] for job in jobs(text, "mine")}
    assert f"{folder}/ats_conv2.h5" in mine[f"{folder}/ats_conv3.h5"]
    assert f"{folder}/ats_conv2.h5" not in mine[f"{folder}/ats_conv2.h5"]
    score = {job["output"][0]: job["input"] for job in jobs(text, "score")}
    needed = score[f"{folder}/robustness.csv"]
    assert {f"models/digits_lenet_seed{s}/checkpoints/model.040.weights.h5" for s in (0, 1)} < {
        *needed
    }
    controls = {path for job in jobs(text, CONTROLS) for path in job["output"]}
    assert {path for path in needed if "/control-" in path} == {c for c in controls if "seed0" in c}
    assert {f"{folder}/adv/{attack}.h5" for attack in ATTACKS} < {*needed}
    assert f"{folder}/tuned/at-bim_lr0.0001_run1/model.010.weights.h5" in needed
    assert f"{folder}/tuned/dare-s_conv3_lr0.0001_run1/model.005.weights.h5" in needed


REFUSED = {
    "modle=vgg16": r"modle is unknown: choose from dataset, model, .*",
    "methods=dare,dare-x": r"methods is 'dare-x', but it takes methods among dare, dare-s, .*",
    "model=vgg16 dataset=leaves": r"model=vgg16 has a layer that depends on the size .*",
    "dataset=../etc": r"dataset is '../etc', but it takes names of data sets, each a plain .*",
    "per=0.5,1.5": r"per is 1.5, but it takes shares above 0 and up to 1, each once, or null",
    "runs=0,0": r"runs is \[0, 0\], but it takes whole numbers from 0 to 2147483647, each once",
    "epochs=1.5": r"epochs is 1.5, but it takes a whole number of 2 or more",
}


@pytest.mark.parametrize("config", REFUSED)
def test_refused(dry_run, config):
    done, text = dry_run("--config", *config.split())
    assert not done and "Traceback" not in text
    assert re.search(rf"^--config {REFUSED[config]}\.$", text, re.MULTILINE), text


@pytest.mark.parametrize(
    ("made", "key"), [("checkpoints", "epochs"), ("tuned/dare-s_conv3_lr0.001_run0", "tune_epochs")]
)
def test_fewer_epochs_than_were_made_are_refused(home, dry_run, made, key):
    """The weights of the smaller number would be taken for the last ones."""
    folder = home / "models/digits_lenet_seed0" / made
    folder.mkdir(parents=True)
    (folder / "model.020.weights.h5").touch()
    done, text = dry_run("--config", f"{key}=19")
    assert not done and f"{key}=19, but" in text and "ask for 20" in text, text
    assert dry_run("--config", f"{key}=20")[0]


# What is there, what is asked for then, and the jobs of that besides scores and tables.
CHANGES = [
    ("", "", {}),
    # A new slice and what hangs on it, no new training.
    ("", "per=0.5", {"slice": 1} | dict.fromkeys(SLICED, 1)),
    ("", "tune_epochs=6", dict.fromkeys({*DARE, *CONTROLS} - {"control-swa"}, 1)),
    ("adaptive=false", "adaptive=true", {}),
]


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize(("before", "after", "left"), CHANGES)
def test_what_is_left_to_do(home, dry_run, monkeypatch, before, after, left, remembered):
    """Also where Snakemake remembers nothing: the scripts made the files, or .snakemake is lost."""
    _, text = dry_run("--config", *before.split())
    for rule in ONE:
        for path in [home / path for job in jobs(text, rule) for path in job["output"]]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if path.suffix == ".json" else "")
            os.utime(path, (1, 1))
    if remembered:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "true")  # jobs that do nothing: their files are there
            done, text = dry_run("--config", *before.split(), only="--forceall")
        assert done, text
    done, text = dry_run("--config", *after.split())
    assert done, text
    if before == after:
        assert "Nothing to be done" in text
    else:
        assert counts(text) == left | {"score": 1, "tables": 1, "all": 1}


def test_a_report_that_is_there_hides_no_study(home, dry_run):
    (home / "models").mkdir()
    (home / "models/report.html").touch()
    _, text = dry_run("--config", "dataset=leaves", "source=leaves")
    assert counts(text) == ONE


def test_resources_and_outputs(dry_run):
    """What every job asks a cluster for: memory in MB, minutes, GPUs."""
    sizes = ["model=vgg16,lenet", "dataset=cifar10", "epochs=200", "gpu=1"]
    _, text = dry_run("--config", *sizes)
    for rule in ONE.keys() - {"all"}:
        for job in jobs(text, rule):
            names = {resource.split("=")[0] for resource in job["resources"]}
            assert names >= {"mem_mb", "runtime"}
            assert ("gpu" in names) == (rule not in ("prepare", "tables"))
    # No output is deleted before its step runs again.
    outputs = re.findall(r"^    output: (.*)$", text, re.MULTILINE)
    assert all(path.endswith(" (update)") for paths in outputs for path in paths.split(", "))
