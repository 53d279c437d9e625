"""The report: tables and figures as one HTML file, and the tables as CSV, Markdown and LaTeX."""

import re
from pathlib import Path

import jinja2
import markupsafe
import pandas as pd

from dare.evaluation.checks import warnings
from dare.evaluation.claims import claims_table
from dare.evaluation.claims_sections import claims_sections
from dare.evaluation.comparisons import verdict, verdict_sentences
from dare.evaluation.differences import differences_table, paper_differences
from dare.evaluation.networks import models_table, networks_table
from dare.evaluation.pictures import FigureFolder, claims_pictures, network_pictures, study_pictures
from dare.evaluation.runs import NETWORK, TABLE_RULES, RecordedRuns, of_network, paper_runs
from dare.evaluation.sections import (
    LEARNING_RATES_NOTE,
    OPTIMISM_NOTE,
    PAPER_DIFFERENCES_NOTE,
    PAPER_NOTE,
    Content,
    Section,
    differences_section,
    network_sections,
    networks_section,
    robustness_section,
    text_table,
    wins_sentence,
)
from dare.evaluation.tables import (
    learning_rates_table,
    optimism_table,
    published_means,
    robustness_table,
    wins,
)
from train.shared.artifacts import atomic_write, write_text


def make_report_of_paper(target, command):
    """All tables and figures from dare/paper alone; returns the report's path.

    target: folder. command: the command line, which the report shows.
    """
    runs = paper_runs()
    cells = robustness_table(runs)
    differences = paper_differences(runs)
    networks = {}
    for network in runs[NETWORK].drop_duplicates().itertuples(index=False, name=None):
        table = robustness_section(of_network(cells, *network), "paper", None, PAPER_NOTE)
        compared = of_network(differences, *network)
        networks[network] = [table, differences_section(compared, PAPER_DIFFERENCES_NOTE)]
    write_csv(target, {"table": cells, "table_differences": differences})
    sentences = ["The paper's own figures (doi 10.1145/3630011).", wins_sentence(wins(cells))]
    return write_report(target, Content(sentences, [], networks, [], command), cells)


def make_report_of_runs(target, folders, command):
    """All tables and figures from the recorded runs in `folders`; returns the report's path."""
    recorded = RecordedRuns(folders)
    networks = recorded.networks()
    cells = {rule: robustness_table(recorded.chosen[rule], recorded) for rule in TABLE_RULES}
    differences = {rule: differences_table(recorded, rule) for rule in TABLE_RULES}
    verdicts = {network: rounded(verdict(recorded, *network)) for network in networks}
    published = published_means()
    claims, beside_paper, overview = pd.DataFrame(), pd.DataFrame(), []
    if len(networks) > 1:
        claims = rounded(claims_table(recorded, published))
        beside_paper = networks_table(recorded, cells["selected"], published)
        overview = [networks_section(beside_paper), *claims_sections(claims)]
    write_csv(
        target,
        {
            "table": pd.concat([table.assign(rule=rule) for rule, table in cells.items()]),
            "table_differences": pd.concat(differences.values()),
            "table_verdict": pd.concat(
                [rows.assign(dataset=d, model=m) for (d, m), rows in verdicts.items()]
            ),
            "table_claims": claims,
            "table_networks": beside_paper,
        },
    )
    sentences = [f"{m} on {d}: {verdict_sentences(rows)}" for (d, m), rows in verdicts.items()]
    count = wins(cells["selected"])
    sentences.append(wins_sentence(count, wins(robustness_table(paper_runs()))))
    models = text_table(models_table(recorded), **{"parameters (M)": "{:.2f}", "images": "{:.0f}"})
    rates = text_table(learning_rates_table(recorded), lr_rate="{:g}")
    optimism = text_table(optimism_table(recorded), candidates="{:.0f}", optimism="{:+.1f}")
    content = Content(
        sentences=sentences,
        warnings=warnings(recorded),
        networks={
            network: network_sections(network, cells, differences, verdicts[network], published)
            for network in networks
        },
        common=[
            Section("Trained networks, beside the authors' table", models),
            Section("Learning rates and selected epochs", rates, LEARNING_RATES_NOTE, folded=True),
            Section("Optimism of the selection", optimism, OPTIMISM_NOTE, folded=True),
        ],
        command=command,
        overview=overview,
        claims=claims,
    )
    compared = robustness_table(recorded.all_compared, recorded)
    return write_report(target, content, compared, recorded)


def rounded(table):
    """A table with the digits of its CSV file, so that the file gives the same text."""
    return table.round(6)


def write_csv(target, tables):
    """Write {name: DataFrame} as CSV files, those with rows."""
    for name, table in tables.items():
        if len(table):
            with atomic_write(target / f"{name}.csv") as temporary:
                rounded(table).to_csv(temporary, index=False)


def write_report(target, content, cells, recorded=None):
    """Print the tables, and write table.md, table.tex and report.html; returns its path.

    Args:
        target: folder. content: Content. cells: of robustness_table, for the figures.
        recorded: RecordedRuns; None: the paper's.
    """
    of_networks = [section for sections in content.networks.values() for section in sections]
    sections = content.overview + of_networks + content.common
    for warning in content.warnings:
        print(f"Warning: {warning}")
    for section in sections:
        if not section.folded:
            print(f"\n{section.title}\n\n{markdown(section.table)}")
    print("\n" + "\n".join(content.sentences) + "\n")
    head = [f"**Warning**: {warning}" for warning in content.warnings] + content.sentences
    parts = [f"## {s.title}\n\n{s.note}\n\n{markdown(s.table)}" for s in sections]
    write_text(target / "table.md", "\n\n".join([*head, *parts]) + "\n")
    write_text(target / "table.tex", "\n\n".join(map(latex, sections)) + "\n")
    return write_html(target, content, cells, recorded)


def write_html(target, content, cells, recorded):
    """Write figures/ and report.html; returns its path."""
    folder = FigureFolder(target / "figures")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["table_html"] = table_html
    titles = {"models": "all recorded runs", "paper": "the paper's runs"}
    study_folders = recorded.folders.values() if recorded else ()
    text = environment.get_template("report.html.j2").render(
        title=titles.get(target.name, target.name),
        content=content,
        overview=claims_pictures(folder, content.claims),
        figures={n: network_pictures(folder, cells, *n, recorded) for n in content.networks},
        studies=[study_pictures(folder, study_folder) for study_folder in study_folders],
    )
    path = target / "report.html"
    write_text(path, text + "\n")
    return path


def table_html(table):
    """A table of strings as HTML; ** around a text makes it bold."""
    text = table.to_html(index=False, border=0, escape=True)
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


def markdown(table):
    return table.to_markdown(index=False, disable_numparse=True)


def latex(section):
    """A section's table for LaTeX with booktabs."""
    columns = "l" + "r" * (section.table.shape[1] - 1)
    text = section.table.to_latex(
        index=False, escape=True, caption=section.title, column_format=columns
    )
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
