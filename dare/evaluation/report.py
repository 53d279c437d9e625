"""The report: tables and figures in one file, by report.html.j2. Called by tables.py."""

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import markupsafe
import matplotlib.pyplot as plt
import pandas as pd

from dare.evaluation import figures
from dare.evaluation.runs import label_rows, of_network
from train.artifacts import atomic_write, attributes, write_text

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Section:
    """A table of strings with its title and a note; `folded`: only a title until it is opened."""

    title: str
    table: pd.DataFrame
    note: str = ""
    folded: bool = False


@dataclass
class Content:
    """What the report shows: sentences, warnings, {(dataset, model): [Section]}, [Section].

    overview, claims: the section and the table of claims_table, of several networks.
    """

    sentences: list
    warnings: list
    networks: dict
    common: list
    command: str
    overview: list = field(default_factory=list)
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass
class Picture:
    caption: str
    source: str  # a data URI
    picture: bool = False  # of samples: shown in its own size


@dataclass
class OfStudy:
    name: str
    figures: list = field(default_factory=list)
    sections: list = field(default_factory=list)


def table_html(table):
    """A table of strings by pandas' writer; ** around a text makes it bold."""
    text = table.to_html(index=False, border=0, escape=True)
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


def commands(folder, versions=False):
    """The recorded commands of a study: the last run of each stage that did its work."""
    if (folder / "commands.csv").exists():  # in dare/results
        table = pd.read_csv(folder / "commands.csv", dtype=str)
        return table if versions else table[["stage", "command", "start", "seconds", "memory (GB)"]]
    found = {}
    for path in sorted(folder.glob("**/*.log")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # of a killed process
                continue
            if entry.get("ended") == "done":
                found[path, entry["stage"]] = entry
    rows = [
        {"stage": entry["stage"], "command": command_of(entry), "start": entry["start"]}
        | {"seconds": f"{entry['seconds']:g}", "memory (GB)": f"{entry['peak_memory_gb']:g}"}
        | (entry["settings"] | entry["packages"] | {"device": entry["device"]} if versions else {})
        for entry in sorted(found.values(), key=lambda entry: entry["start"])
    ]
    return pd.DataFrame(rows)


def command_of(entry):
    """The command of a log entry, its script as seen from the repository."""
    script, *flags = entry["command"]
    script = Path(script)
    inside = script.is_absolute() and script.is_relative_to(ROOT)
    return " ".join(["python", str(script.relative_to(ROOT) if inside else script), *flags])


class Saved:
    """Saves figures as PNG and SVG in a folder and gives them back as Pictures."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, caption, figure):
        for kind in "png", "svg":
            with atomic_write(self.folder / f"{name}.{kind}", f".{kind}") as temporary:
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(temporary, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")  # as laid out for the first
        plt.close(figure)
        return Picture(caption, data_uri(self.folder / f"{name}.svg"))


def data_uri(path):
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def of_one_network(save, cells, dataset, model, recorded):
    """The figures of a network: robustness, trade-off, adaptive curves."""
    here, name = of_network(cells, dataset, model), f"{dataset}_{model}"
    rule = (
        "epochs within 1 point of clean accuracy where there are any"
        if recorded
        else "the paper's runs"
    )
    found = [
        save(
            f"robustness_{name}",
            f"Empirical robustness of {model} on {dataset}, {rule}, with 95% intervals (several "
            f"runs: standard deviation). Hollow: loses more than 1 point of clean accuracy.",
            figures.dots(here),
        ),
        save(
            f"trade_off_{name}",
            f"Clean accuracy and mean robustness of {model} on {dataset}, {rule}. At the left "
            f"edge: more than {figures.FARTHEST} points below the best.",
            figures.trade_off(here),
        ),
    ]
    table = recorded and adaptive_table(recorded, dataset, model)
    if table is not None:
        caption = (
            f"{model} on {dataset}, every model attacked itself: worst case over the attacks. An "
            f"image on which no attack could start does not count as robust."
        )
        found.append(save(f"adaptive_{name}", caption, figures.adaptive_curves(table)))
    return found


def of_all_networks(save, claims):
    """The figure of the claims, where there are several networks."""
    caption = (
        "Claims: DARE minus the other method, in points, with 95% intervals. Small: a "
        "network and data set; hollow: the two cannot be compared there. Black: over all that can."
    )
    return [save("claims", caption, figures.claims(claims))] if len(claims) else []


def adaptive_table(recorded, dataset, model):
    """The worst cases of adaptive.csv of a network's compared models, or None."""
    paths = [folder / "adaptive.csv" for folder in recorded.folders.values()]
    tables = [pd.read_csv(path, dtype={"sha256": str}) for path in paths if path.exists()]
    if not tables:
        return None
    table = of_network(pd.concat(tables, ignore_index=True), dataset, model)
    compared = set(recorded.compared()["sha256"])
    table = table[(table["attack"] == "worst") & table["sha256"].isin(compared)]
    return table.assign(label=label_rows(table)) if len(table) else None


def of_one_study(save, folder):
    """History, slices, samples and recorded commands of a study."""
    study = OfStudy(folder.name)
    if (folder / "log.csv").exists():
        caption = "Training, and the best epochs of the mined images."
        study.figures.append(save(f"history_{folder.name}", caption, figures.history(folder)))
    for path in sorted(folder.glob("slice_*.h5")):
        caption = f"Synapses in the slices of {path.name}, by layer."
        figure = save(f"{path.stem}_{folder.name}", caption, figures.slice_shares(path))
        study.figures.append(figure)
    for path in sorted((folder / "adv").glob("*.png")):
        known = attributes(path.with_suffix(".h5"))
        settings = [
            f"{k} {known[k]}" for k in ("samples", "mode", "epsilon", "steps") if k in known
        ]
        caption = f"Adversarial examples of {path.stem} ({', '.join(settings)})."
        study.figures.append(Picture(caption, data_uri(path), picture=True))
    recorded = commands(folder)
    if len(recorded):
        study.sections.append(Section("RecordedRuns commands and times", recorded, folded=True))
    return study


def write(target, content, cells, recorded=None):
    """Write figures/ and report.html into `target`; returns the report's path.

    content: Content. cells: of robustness_table. recorded: of dare/runs.py, None for the paper's.
    """
    save = Saved(target / "figures")
    networks = {n: of_one_network(save, cells, *n, recorded) for n in content.networks}
    folders = recorded.folders.values() if recorded else ()
    studies = [of_one_study(save, folder) for folder in folders]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["table_html"] = table_html
    title = {"models": "all recorded runs", "paper": "the paper's runs"}.get(
        target.name, target.name
    )
    text = environment.get_template("report.html.j2").render(
        title=title, content=content, overview=of_all_networks(save, content.claims),
        figures=networks, studies=studies,
    )  # fmt: skip
    path = target / "report.html"
    write_text(path, text + "\n")
    return path
