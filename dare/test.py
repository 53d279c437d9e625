"""Step 8: score the original and every tuned model, and select an epoch of each method.

    python dare/test.py --dataset digits --model lenet
    python dare/test.py --dataset digits --model lenet --adaptive

Reads data/<dataset>/ and, from models/<dataset>_<model>_seed<N>/, the checkpoints, adv/*.h5 and
tuned/. Writes robustness.csv there, a row for each model and attack on the validation samples, and
for each selected model on the test samples too; and scores.h5, which says which images each model
gets right. Empirical robustness is the accuracy, in %, on the samples that succeeded against the
original. With --adaptive it also attacks every selected model itself, and writes adaptive.csv and
adaptive.h5.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dare.evaluation.runs import TABLE_RULES
from dare.evaluation.selection import score_study, selected_models
from dare.methods import METHODS
from train.shared.artifacts import atomic_write
from train.shared.flags import chosen_names, options, run_script
from train.shared.log import stage
from train.shared.study import Study

dataset = "digits"
model = "lenet"
seed = 0
adaptive = False  # also attack every selected model itself
adaptive_images = 500  # from the reporting half of x_test
adaptive_methods = "all"  # methods that --adaptive attacks: a list with commas, or all
restarts = 3  # random starts of pgd in these attacks


def main(argv=None):
    args = options(__doc__, argv, globals(), adaptive_methods=[*METHODS])
    study = Study.open(args)
    with stage(study.folder / "test.log", "score", vars(args)):
        table, weights = score_study(study)
        path = study.folder / "robustness.csv"
        with atomic_write(path) as temporary:
            table.to_csv(temporary, index=False)
        for rule, title in TABLE_RULES.items():
            models = selected_models(table, rule)
            print(f"\nEmpirical robustness and clean accuracy (test_accuracy) in %: {title}\n")
            print(models.to_string(index=False, na_rep="", float_format="{:g}".format))
        print(f"\n{path}: {len(table)} rows", flush=True)
        if args.adaptive:
            from dare.evaluation.adaptive import evaluate

            methods = chosen_names(args.adaptive_methods, METHODS)
            evaluate(study, table, weights, args.adaptive_images, args.restarts, methods)


if __name__ == "__main__":
    run_script(main)
