"""Step 8: score the original and every tuned model.

    python dare/test.py --dataset digits --model lenet
    python dare/test.py --dataset digits --model lenet --adaptive

Reads data/<dataset>/ and, from models/<dataset>_<model>_seed<N>/, the checkpoints, adv/*.h5 and
tuned/. Writes robustness.csv there, a row for each model, attack and split of the samples, and
scores.h5, which says which images each model gets right. Empirical robustness is the accuracy, in
%, on the samples that succeeded against the original; the split "heldout" is of samples from test
images. Nothing is selected: `last` marks the last epoch of every method, which the tables compare.
`best` marks the epoch and rate that are most robust on the validation samples, for the table beside
the paper's. With --adaptive it also attacks the compared models themselves: last epochs at the
settings that the tables compare (dare/evaluation/results.py). That writes adaptive.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.evaluation.scoring import score_study
from dare.methods import METHODS
from train.shared.artifacts import atomic_write
from train.shared.flags import chosen_names, options, run_script
from train.shared.log import stage
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
adaptive = False  # also attack every compared model itself
adaptive_images = 500  # from the reporting half of x_test
adaptive_methods = "all"  # methods that --adaptive attacks: a list with commas, or all
restarts = 3  # random starts of pgd in these attacks


def last_epochs(table):
    """The last epochs in robustness.csv, as the terminal shows them: a column for each attack."""
    rows = table[table["last"] & (table["split"] == "test")]
    keys = ["method", "per", "choose_layer", "batches", "lr_rate", "run", "epoch", "test_accuracy"]
    wide = rows.groupby([*keys, "attack"], dropna=False, sort=False)["empirical_robustness"]
    wide = wide.first().unstack("attack")
    return wide.assign(mean=wide.mean(axis=1)).round(1).reset_index()


def main(argv=None):
    args = options(__doc__, argv, globals(), adaptive_methods=[*METHODS])
    study = Study.open(args)
    with stage(study.folder / "test.log", "score", vars(args)):
        table, paths = score_study(study)
        path = study.folder / "robustness.csv"
        with atomic_write(path) as temporary:
            table.to_csv(temporary, index=False)
        print(
            "\nLast epochs: robustness on the test part and clean accuracy (test_accuracy), in %\n"
        )
        print(last_epochs(table).to_string(index=False, na_rep="", float_format="{:g}".format))
        print(f"\n{path}: {len(table)} rows", flush=True)
        if args.adaptive:
            from dare.evaluation.adaptive import evaluate

            methods = chosen_names(args.adaptive_methods, METHODS)
            evaluate(study, table, paths, args.adaptive_images, args.restarts, methods)


if __name__ == "__main__":
    run_script(main)
