"""The small part of a study that its tables need, to be kept beside the code: dare/results/.

Called by `python dare/tables.py --record NAME`. Of every study it keeps robustness.csv, log.csv,
adaptive.csv, and of the reported models scores.h5 (right or wrong, image by image) and the worst
cases of adaptive.h5; commands.csv has the recorded commands, with versions, device and times. No
weights and no images.
"""

import shutil
from pathlib import Path

import h5py

from dare.evaluation.report import commands
from dare.evaluation.runs import RULES, RecordedRuns
from dare.evaluation.scores import Scores, arrays_in
from train.artifacts import atomic_write, set_attributes

RESULTS = Path(__file__).resolve().parents[1] / "results"


def record(folders, name):
    """Copy the small part of the studies in `folders` into dare/results/<name>/<study>/.

    Other studies that were recorded under this name stay.
    """
    rows = RecordedRuns(folders).rows
    reported = set(rows.loc[rows[[*RULES]].any(axis=1), "sha256"])
    for folder in folders:
        target = RESULTS / name / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.csv"):
            shutil.copyfile(path, target / path.name)
        with atomic_write(target / "commands.csv") as temporary:
            commands(folder, versions=True).to_csv(temporary, index=False)
        scores = Scores(folder / "scores.h5")
        scores.path = target / "scores.h5"
        scores.packed = {model: bits for model, bits in scores.packed.items() if model in reported}
        scores.save()
        if (folder / "adaptive.h5").exists():
            copy_worst_cases(folder / "adaptive.h5", target / "adaptive.h5", reported)


def copy_worst_cases(source, target, reported):
    with h5py.File(source, "r") as file, atomic_write(target) as temporary:
        with h5py.File(temporary, "w") as copy:
            set_attributes(copy, file.attrs)
            copy["index"] = file["index"][()]
            for model in sorted(reported & set(file)):
                for name, result in arrays_in(file[model]).items():
                    if "/worst/" in name:
                        copy[f"{model}/{name}"] = result
