"""Step 9: the paper's tables, figures and one report, from the recorded runs.

    python dare/tables.py                                   # everything under models/
    python dare/tables.py --dataset digits --model lenet    # one network, all its training seeds
    python dare/tables.py --paper                           # from the paper's published numbers
    python dare/tables.py --record NAME                     # keep what is needed in dare/results
    python dare/tables.py --record NAME --dataset cifar10,svhn --model vgg16       # only of these
    python dare/tables.py --results NAME                    # make the tables from there

Reads models/*/robustness.csv, scores.h5, adaptive.h5, log.csv, slices, targets and samples, and
dare/paper/*.csv. Writes table.md, table.tex, table.csv, table_differences.csv, table_verdict.csv,
for several networks table_networks.csv and table_claims.csv, figures/ and report.html, one file
that needs nothing else. They go to models/ or, with --results, to dare/results/NAME/; there, to a
folder named after --dataset and --model if these are given. With --paper they go to models/paper/,
with --record to dare/results/NAME/. Every number in the tables comes from the files that are read.
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.evaluation import record as recording
from dare.evaluation.report import make_report_of_paper, make_report_of_runs
from dare.evaluation.runs import TEXTS
from train.shared import paths
from train.shared.flags import UserError, options, run_script
from train.shared.log import stage

dataset = None  # one or several, with commas; None: all
model = None  # the same
paper = False  # from dare/paper alone
record = None  # copy the small files to dare/results/<record>/, and make the tables there
results = None  # from dare/results/<results>/ instead of models/


def scored_studies(home, datasets=None, models=None):
    """Folders of the scored studies in `home`; UserError if there are none.

    datasets, models: names with commas; None: all.
    """
    studies = paths.study_folders(home, "*", "*")
    scored = [path for path in studies if (path / "robustness.csv").exists()]
    if chosen := [path for path in scored if is_of(path, datasets, models)]:
        return chosen
    known = ", ".join(sorted(path.name for path in recording.RESULTS.iterdir() if path.is_dir()))
    raise UserError(
        f"{home}/{datasets or '*'}_{models or '*'}_seed*/robustness.csv is missing: score a study "
        f"with `python dare/test.py`, or give --results one of {known}."
    )


def is_of(folder, datasets, models):
    """Whether a scored study is of one of these data sets and networks (None: of any)."""
    study = pd.read_csv(folder / "robustness.csv", nrows=1, converters=TEXTS).iloc[0]
    wanted = {"dataset": datasets, "model": models}
    return all(study[key] in (names or study[key]).split(",") for key, names in wanted.items())


def main(argv=None):
    args = options(__doc__, argv, globals())
    if sum(map(bool, (args.paper, args.record, args.results))) > 1:
        raise UserError("--paper, --record and --results exclude each other: give one.")
    if args.paper and (args.dataset or args.model):
        raise UserError("--paper is about all networks: leave out --dataset and --model.")
    home = recording.RESULTS / args.results if args.results else paths.HOME / "models"
    folders = [] if args.paper else scored_studies(home, args.dataset, args.model)
    target = home / ("paper" if args.paper else "_".join(filter(None, (args.dataset, args.model))))
    if args.record:
        recording.record(folders, args.record)
        target = recording.RESULTS / args.record
        folders = scored_studies(target)
    command = " ".join(["python dare/tables.py", *(sys.argv[1:] if argv is None else argv)])
    with stage(target / "tables.log", "tables", vars(args)):
        if args.paper:
            path = make_report_of_paper(target, command)
        else:
            path = make_report_of_runs(target, folders, command)
        print(f"report: {path}", flush=True)


if __name__ == "__main__":
    run_script(main)
