"""What tuning reads of a study: the slice, the targets and the mined images."""

from dare.contributions import key_neurons_of
from dare.nnslicer import load_slice
from train.fine_tuning import LabelledImages
from train.shared.artifacts import sha256
from train.shared.flags import UserError
from train.shared.paths import slice_path, targets_path
from train.utils import Rows


def read_slice(study, choose_layer, per):
    """Masks, key neurons and SHA-256 of a study's slice file."""
    path = slice_path(study.folder, per)
    other_slices = sorted(set(study.folder.glob("slice_*.h5")) - {path})
    step = study.command("dare/nnslicer.py", per=f"{per:g}")
    if other_slices and not path.exists():
        raise UserError(
            f"{path} is missing, but {other_slices[0].name} exists: pass its --per, or make the "
            f"missing slice with `{step}`."
        )
    with study.open_checked(path, step, per=per) as file:
        slices = load_slice(file)
    newer = [p.name for p in other_slices if p.stat().st_mtime > path.stat().st_mtime]
    if newer:
        print(f"Note: this step uses per {per:g}, not the newer {', '.join(newer)} (see --per).")
    masks = {name: sliced.mask for name, sliced in slices.items()}
    return masks, key_neurons_of(study.classifier, choose_layer, slices, per), sha256(path)


def open_targets(study, choose_layer, name=None):
    """The open file of targets of a layer, for a `with` statement.

    It is ats_<layer>.h5 or, for a control that has targets of its own, ats_<layer>_<name>.h5.
    """
    path = targets_path(study.folder, choose_layer, name)
    step = study.command("dare/get_ats.py", choose_layer=choose_layer)
    return study.open_checked(path, step, choose_layer=choose_layer)


def mined_images(study, choose_layer):
    """The mined images of a layer, with their labels, as LabelledImages."""
    with open_targets(study, choose_layer) as file:
        index = file["index"][()]
        provenance = {"ats_sha256": sha256(file.filename)}
    x, y = study.data("validation")
    return LabelledImages(Rows(x, index), y[index], provenance)
