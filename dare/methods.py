"""The table of methods, which the workflow, the tables and the labels of the figures all read.

A new method is a row here and a script, or a function in dare/controls.py, that makes it.
"""

from dataclasses import dataclass, field

from adv import ATTACKS
from train import params
from train.shared.paths import tuned_name

# Families of methods, in the order of the tables.
FAMILIES = ("original", "dare", "ablations of dare", "adversarial training", "controls")
LAST_LAYER = "predictions"  # the last layer of every network in train/models


@dataclass(frozen=True)
class Method:
    """How a method is made, and what a model of it depends on.

    family: one of FAMILIES.
    script: the command that tunes it; None: an existing checkpoint, which is only scored.
    reads: what the script reads besides the checkpoint: "slice", "targets" (of the chosen layer),
        "mined images" (of any mined layer) or "samples".
    settings: the settings that the name of its folder spells out; each is a flag of the script.
    fixed: settings that the method itself decides; no flags.
    epochs, rate: the keys of the workflow's configuration that hold them; epochs may be a number.
    trains_on_samples: whether it is tuned on adversarial samples.
    """

    family: str
    script: str | None = None
    reads: tuple = ()
    settings: tuple = ()
    fixed: dict = field(default_factory=dict)
    epochs: str | int = "tune_epochs"
    rate: str = "lr_rate"
    trains_on_samples: bool = False

    @property
    def has_runs(self):
        """Whether every run tunes a model of its own."""
        return "run" in self.settings


LAYER, PER, RATE, RUN = DARE = "choose_layer", "per", "lr_rate", "run"  # the settings of DARE


def _ablation(name, reads, settings, **more):
    return Method("ablations of dare", f"dare/{name}.py", reads, settings, **more)


def _control(name, reads, settings, **more):
    return Method("controls", f"dare/controls.py --control {name}", reads, settings, **more)


def _adversarial_training(attack):
    return Method(
        "adversarial training", f"adv/fintune_adv.py --attack {attack}", ("samples",), (RATE, RUN),
        epochs="adv_epochs", rate="adv_lr_rate", trains_on_samples=True,
    )  # fmt: skip


METHODS = {
    "original": Method("original"),
    "dare": Method("dare", "dare/dare.py", ("slice", "targets"), DARE),
    "dare-s": _ablation("dare-s", ("targets",), (LAYER, RATE, RUN)),
    "dare-sl": _ablation("dare-sl", ("mined images",), (RATE, RUN)),
    "dare-last": _ablation(
        "dare-last", ("slice", "targets"), (PER, RATE, RUN), fixed={LAYER: LAST_LAYER}
    ),
    "dare-released": Method(
        "ablations of dare", "dare/dare.py --batches 1", ("slice", "targets"), DARE,
        fixed={"batches": 1}, rate="released_lr_rate",
    ),
    "control-self": _control("self", ("slice", "targets"), DARE),
    "control-random": _control("random", ("slice", "targets"), DARE),
    "control-batchnorm": _control("batchnorm", ("targets",), (LAYER, RUN)),
    "control-finetune": _control("finetune", ("targets",), (LAYER, RATE, RUN)),
    "control-swa": _control("swa", ("mined images",), (), epochs=1),
    "control-seed": Method("controls"),
    **{f"at-{attack}": _adversarial_training(attack) for attack in ATTACKS},
}  # fmt: skip

CONTROLS = tuple(
    name.removeprefix("control-")
    for name, method in METHODS.items()
    if method.family == "controls" and method.script
)


def default_rate(method, model):
    """The learning rate of a method for a network unless a number is given (train/params.py)."""
    kind = METHODS[method].rate
    if kind == "adv_lr_rate":
        return params.adv_lr_rate
    return params.tuning_rate(model, released=kind == "released_lr_rate")


def unseen_splits(*methods):
    """The splits of the samples that none of the methods was tuned on.

    Nothing is selected, so only adversarial training has seen any: the training part.
    """
    trained = any(METHODS[method].trains_on_samples for method in methods)
    return ("validation", "test") if trained else ("training", "validation", "test")


def folder_pattern(name):
    """Name of a method's folder, with its settings as {wildcards}: "dare-s_{choose_layer}_..."."""
    method = METHODS[name]
    wildcards = {setting: f"{{{setting}}}" for setting in method.settings}
    return tuned_name(name, **wildcards, **method.fixed)
