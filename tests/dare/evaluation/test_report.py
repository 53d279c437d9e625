"""The report, the recorded results, and the figures."""

import html
import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_up import PLAIN, made_up, sha
from matplotlib.text import Text

from dare import tables as script
from dare.evaluation import claims_sections, figures, pictures, runs, sections, tables
from dare.evaluation.claims import PAPER_CELLS, claims_table
from dare.evaluation.comparisons import verdict, verdict_sentences
from dare.evaluation.runs import RecordedRuns
from train.shared.flags import UserError


def test_claims_in_the_report(home):
    for model in ("lenet", "own"):
        folder = made_up(home, PLAIN, n=100, model=model)
    script.main([])
    text = html.unescape((folder.parent / "report.html").read_text())
    assert "not run" in text.split("networks, beside the paper's")[1].split("</table>")[0]
    assert text.index("Claims over all networks") < text.index("lenet on digits</h2>")
    assert (folder.parent / "figures/claims.png").exists()
    written = pd.read_csv(folder.parent / "table_claims.csv")
    assert {"cells", "cells_with_yes", "paper", "conclusion", "reason"} <= set(written.columns)
    assert "2 measured" not in text and "of 2" in text


def test_claims_in_each_cell():
    claim = {"component": "slicing", "compared_with": "dare-s", "decides": True, "setting": ""}
    cells = [  # the paper's come first
        ("digits", "lenet", -12.4, -16.6, -6.6, "no"),
        ("svhn", "vgg16", 3.14, -0.01, 7.26, "undecided"),
        ("svhn", "alexnet", 76.4, 70.6, 81.6, "not comparable"),
        ("all", "all", 10.0, 5.0, 15.0, "yes"),
    ]
    names = ["dataset", "model", "difference", "low", "high", "conclusion"]
    rows = [claim | dict(zip(names, cell, strict=True)) for cell in cells]
    rows += [
        rows[0] | {"component": "mined history", "compared_with": "control-self"},
        rows[0] | {"decides": False, "difference": 50.0},
    ]
    claims = pd.DataFrame(rows)
    table = claims_sections.cells_section(claims).table
    assert table.columns[2:].tolist() == ["alexnet svhn", "vgg16 svhn", "lenet digits"]
    assert table.to_numpy().tolist() == [
        ["slicing", "dare-s", "(+76 [71, 82])", "+3.1 [0.0, 7.3]", "**-12 [-17, -7]**"],
        ["mined history", "control-self", "", "", "**-12 [-17, -7]**"],
    ]
    claims.loc[4, "setting"] = "per 0.5"
    table = claims_sections.cells_section(claims).table
    assert table["DARE's setting"].tolist() == ["default", "per 0.5"]


def test_the_figure_of_claims_where_nothing_compares(home):
    lost = {name: (0.5, 0.8, 0.3) for name in PLAIN if name != "original"}
    folders = [made_up(home, {"original": PLAIN["original"]} | lost, model=m) for m in "ab"]
    table = claims_table(RecordedRuns(folders), tables.published_means())
    figure = figures.claims(table[table["component"] == "slicing"])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in dots if len(line.get_xdata())} == {"white"}


def test_tables_and_report(home, capsys):
    folder = made_up(home, PLAIN | {"at-fgsm": (0.6, 0.9, 0.5)}, n=100)
    script.main([])
    out = capsys.readouterr().out
    assert out.index("Warning: digits_lenet_seed0: no epoch within 1 point") < out.index("| method")
    text = html.unescape((folder.parent / "report.html").read_text())
    assert 'src="http' not in text and "href" not in text and "data:image/svg+xml;base64" in text
    assert sha(1) not in text and "seed's table" not in text and "authors' table" in text
    assert "Read these results with care" in text and "mined history" in text
    assert "12.5" in text and text.count("python dare/get_ats.py") == 1
    assert (folder.parent / "table.tex").read_text().count(r"\toprule") >= 5
    assert r"\textbf{" in (folder.parent / "table.tex").read_text()
    written = pd.read_csv(folder.parent / "table_differences.csv")
    assert {"difference", "low", "high", "test", "p", "p_holm"} <= set(written.columns)
    assert set(pd.read_csv(folder.parent / "table.csv")["rule"]) == set(runs.TABLE_RULES)


def test_one_network(home):
    for model in ("lenet", "alexnet"):
        made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=40, model=model)
    script.main(["--dataset", "digits", "--model", "lenet"])
    target = home / "models/digits_lenet"
    assert "alexnet" not in (target / "table.md").read_text()
    assert (target / "report.html").exists() and list((target / "figures").glob("*.svg"))


def test_a_data_set_whose_name_begins_with_that_of_another(home):
    for dataset in "digits", "digits_small":
        folder = home / f"models/{dataset}_lenet_seed0"
        folder.mkdir(parents=True)
        (folder / "robustness.csv").write_text(f"dataset,model\n{dataset},lenet\n")
    chosen = script.scored_studies(home / "models", "digits")
    assert [path.name for path in chosen] == ["digits_lenet_seed0"]
    assert len(script.scored_studies(home / "models", models="lenet")) == 2


def test_a_data_set_that_is_named_like_a_number(home):
    made_up(home, n=60, dataset="2024")
    script.main([])
    assert set(pd.read_csv(home / "models/table.csv", dtype=str)["dataset"]) == {"2024"}


def test_seeds_without_an_attack_in_common(home):
    for seed, kept in enumerate(["fgsm", "pgd"]):
        folder = made_up(home, n=60, seed=seed)
        table = pd.read_csv(folder / "robustness.csv")
        table[table["attack"] == kept].to_csv(folder / "robustness.csv", index=False)
    script.main([])
    figures = home / "models/figures"
    assert (figures / "robustness_digits_lenet.png").exists()
    assert not (figures / "trade_off_digits_lenet.png").exists()


def test_attacks_that_only_one_seed_reports(home):
    """A study without any reported sample counts among those that an attack must have."""
    folders = [made_up(home, n=60, seed=seed) for seed in (0, 1)]
    table = pd.read_csv(folders[1] / "robustness.csv")
    table.loc[table["split"] == "test", "n"] = 0
    table.to_csv(folders[1] / "robustness.csv", index=False)
    assert RecordedRuns(folders[:1]).attacks("digits", "lenet") == ["fgsm", "pgd", "cw"]
    assert RecordedRuns(folders[1:]).attacks("digits", "lenet") == []
    assert RecordedRuns(folders).attacks("digits", "lenet") == []


def test_only_selected_epochs_are_reported(home):
    """Not the last epochs, which have test scores for the claims."""
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=20)
    rows = pd.read_csv(folder / "robustness.csv")
    last = rows[rows["method"] == "dare"].assign(
        epoch=99, sha256=sha(99), selected=False, selected_within_1=False, last_epoch=True,
        empirical_robustness=99,
    )  # fmt: skip
    pd.concat([rows, last]).to_csv(folder / "robustness.csv", index=False)
    table = tables.learning_rates_table(RecordedRuns([folder])).set_index("epoch")
    assert np.isnan(table.loc[99, ["reported", "clean, reported"]].astype(float)).all()


def test_several_networks_without_dare(home):
    few = {method: PLAIN[method] for method in ("original", "at-pgd")}
    for name in "alexnet", "vgg16":
        made_up(home, few, n=60, model=name)
    script.main([])
    assert not (home / "models/table_claims.csv").exists()


def test_a_study_without_dare_or_adaptive_evaluation(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "at-pgd", "control-swa")}, n=60)
    for name in ("adaptive.csv", "adaptive.h5", "log.csv", "ats_conv3.h5", "slice_0.95.h5"):
        (folder / name).unlink()
    script.main([])
    text = (folder.parent / "table.md").read_text()
    assert "have not all been run" in text and "have not both been run" in text
    assert not (folder.parent / "table_verdict.csv").exists()


def test_the_verdict_without_adaptive_evaluation(home):
    folder = made_up(home)
    (folder / "adaptive.h5").unlink()
    rows = verdict(RecordedRuns([folder]), "digits", "lenet")
    assert rows["adaptive_conclusion"].isna().all() and rows["adaptive_difference"].isna().all()
    assert "adaptive" not in verdict_sentences(rows)


def test_paper_tables(home):
    script.main(["--paper"])
    text = (home / "models/paper/table.md").read_text()
    assert "in 22 of 36 scenarios" in text and "**" in text
    assert (home / "models/paper/report.html").exists()


def test_nothing_to_show(home):
    with pytest.raises(UserError, match=r"robustness.csv is missing.*dare/test.py"):
        script.main([])
    with pytest.raises(UserError, match=r"digits_alexnet_seed"):
        script.main(["--dataset", "digits", "--model", "alexnet"])


def test_a_stage_that_did_nothing_does_not_replace_its_time(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=20)
    found = runs.commands(folder)
    assert found["command"].tolist() == ["python dare/get_ats.py --seed 0"]
    assert found["seconds"].tolist() == ["12.5"]


def test_memory_that_the_system_does_not_say(home):
    folder = made_up(home, {m: PLAIN[m] for m in ("original", "dare")}, n=20)
    log = folder / "get_ats.log"
    log.write_text(log.read_text().replace('"peak_memory_gb": 1.0', '"peak_memory_gb": null'))
    assert runs.commands(folder)["memory (GB)"].tolist() == [""]


def overlaps(figure, texts):
    """Pairs of the shown texts whose boxes overlap."""
    figure.canvas.draw()
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts if t.get_text()]
    pairs = itertools.combinations(boxes, 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.overlaps(other)]


def test_labels_of_figures_do_not_overlap(home):
    more = [("dare", (0.7, 0.95, 0.4), {"per": per}) for per in (0.05, 0.1, 0.5, 0.9)]
    methods = PLAIN | {"control-noise": (0.4, 0.2, 0.1), "at-cw": (0.4, 0.3, 0.1)}
    recorded = RecordedRuns([made_up(home, methods, n=100, more=more)])
    cells = tables.robustness_table(recorded.all_compared, recorded)
    figure = figures.trade_off(cells)
    assert len(figure.axes[0].texts) == len(methods) + 4
    assert overlaps(figure, figure.axes[0].texts) == []
    figure = figures.robustness(cells)
    assert overlaps(figure, figure.axes[0].get_yticklabels()) == []
    figure = figures.adaptive_curves(pictures.adaptive_table(recorded, "digits", "lenet"))
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["0", "0.0001", "0.01"]
    assert overlaps(figure, labels) == []


def test_spread_moves_labels_as_little_as_it_can():
    places = figures.spread(np.array([10.0, 50.0, 50.0, 51.0, 90.0]), 4, 0, 100)
    np.testing.assert_allclose(places, [10, 46.333333, 50.333333, 54.333333, 90])
    assert (np.diff(figures.spread(np.zeros(20), 4, 0, 100)) >= 4 - 1e-9).all()


def test_the_readme_shows_the_recorded_demonstration():
    """Its lines are rows of the verdict that is recorded."""
    lines = (ROOT / "README.md").read_text().split("component tested  ")[1].split("\n...")[0]
    path = ROOT / "dare/results/demo/table_verdict.csv"
    rows = pd.read_csv(path, converters={"setting": str})
    table = sections.verdict_section(rows, "digits", "lenet").table
    names = ["component tested", "compared with", "difference by the paper's metric", "conclusion"]
    rows = table[names].itertuples(index=False)
    expected = {"{:39}{:20}{:28}{}".format(*row) for row in rows}
    shown = set(lines.splitlines()[1:])
    assert len(shown) >= 5 and shown <= expected


def test_the_readme_shows_recorded_claims():
    """Every row of its table of claims is as made from what is recorded."""
    readme = (ROOT / "README.md").read_text()
    claims = recorded_claims()
    expected = set()
    over_paper_s_cells, *_ = claims_sections.claims_sections(claims)
    for row in over_paper_s_cells.table.to_dict("records"):
        for title in "most robust epoch", "epochs within 1 point":
            if row[title].startswith("**"):  # the rule that decides
                cells = row[f"{title}: cells in favour"].split(" (")[0]
                values = [row["component tested"], row["compared with"], row[title].strip("*")]
                expected.add(f"| {' | '.join([*values, cells, row['conclusion']])} |")
    found = {line for line in readme.splitlines() if " of " in line and line.count("|") == 6}
    assert 5 <= len(found) <= 10 and found <= expected


def test_the_results_show_recorded_cells():
    """The rows of their table of claims in each cell, which has the paper's cells."""
    claims = recorded_claims()
    claims = claims[pd.MultiIndex.from_frame(claims[["dataset", "model"]]).isin(PAPER_CELLS)]
    header, *expected = markdown_rows(claims_sections.cells_section(claims).table)
    text = (ROOT / "dare/results/README.md").read_text()
    assert text.split(header)[1].splitlines()[2 : 2 + len(expected)] == expected


def test_the_readme_shows_recorded_networks():
    """The rows of its table of networks, which are all of the paper's."""
    readme = (ROOT / "README.md").read_text()
    table = pd.read_csv(ROOT / "dare/results/study/table_networks.csv")
    header, *expected = markdown_rows(sections.networks_section(table).table.head(9))
    assert readme.split(header)[1].splitlines()[2:11] == expected


def recorded_claims():
    """The claims of the study, with "" for the default setting, which read_csv takes for NaN."""
    claims = pd.read_csv(ROOT / "dare/results/study/table_claims.csv")
    return claims.assign(setting=claims["setting"].astype(object).fillna(""))


def markdown_rows(table):
    """The header and the rows of a table of strings, as lines."""
    return [f"| {' | '.join(row)} |" for row in [table.columns, *table.itertuples(index=False)]]
