"""The small part of a study that its tables need, kept beside the code in dare/results/.

Called by `python dare/tables.py --record NAME`. For every study it keeps robustness.csv, log.csv
and adaptive.csv, and for the reported models scores.h5 (which images each gets right) and the worst
cases of adaptive.h5. commands.csv holds the recorded commands, with versions, device and times, and
facts.json what warnings and the table of networks need. No weights and no images are kept.
"""

import json
import shutil

import h5py

from dare.evaluation.facts import FACTS_FILE, facts
from dare.evaluation.runs import ROOT, RecordedRuns, commands
from dare.evaluation.scores import SELECTION_RULES, Scores, arrays_in
from train.shared.artifacts import atomic_write, open_artifact, set_attributes, write_text
from train.shared.flags import command_of

RESULTS = ROOT / "dare" / "results"


def record(folders, name):
    """Copy the small part of the studies in `folders` to dare/results/<name>/<study>/.

    Other studies that were recorded under this name stay. Of an earlier run of the same study
    nothing stays.
    """
    rows = RecordedRuns(folders).rows
    reported = set(rows.loc[rows[[*SELECTION_RULES]].any(axis=1), "sha256"])
    for folder in folders:
        target = RESULTS / name / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for path in [*target.glob("*.csv"), target / "adaptive.h5"]:
            if not (folder / path.name).exists():  # of an earlier run
                path.unlink(missing_ok=True)
        for path in folder.glob("*.csv"):
            shutil.copyfile(path, target / path.name)
        with atomic_write(target / "commands.csv") as temporary:
            commands(folder, versions=True).to_csv(temporary, index=False)
        write_text(target / FACTS_FILE, json.dumps(facts(folder), indent=1) + "\n")
        scores = Scores(folder / "scores.h5")
        scores.path = target / "scores.h5"
        scores.packed = {model: bits for model, bits in scores.packed.items() if model in reported}
        scores.save()
        if (folder / "adaptive.h5").exists():
            copy_worst_cases(folder / "adaptive.h5", target / "adaptive.h5", reported)


def copy_worst_cases(source, target, reported):
    """Copy the worst cases of the reported models from one adaptive.h5 to another."""
    step = command_of("dare/test.py --adaptive")
    with open_artifact(source, step) as file, atomic_write(target) as temporary:
        with h5py.File(temporary, "w") as copy:
            set_attributes(copy, file.attrs)
            copy["index"] = file["index"][()]
            for model in sorted(reported & set(file)):
                for name, result in arrays_in(file[model]).items():
                    if "/worst/" in name:
                        copy[f"{model}/{name}"] = result
