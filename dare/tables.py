"""Step 9: the paper's tables, figures and one report, from the recorded runs.

    python dare/tables.py                                   # everything under models/
    python dare/tables.py --dataset digits --model lenet    # one network, all its training seeds
    python dare/tables.py --paper                           # from the paper's published numbers
    python dare/tables.py --record NAME                     # keep what is needed in dare/results
    python dare/tables.py --record NAME --dataset cifar10,svhn --model vgg16       # only of these
    python dare/tables.py --results NAME                    # make the tables from there

Reads models/*/robustness.csv, scores.h5, adaptive.csv, log.csv, targets and logs, and
dare/paper/*.csv. Writes table.md, table.tex, table.csv, table_comparisons.csv and further tables,
figures/ and report.html, one file that needs nothing else. They go to models/ or, with --results,
to dare/results/NAME/; there, to a folder named after --dataset and --model if these are given. With
--paper they go to models/paper/, with --record to dare/results/NAME/. Every number in the tables
comes from the files that are read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.evaluation import record as recording
from dare.evaluation.report import report_of_paper, report_of_runs
from dare.evaluation.results import read_recorded, read_studies, scored_rows
from train.shared import paths
from train.shared.flags import UserError, options, run_script
from train.shared.log import stage

dataset = None  # one or several, with commas; None: all
model = None  # the same
paper = False  # from dare/paper alone
record = None  # copy the small files to dare/results/<record>/, and make the tables there
results = None  # from dare/results/<results>/ instead of models/


def scored_studies(home, datasets, models):
    """{folder: seed} of the scored studies in `home`, of some data sets and networks (None: all).

    Raises UserError if there are none.
    """
    studies = paths.study_folders(home, "*", "*")
    chosen = {}
    for path, seed in studies.items():
        if (path / "robustness.csv").exists():
            study = scored_rows(path).iloc[0]
            wanted = (study["dataset"], datasets), (study["model"], models)
            if all(names is None or name in names for name, names in wanted):
                chosen[path] = seed
    if not chosen:
        names = f"{','.join(datasets or '*')}_{','.join(models or '*')}_seed*"
        raise UserError(
            f"{home}/{names}/robustness.csv is missing: score a study with `python dare/test.py`, "
            f"or give --results one of {recorded_names()}."
        )
    return chosen


def recorded(name, datasets, models):
    """What is recorded in dare/results/<name>; UserError if it has nothing of these names."""
    if (recording.RESULTS / name / "robustness.csv").exists():
        results = read_recorded(recording.RESULTS / name, datasets, models)
        if len(results.rows):
            return results
    raise UserError(
        f"{recording.RESULTS / name} has no results of these names: give --results one of "
        f"{recorded_names()}."
    )


def recorded_names():
    return ", ".join(
        sorted(path.parent.name for path in recording.RESULTS.glob("*/robustness.csv"))
    )


def main(argv=None):
    args = options(__doc__, argv, globals())
    if sum(map(bool, (args.paper, args.record, args.results))) > 1:
        raise UserError("--paper, --record and --results exclude each other: give one.")
    if args.paper and (args.dataset or args.model):
        raise UserError("--paper is about all networks: leave out --dataset and --model.")
    datasets, models = (names and names.split(",") for names in (args.dataset, args.model))
    named = "_".join(filter(None, (args.dataset, args.model)))
    home = recording.RESULTS / args.results if args.results else paths.HOME / "models"
    target = (
        recording.RESULTS / args.record
        if args.record
        else home / ("paper" if args.paper else named)
    )
    if args.results:
        results = recorded(args.results, datasets, models)
    elif not args.paper:
        results = read_studies(scored_studies(home, datasets, models))
    command = " ".join(["python dare/tables.py", *(sys.argv[1:] if argv is None else argv)])
    with stage(target / "tables.log", "tables", vars(args)):
        if args.paper:
            path = report_of_paper(target, command)
        else:
            results = recording.record(results, target) if args.record else results
            path = report_of_runs(target, results, command)
        print(f"report: {path}", flush=True)


if __name__ == "__main__":
    run_script(main)
