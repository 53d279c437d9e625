"""What the tables of some studies need, kept beside the code in dare/results/.

Called by `python dare/tables.py --record NAME`. Every table of Results is one file there, with the
rows of all studies, and scores.h5 has a group for each: the models that are compared and the worst
cases of adaptive attacks. No weights and no images are kept.
"""

from pathlib import Path

import h5py
import pandas as pd

from dare.evaluation.results import TABLES, read_recorded
from train.shared.artifacts import atomic_write, set_attributes

RESULTS = Path(__file__).resolve().parents[1] / "results"


def record(results, folder):
    """Add studies to a folder of dare/results; returns the Results of all that it holds.

    Other studies in it are kept; an earlier record of the same study is replaced.
    """
    new, studies = dict(results.tables), {*results.rows["study"]}
    kept = set(new["robustness"]["sha256"])
    scores = dict(results.scores)
    if (folder / "robustness.csv").exists():
        earlier = read_recorded(folder)
        for name in TABLES:
            old = earlier.tables[name]
            if len(old):
                old = old[~old["study"].isin(studies)]
                new[name] = pd.concat([old, new[name]], ignore_index=True)
                kept |= set(old["sha256"]) if name == "robustness" else set()
        scores = earlier.scores | scores
    for name in TABLES:
        if len(new[name]):
            with atomic_write(folder / f"{name}.csv") as temporary:
                new[name].to_csv(temporary, index=False)
        else:
            (folder / f"{name}.csv").unlink(missing_ok=True)
    with atomic_write(folder / "scores.h5") as temporary:
        with h5py.File(temporary, "w", libver="latest") as file:
            set_attributes(file, {})
            for study, of_study in sorted(scores.items()):
                single_attacks = ("unknown", *(f"adaptive {a}" for a in ("fgsm", "pgd", "rays")))
                parts = [part for part in of_study.index if not part.startswith(single_attacks)]
                of_study.write(file.create_group(study), kept, parts)
    return read_recorded(folder)
