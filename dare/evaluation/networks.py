"""The tables about networks and settings: training, influence of settings, cost, direct attack."""

import numpy as np
import pandas as pd

from adv import ATTACKS, SPLIT, SUCCESS_NEEDED
from dare.evaluation.compare import mean_with_interval
from dare.evaluation.results import (
    NETWORK,
    PAPER,
    RATES,
    SETTINGS,
    SPLITS,
    in_order,
    of_network,
    own_settings,
)
from dare.evaluation.tables import (
    AVERAGED,
    interval,
    name_of,
    number,
    points,
    robustness_table,
    unseen,
)
from dare.methods import METHODS, unseen_splits

PAPER_IMAGES = {"cifar10": 25_000, "svhn": 36_628, "fashion_mnist": 30_000}  # half of x_train
SAMPLES_NEEDED = 900  # of an attack, for its adversarial training
UNBROKEN = 5  # % that an undefended network may keep at the largest epsilon
TEST_SAMPLES, MINED_IMAGES = 50, 100  # below these, warnings


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
    text = table[["study"]].rename(columns={"study": "network"})
    for title, column, form in (
        ("images", "images", "{:.0f}"), ("paper's images", "paper_images", "{:.0f}"),
        ("epochs", "epochs", "{:.0f}"), ("mined images", "mined", "{:.0f}"),
        ("parameters (M)", "parameters", "{:.2f}"), ("paper's (M)", "paper_parameters", "{:.1f}"),
        ("clean accuracy", "test_accuracy", "{:.1f}"), ("paper's", "paper_accuracy", "{:.1f}"),
    ):  # fmt: skip
        if table[column].notna().any():
            text[title] = [number(value, form) for value in table[column]]
    return text


def sensitivity_table(results):
    """Table (e): the last epochs of methods that were run at several settings in a study.

    Returns DataFrame with the columns study, dataset, model, method, setting (what varies), value,
    n, robustness (mean over attacks), low, high (its 95% interval), clean, change.
    """
    last = unseen(results.rows[results.rows["last"]])
    found = []
    for study, of_study in last.groupby("study", sort=False):
        for setting in SETTINGS:
            free = RATES if setting == "lr_rate" else (setting,)
            rows = of_study[own_settings(of_study, free)]
            several = rows.groupby("method")[setting].transform("nunique") > 1
            for (method, value), of_value in rows[several].groupby(["method", setting]):
                cells = robustness_table(of_value)
                cell = cells[cells["attack"] == AVERAGED].iloc[0]
                row = {"study": study, **of_value.iloc[0][NETWORK], "method": method}
                row |= {"setting": setting, "value": value} | cell[["n", "robustness"]].to_dict()
                half = half_interval(results, of_value)
                row |= {"low": cell["robustness"] - half, "high": cell["robustness"] + half}
                found.append(row | cell[["clean", "change"]].to_dict())
    return pd.DataFrame(found)


def half_interval(results, rows):
    """Half of Student's 95% interval over images of the mean robustness of a study's models.

    rows: of Results, of one method at one setting. NaN if the images' scores were not kept.
    """
    study, method = rows.iloc[0][["study", "method"]]
    parts = results.parts(study, "robustness", unseen_splits(method))
    right = results.right(study, rows["sha256"].unique(), parts)
    if right is None:
        return np.nan
    mean, low, _ = mean_with_interval(100 * right.mean(axis=1))
    return mean - low


def sensitivity_text(table):
    text = table[["study", "method", "setting"]].rename(columns={"study": "network"})
    text["value"] = [v if isinstance(v, str) else f"{v:g}" for v in table["value"]]
    text["n"] = [f"{n:.0f}" for n in table["n"]]
    text["robustness"] = [number(row.robustness) + interval(row) for row in table.itertuples()]
    text["change in clean accuracy"] = [points(value) for value in table["change"]]
    return text


def cost_table(results):
    """Table (f): seconds of the stages that a method needs, by study, and in epochs of training.

    Mining the first layer takes longest, because later layers reuse its probabilities, so the
    longest mining is counted; it is unknown if that of DARE's layer was not recorded. An attack is
    counted by the share of its samples that adversarial training was tuned on.

    Returns DataFrame with the columns study, dataset, model, method, seconds, epochs (of the
    network's own training that take as long), unknown (needed stages that were not recorded).
    """
    commands, training = results.tables["commands"], results.tables["training"]
    if commands.empty:
        return pd.DataFrame()
    commands = commands.assign(stage=commands["stage"].str.replace(r"_run\d+$", "", regex=True))
    epoch = training.groupby("study")["seconds"].median() if len(training) else {}
    of_dare = results.last[results.last["method"] == "dare"].groupby("study")["choose_layer"]
    layers, originals = of_dare.first(), results.rows[results.rows["is_original"]]
    found = []
    for study, of_study in commands.groupby("study", sort=False):
        dataset, model = of_study.iloc[0][NETWORK]
        spent = of_study.groupby("stage")["seconds"].median()
        spent[spent.index.isin(ATTACKS)] *= SPLIT[0]
        mined = of_study[of_study["stage"] == "mine"]
        is_known = layers.get(study) in {*mined.get("choose_layer", ())}
        spent["mine"] = mined["seconds"].max() if is_known else np.nan
        same = set(originals.loc[originals["study"] == study, "method"])
        for method in [m for m in METHODS if m in spent and m not in same]:
            needed = spent.reindex([method, *stages_before(method)])
            epochs = needed.sum() / epoch[study] if study in epoch else np.nan
            row = {"study": study, "dataset": dataset, "model": model, "method": method}
            row |= {"seconds": needed.sum(), "epochs": epochs}
            found.append(row | {"unknown": ", ".join(needed.index[needed.isna()])})
    return pd.DataFrame(found)


def stages_before(method):
    """The stages of the log that a method needs before it is tuned."""
    made = METHODS[method]
    stages = ["slice"] if "slice" in made.reads else []
    stages += ["mine"] if {"targets", "mined images"} & {*made.reads} else []
    if method in ("control-self", "control-random"):
        stages.append(method.replace("control-", "targets "))
    return stages + ([method.removeprefix("at-")] if made.trains_on_samples else [])


def cost_text(table, networks):
    """Methods by networks: "120 s, 4.1 + mine", the mean over training seeds."""
    cells = table.groupby([*NETWORK, "method"]).agg(
        {"seconds": "mean", "epochs": "mean", "unknown": "first"}
    )
    cells["text"] = [
        f"{row.seconds:.0f} s, {row.epochs:.1f}" + (f" + {row.unknown}" if row.unknown else "")
        for row in cells.itertuples()
    ]
    text = pd.DataFrame({"method": in_order(table["method"])})
    for network in networks:
        text[name_of(network)] = [cells["text"].get((*network, m), "") for m in text["method"]]
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
            + (f" ({unknown[m]:.3g} unknown)" if unknown[m] else "")
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
        lost = (small["paper_accuracy"] - small["test_accuracy"]).max()
        texts.append(
            f"Training sets hold {span(small['images'])} images, the paper's "
            f"{span(small['paper_images'])}, in {studies_with(small)}"
            + (f"; clean accuracy is up to {lost:.0f} points lower." if lost >= 1 else ".")
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
    made = originals[originals["split"].isin(SPLITS)]
    made = made.groupby(["study", *NETWORK, "attack"])["n"].sum()
    share = made / made.groupby("study").transform("max")
    if few := studies_with(share[share < SUCCESS_NEEDED].reset_index()):
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
