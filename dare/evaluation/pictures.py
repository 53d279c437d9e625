"""Which figures the report shows, with their captions; figures.py draws them."""

import base64
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import pandas as pd

from dare.evaluation import figures
from dare.evaluation.runs import TEXTS, commands, of_network, with_labels
from dare.evaluation.sections import Section
from train.shared.artifacts import atomic_write, attributes


@dataclass
class Picture:
    """A figure of the report. source: a data URI. is_samples: shown in its own size."""

    caption: str
    source: str
    is_samples: bool = False


@dataclass
class StudyPictures:
    """What the report shows of one study."""

    name: str
    figures: list = field(default_factory=list)
    sections: list = field(default_factory=list)


class FigureFolder:
    """Saves figures as PNG and SVG in a folder, and returns them as Pictures."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, name, caption, figure):
        for kind in "png", "svg":
            with atomic_write(self.folder / f"{name}.{kind}", f".{kind}") as temporary:
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(temporary, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")  # the SVG gets the layout of the PNG
        plt.close(figure)
        return Picture(caption, data_uri(self.folder / f"{name}.svg"))


def data_uri(path):
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def network_pictures(folder, cells, dataset, model, recorded):
    """The figures of a network: robustness, trade-off and robust accuracy under attack.

    Args:
        folder: FigureFolder. cells: of robustness_table. recorded: RecordedRuns; None: the paper's.
    """
    cells = of_network(cells, dataset, model)
    name = f"{dataset}_{model}"
    rule = "at epochs within 1 point of clean accuracy where there are any"
    rule = rule if recorded else "in the paper's runs"
    pictures = [
        folder.save(
            f"robustness_{name}",
            f"Empirical robustness of {model} on {dataset}, {rule}, with 95% intervals (for "
            f"several runs the standard deviation, except of the mean). Hollow: loses more than 1 "
            f"point of clean accuracy.",
            figures.robustness(cells),
        )
    ]
    if (cells["attack"] == "mean").any():
        caption = (
            f"Clean accuracy and mean robustness of {model} on {dataset}, {rule}. At the left "
            f"edge: more than {figures.MAX_DISTANCE} points below the best."
        )
        pictures.append(folder.save(f"trade_off_{name}", caption, figures.trade_off(cells)))
    curves = recorded and figures.accuracy_curves(of_network(recorded.rows, dataset, model))
    if curves is not None:
        caption = (
            f"{model} on {dataset}: robustness against clean accuracy, epoch by epoch, of DARE and "
            f"of fine-tuning, as selection saw them. Filled circles: the most robust epoch. "
            f"Squares: the most robust that loses at most 1 point of clean accuracy (dotted)."
        )
        pictures.append(folder.save(f"curves_{name}", caption, curves))
    table = recorded and adaptive_table(recorded, dataset, model)
    if table is not None:
        caption = (
            f"{model} on {dataset}, every model attacked itself: worst case over the attacks. An "
            f"image on which an attack could not start, and none succeeded, does not count as "
            f"robust. Bands: the 95% interval (Wilson's, averaged over runs). Grey: methods that "
            f"are not named."
        )
        figure = figures.adaptive_curves(table)
        pictures.append(folder.save(f"adaptive_{name}", caption, figure))
    return pictures


def claims_pictures(folder, claims):
    """The figure of the claims, if there are several networks."""
    if not len(claims):
        return []
    caption = (
        "DARE minus another method, in points, with 95% intervals. Small: a cell, in the colour of "
        "its network and the shape of its data set; hollow: the two cannot be compared there. "
        "Black: over the paper's cells in which they can."
    )
    return [folder.save("claims", caption, figures.claims(claims))]


def adaptive_table(recorded, dataset, model):
    """The worst cases of adaptive.csv of a network's compared models, or None."""
    paths = [folder / "adaptive.csv" for folder in recorded.folders.values()]
    tables = [pd.read_csv(path, converters=TEXTS) for path in paths if path.exists()]
    if not tables:
        return None
    table = of_network(pd.concat(tables, ignore_index=True), dataset, model)
    compared = set(recorded.all_compared["sha256"])
    table = table[(table["attack"] == "worst") & table["sha256"].isin(compared)]
    return with_labels(table) if len(table) else None


def study_pictures(folder, study_folder):
    """History, slices, samples and recorded commands of a study."""
    name = study_folder.name
    study = StudyPictures(name)
    if (study_folder / "log.csv").exists():
        caption = "Training, and the epochs that give the mined images their targets."
        figure = figures.history(study_folder)
        study.figures.append(folder.save(f"history_{name}", caption, figure))
    for path in sorted(study_folder.glob("slice_*.h5")):
        caption = f"Share of synapses in the slices of {path.name}, by layer."
        figure = figures.slice_shares(path)
        study.figures.append(folder.save(f"{path.stem}_{name}", caption, figure))
    for path in sorted((study_folder / "adv").glob("*.png")):
        known = attributes(path.with_suffix(".h5"))
        names = [name for name in ("samples", "mode", "epsilon", "steps") if name in known]
        settings = ", ".join(f"{name} {known[name]}" for name in names)
        caption = f"Adversarial examples of {path.stem} ({settings})."
        study.figures.append(Picture(caption, data_uri(path), is_samples=True))
    recorded = commands(study_folder)
    if len(recorded):
        study.sections.append(Section("Recorded commands and times", recorded, folded=True))
    return study
