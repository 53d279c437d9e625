"""The tables about networks and settings: training, influence of settings, cost, direct attack."""

import numpy as np
import pandas as pd

from adv import ATTACKS
from dare.evaluation.results import NETWORK, PAPER, SETTINGS, in_order, of_network, own_settings
from dare.evaluation.tables import AVERAGED, name_of, number, points, robustness_table, unseen
from dare.methods import METHODS

PAPER_IMAGES = {"cifar10": 25_000, "svhn": 36_628, "fashion_mnist": 30_000}  # half of x_train
SAMPLES_NEEDED = 900  # of an attack, for its adversarial training
UNBROKEN = 5  # % that an undefended network may keep at the largest epsilon
TEST_SAMPLES, MINED_IMAGES, SUCCESS = 50, 100, 0.5  # below these, warnings


def training_samples(results):
    """{network: [number of samples that each adversarial training was tuned on]}, of all seeds."""
    found = {}
    studies = results.rows.drop_duplicates("study").set_index("study")[NETWORK]
    for study, *network in studies.itertuples(name=None):
        index = results.scores[study].index if study in results.scores else {}
        tuned = set(results.rows.loc[results.rows["study"] == study, "method"])
        attacks = [a for a in ATTACKS if f"at-{a}" in tuned and f"{a} training" in index]
        found.setdefault(tuple(network), []).extend(len(index[f"{a} training"]) for a in attacks)
    return found


def networks_table(results):
    """Table (c): size of training, parameters and clean accuracy, beside the authors' numbers."""
    theirs = pd.read_csv(PAPER / "models.csv").set_index(NETWORK)
    rows = results.rows[results.rows["method"] == "original"].drop_duplicates("study")
    known = results.tables["networks"].drop(columns=[*NETWORK, "seed"])
    table = rows[["study", *NETWORK, "seed", "test_accuracy"]].merge(known, on="study", how="left")
    authors = theirs.reindex(pd.MultiIndex.from_frame(table[NETWORK]))
    for column in ("epochs", "images", "mined", "parameters"):
        table[column] = table.get(column, np.nan)
    table["parameters"] /= 1e6
    table["paper_parameters"] = authors["params_millions"].to_numpy()
    table["paper_accuracy"] = authors["test_accuracy_percent"].to_numpy()
    table["paper_images"] = (
        table["dataset"].map(PAPER_IMAGES).where(authors.notna().any(axis=1).to_numpy())
    )
    return table


def networks_text(table):
    text = pd.DataFrame({"network": table["model"], "data set": table["dataset"]})
    text["seed"] = table["seed"].astype(str)
    for title, column, form in (
        ("images", "images", "{:.0f}"), ("paper's", "paper_images", "{:.0f}"),
        ("epochs", "epochs", "{:.0f}"), ("mined images", "mined", "{:.0f}"),
        ("parameters (M)", "parameters", "{:.2f}"), ("authors'", "paper_parameters", "{:.1f}"),
        ("clean accuracy", "test_accuracy", "{:.1f}"), ("paper's ", "paper_accuracy", "{:.1f}"),
    ):  # fmt: skip
        if table[column].notna().any():
            text[title] = [number(value, form) for value in table[column]]
    return text


def sensitivity_table(results):
    """Table (e): the last epochs of methods that were run at several settings in a study.

    Returns DataFrame with the columns study, dataset, model, method, setting (what varies), value,
    n, robustness (mean over attacks), clean, change.
    """
    last = unseen(results.rows[results.rows["last"]])
    found = []
    for (study, method), rows in last.groupby(["study", "method"], sort=False):
        for setting in (*SETTINGS, "lr_rate"):
            if rows[setting].nunique() < 2:
                continue
            the_same = rows[setting].dropna().iloc[0]  # so that the other settings decide
            others_are_own = own_settings(rows.assign(**{setting: the_same}), with_rate=True)
            for value, of_value in rows[others_are_own].groupby(setting):
                cells = robustness_table(of_value)
                cell = cells[cells["attack"] == AVERAGED].iloc[0]
                row = {"study": study, **of_value.iloc[0][NETWORK], "method": method}
                row |= {"setting": setting, "value": value} | cell[["n", "robustness"]].to_dict()
                found.append(row | cell[["clean", "change"]].to_dict())
    return pd.DataFrame(found)


def sensitivity_text(table):
    text = table[["study", "method", "setting"]].rename(columns={"study": "network"})
    text["value"] = [v if isinstance(v, str) else f"{v:g}" for v in table["value"]]
    text["n"] = [f"{n:.0f}" for n in table["n"]]
    text["robustness"] = [number(value) for value in table["robustness"]]
    text["change in clean accuracy"] = [points(value) for value in table["change"]]
    return text


def cost_table(results):
    """Table (f): seconds of the stages that a method needs, by study, and in epochs of training.

    Returns DataFrame with the columns study, dataset, model, method, seconds, epochs (of the
    network's own training that take as long).
    """
    commands, training = results.tables["commands"], results.tables["training"]
    if commands.empty:
        return pd.DataFrame()
    seconds = commands.groupby(["study", "stage"])["seconds"].median()
    epoch = training.groupby("study")["seconds"].median() if len(training) else {}
    found = []
    for study, (dataset, model) in commands.groupby("study")[NETWORK].first().iterrows():
        for method, made in METHODS.items():
            stages = [method, *(["slice"] if "slice" in made.reads else [])]
            stages += ["mine"] if {"targets", "mined images"} & {*made.reads} else []
            stages += [method.removeprefix("at-")] if made.trains_on_samples else []
            spent = [seconds.get((study, stage), np.nan) for stage in stages]
            if made.script and not np.isnan(sum(spent)):
                row = {"study": study, "dataset": dataset, "model": model, "method": method}
                epochs = sum(spent) / epoch[study] if study in epoch else np.nan
                found.append(row | {"seconds": sum(spent), "epochs": epochs})
    return pd.DataFrame(found)


def cost_text(table, networks):
    """Methods by networks: "120 s, 4.1 epochs", the mean over training seeds."""
    means = table.groupby([*NETWORK, "method"])[["seconds", "epochs"]].mean()
    text = pd.DataFrame({"method": in_order(table["method"])})
    for network in networks:
        cells = [
            means.loc[k] if (k := (*network, m)) in means.index else None for m in text["method"]
        ]
        text[name_of(network)] = [
            "" if c is None else f"{c['seconds']:.0f} s, {c['epochs']:.1f}" for c in cells
        ]
    return text


def adaptive_table(results):
    """Robust accuracy, the worst case over the attacks: by network, method and epsilon.

    Returns DataFrame with the columns dataset, model, method, epsilon, n, unknown (images on which
    an attack could not start), robust_accuracy (mean over seeds and runs, in %).
    """
    table = results.tables["adaptive"]
    if table.empty:
        return table
    table = table[(table["attack"] == "worst") & table["sha256"].isin(results.attacked["sha256"])]
    table = table.groupby([*NETWORK, "method", "epsilon"], sort=False)
    return table[["n", "unknown", "robust_accuracy"]].mean().reset_index()


def adaptive_text(table, networks):
    """Robust accuracy at the second largest and the largest epsilon: methods by networks.

    A star marks a network whose original keeps more than UNBROKEN % at the largest epsilon. Images
    on which an attack could not start are counted in brackets.
    """
    text = pd.DataFrame({"method": in_order(table["method"])})
    for network in networks:
        rows = of_network(table, network)
        if rows.empty:
            continue
        wide = rows.pivot(index="method", columns="epsilon", values="robust_accuracy")
        title = f"{name_of(network)}, {wide.columns[-2]:.2g} and {wide.columns[-1]:.2g}"
        kept = wide.iloc[:, -1].get("original", 0)
        unknown = rows[rows["epsilon"] == wide.columns[-1]].set_index("method")["unknown"]
        text[title + (" *" if kept > UNBROKEN else "")] = [
            f"{wide.loc[m].iloc[-2]:.1f}, {wide.loc[m].iloc[-1]:.1f}"
            + (f" ({unknown[m]:.0f} unknown)" if unknown[m] else "")
            if m in wide.index
            else ""
            for m in text["method"]
        ]
    return text


def warnings(results, networks):
    """What to read the results with, one sentence for each kind, over all networks.

    networks: of networks_table.
    """
    texts = []
    small = networks[networks["images"] < networks["paper_images"] / 2]
    if len(small):
        lost = max((small["paper_accuracy"] - small["test_accuracy"]).max(), 0)
        texts.append(
            f"Training sets hold {span(small['images'])} images, the paper's "
            f"{span(small['paper_images'])}; clean accuracy is up to {lost:.0f} points lower."
        )
    counts = [n for found in training_samples(results).values() for n in found]
    if counts and min(counts) < SAMPLES_NEEDED:
        texts.append(
            f"Adversarial training had {span(counts)} samples of an attack, the paper's about "
            f"3,000, and may be better with more."
        )
    originals = results.rows[results.rows["method"] == "original"]
    tested = originals[originals["split"] == "test"]
    if few := studies_with(tested[tested["n"] < TEST_SAMPLES]):
        texts.append(f"The test part has fewer than {TEST_SAMPLES} samples of an attack in {few}.")
    made = originals.groupby(["study", *NETWORK, "attack"])["n"].sum()
    share = made / made.groupby("study").transform("max")
    if few := studies_with(share[share < SUCCESS].reset_index()):
        texts.append(f"An attack failed on half of the images or more in {few}.")
    if few := studies_with(networks[networks["mined"] < MINED_IMAGES]):
        texts.append(f"Fewer than {MINED_IMAGES} images were mined in {few}.")
    return texts


def studies_with(rows):
    """The networks of some rows, as text."""
    return ", ".join(dict.fromkeys(name_of((r.dataset, r.model)) for r in rows.itertuples()))


def span(values):
    """ "3,500 to 4,000" of some numbers."""
    return " to ".join(f"{value:,.0f}" for value in sorted({min(values), max(values)}))
