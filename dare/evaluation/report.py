"""The report: tables and figures as one HTML file, and the tables as CSV, Markdown and LaTeX."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import markupsafe
import pandas as pd

from dare.evaluation import figures, networks, tables
from dare.evaluation.compare import agreement, comparisons_table, scenario_means, wilcoxon_table
from dare.evaluation.results import NETWORK, of_network, paper_rows
from dare.evaluation.tables import Section, name_of
from train.shared.artifacts import atomic_write, write_text
from train.shared.figures import plt

COMPARISONS_NOTE = (
    "DARE minus another method in points, image by image, with Student's 95% interval over images "
    "for these trainings: others can differ by more. †: the other model is the original itself, "
    "with 0 by construction."
)
OVER_NOTE = (
    "DARE minus another method in points: mean over networks with Student's 95% interval, range of "
    "theirs, and in how many DARE is ahead. Networks share images: this describes these runs and "
    "tests nothing. †: in some of them the other model is the original itself."
)
PAPER_NOTE = (
    "Mean robustness over the attacks and change of clean accuracy, the paper's in brackets (four "
    "attacks). Only here every method has its most robust epoch and learning rate, chosen on the "
    "validation samples (split 60/20/20); the test samples are shown."
)
ATTACKS_NOTE = (
    "Empirical robustness in % (± standard deviation over runs and training seeds) at last epochs, "
    "on all samples that a method was not tuned on; clean accuracy in % and its change in points."
)
ADAPTIVE_NOTE = (
    "Robust accuracy in %, the worst case over the attacks on each model itself, at the two "
    "largest epsilons. *: the original keeps more than 5% at the largest, so that the attacks may "
    "be too weak there."
)
COST_NOTE = (
    "Seconds for all that a method needs (DARE: slice, mine, tune; at-*: make the samples that it "
    "is tuned on, tune), and how many epochs of the network's own training take as long, as they "
    "ran: in the workflow training has all cores, the other steps half of them. A stage after + "
    "was not recorded and is not included."
)


@dataclass
class Content:
    """What a report shows. overview: the first Section. figures: {name: figure}."""

    title: str
    command: str
    overview: Section
    sentences: list
    warnings: list = field(default_factory=list)
    sections: list = field(default_factory=list)
    figures: dict = field(default_factory=dict)
    samples: list = field(default_factory=list)
    csv: dict = field(default_factory=dict)


def report_of_paper(target, command):
    """All tables and figures from dare/paper alone; returns the report's path."""
    rows = paper_rows()
    cells = tables.robustness_table(rows)
    tests = wilcoxon_table(rows)
    means = scenario_means(rows)
    best = int((means.idxmax(axis=1) == "dare").sum())
    sections = attack_sections(cells, "Mean ± standard deviation over nine runs, in %.")
    content = Content(
        "the paper's runs", command, wilcoxon_section(tests),
        [f"DARE has the highest mean in {best} of {len(means)} scenarios (doi 10.1145/3630011)."],
        sections=sections, csv={"table": cells, "table_wilcoxon": tests},
        figures={"trade_off": figures.trade_off(cells, "the paper's runs")},
    )  # fmt: skip
    return write_report(target, content)


def report_of_runs(target, results, command):
    """All tables and figures from Results; returns the report's path."""
    compared = comparisons_table(results)
    last = tables.robustness_table(tables.unseen(results.last))
    best, theirs = (tables.robustness_table(rows) for rows in (results.best, paper_rows()))
    trained = networks.networks_table(results)
    swept, cost = networks.sensitivity_table(results), networks.cost_table(results)
    attacked = networks.adaptive_table(results)
    tests = wilcoxon_table(results.last[results.last["split"] == "test"])
    agreed = agreement(scenario_means(results.best), scenario_means(paper_rows()))
    names = results.networks
    note = OVER_NOTE if len(names) > 1 else COMPARISONS_NOTE
    note += " Held-out samples are made from test images."
    content = Content(
        {"models": "all runs"}.get(target.name, target.name), command,
        Section("DARE minus other models", note, tables.comparisons_text(compared)),
        agreement_sentences(agreed), networks.warnings(results, trained),
        csv={
            "table_comparisons": compared, "table_networks": trained, "table_cost": cost,
            "table": pd.concat([last.assign(rule="last"), best.assign(rule="best")]),
            "table_sensitivity": swept, "table_adaptive": attacked, "table_wilcoxon": tests,
            "table_agreement": pd.DataFrame([agreed] if agreed else []),
        },
    )  # fmt: skip
    by_network = tables.by_network(compared, names)
    content.sections = [
        Section("The comparisons in each network", COMPARISONS_NOTE, by_network),
        Section("The comparisons in each seed", "In points.", tables.by_seed(compared), True),
        Section("Beside the paper", PAPER_NOTE, tables.beside_paper_text(
            best, theirs, names, networks.training_samples(results))),
        Section("Networks", "Clean accuracy in %, on the reporting half of the test images.",
                networks.networks_text(trained)),
        *attack_sections(last, ATTACKS_NOTE),
    ]  # fmt: skip
    if len(attacked):
        text = networks.adaptive_text(attacked, names)
        content.sections.append(Section("Every model attacked directly", ADAPTIVE_NOTE, text))
    if len(swept):
        note = (
            "Last epochs; mean robustness in % over the attacks, of n samples each, with Student's "
            "95% interval over images."
        )
        text = networks.sensitivity_text(swept)
        content.sections.append(Section("Influence of a setting", note, text))
    if len(cost):
        text = networks.cost_text(cost, names)
        content.sections.append(Section("Cost", COST_NOTE, text, folded=True))
    if len(tests):
        content.sections.append(wilcoxon_section(tests))
    content.figures = {
        "trade_off": figures.trade_off(last),
        "comparisons": figures.comparisons(compared),
        "adaptive": figures.adaptive(attacked, names),
        "mined_epochs": figures.mined_epochs(results.tables["mined"], names),
        "sensitivity": figures.sensitivity(swept),
    }
    study = next(iter(results.rows["study"]))
    content.samples = sorted((results.folder / study / "adv").glob("[!.]*.png"))
    return write_report(target, content)


def attack_sections(cells, note):
    networks = cells[NETWORK].drop_duplicates().itertuples(index=False, name=None)
    return [
        Section(
            f"{name_of(n)}: every attack", note, tables.attacks_text(of_network(cells, n)), True
        )
        for n in networks
    ]


def wilcoxon_section(tests):
    text = tests.assign(
        difference=[tables.points(value) for value in tests["difference"]],
        p_value=[f"{p:.2g}" for p in tests["p_value"]],
    ).astype(str)
    note = "The paper's own test: Wilcoxon's signed-rank test of DARE over runs, one-sided."
    return Section("DARE minus other methods over runs", note, text, folded=True)


def agreement_sentences(agreed):
    """What agreement with the paper was found, in three sentences."""
    if not agreed:
        return []
    return [
        f"The {agreed['means']} means that we and the paper have (data set, network, attack and "
        f"method) have a rank correlation of {agreed['rank_correlation']:.2f}.",
        f"In {agreed['same_winner']} of {agreed['scenarios']} scenarios (data set, network and "
        f"attack) the same method of DARE and adversarial training is best.",
        f"DARE is best in {agreed['dare_ours']} of them, in the paper in {agreed['dare_theirs']}.",
    ]


# ----------------------------------------------------------------------------------------- files


def write_report(target, content):
    """Print the first tables, write all files; returns the path of report.html."""
    for name, table in content.csv.items():
        path = target / f"{name}.csv"
        if len(table):
            with atomic_write(path) as temporary:
                table.round(6).to_csv(temporary, index=False)
        else:
            path.unlink(missing_ok=True)
    sections = [s for s in (content.overview, *content.sections) if len(s.table)]
    for section in sections:
        if not section.folded:
            print(f"\n{section.title}\n\n{markdown(section.table)}")
    print("\n" + "\n".join(content.warnings + content.sentences) + "\n")
    head = "\n".join(f"- {text}" for text in content.warnings + content.sentences)
    parts = [f"## {s.title}\n\n{s.note}\n\n{markdown(s.table)}" for s in sections]
    write_text(target / "table.md", "\n\n".join([head, *parts]).strip() + "\n")
    write_text(target / "table.tex", "\n\n".join(map(latex, sections)) + "\n")
    drawn = {name: save(figure, target / "figures" / name)
             for name, figure in content.figures.items() if figure is not None}  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["table_html"] = table_html
    samples = {path.stem: data_uri(path) for path in content.samples}
    text = environment.get_template("report.html.j2").render(
        content=content, sections=sections[1:], figures=drawn, samples=samples
    )
    write_text(target / "report.html", text + "\n")
    return target / "report.html"


def save(figure, path):
    """Save a figure as PNG and SVG; returns the SVG as a data URI."""
    for kind in "png", "svg":
        with atomic_write(path.with_suffix(f".{kind}")) as temporary:
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(temporary, dpi=110, metadata=metadata)
    plt.close(figure)
    return data_uri(path.with_suffix(".svg"))


def data_uri(path):
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def table_html(table):
    return markupsafe.Markup(table.to_html(index=False, border=0, escape=True))


def markdown(table):
    """A table as Markdown, without padding, which would make the rows very long."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def latex(section):
    """A section's table for LaTeX with booktabs."""
    columns = "l" + "r" * (section.table.shape[1] - 1)
    text = section.table.to_latex(
        index=False, escape=True, caption=section.title, column_format=columns
    )
    return text.replace("†", r"\dag{}")
