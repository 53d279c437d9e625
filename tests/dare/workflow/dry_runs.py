"""Dry runs of the graph, and the jobs that they plan."""

import re

import pytest
from conftest import ROOT
from snakemake.cli import args_to_api, parse_args

import dare.methods
from adv import ATTACKS

# Without the profile, which hides the jobs that the tests count.
SNAKEFILE = ["--snakefile", str(ROOT / "dare/Snakefile"), "--workflow-profile", "none"]


@pytest.fixture
def dry_run(home, monkeypatch, capfd):
    """flags of snakemake -> (whether it succeeded, what it printed), in this process.

    only: --dry-run, or a flag of a run that makes something.
    """
    monkeypatch.chdir(home)

    def run(*flags, only="--dry-run"):
        parser, args = parse_args([*SNAKEFILE, "--cores", "2", only, "--printshellcmds", *flags])
        done = args_to_api(args, parser)
        return done, "".join(capfd.readouterr())

    return run


def counts(text):
    """{rule: number of its jobs} of a dry run."""
    table = text.split("Job stats:")[1].split("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^([\w-]+) +(\d+)$", table, re.MULTILINE)}


def jobs(text, rule):
    """[{input, output, resources, command}] of the jobs of a rule, or of some, in a dry run."""
    rules = [rule] if isinstance(rule, str) else rule
    found = []
    for job in re.split(r"^(?=rule [\w-]+:$)", text, flags=re.MULTILINE):
        if job.startswith(tuple(f"rule {rule}:" for rule in rules)):
            about = dict(re.findall(r"^    (\w+): (.*)$", job, re.MULTILINE))
            command = re.search(r"^Shell command: (.*)$", job, re.MULTILINE).group(1)
            files = {k: about.get(k, "").replace(" (update)", "") for k in ("input", "output")}
            files = {k: [f for f in v.split(", ") if f] for k, v in files.items()}
            resources = about["resources"].split(", ")
            found.append(files | {"command": command, "resources": resources})
    return found


CONTROLS = [f"control-{name}" for name in dare.methods.CONTROLS]
AT = [f"at-{attack}" for attack in ATTACKS]
DARE = ["dare", "dare-s", "dare-sl", "dare-last", "dare-released"]
SLICED = ["dare", "dare-last", "dare-released", "control-self", "control-random"]
OF_RATE = {*DARE, *CONTROLS} - {"dare-released", "control-batchnorm", "control-swa"}
OF_RUN = {*DARE, *CONTROLS, *AT} - {"control-swa"}

ONE = {"prepare": 1, "train": 1, "attack": 5, "attack_held_out": 2, "slice": 1, "mine": 2}
ONE |= {"score": 1, "tables": 1}
ONE |= dict.fromkeys([*DARE, *CONTROLS, *AT], 1) | {"all": 1}
