"""A picture of adversarial samples."""

import numpy as np

from adv.attacks.losses import per_image
from train.shared.artifacts import atomic_write
from train.shared.figures import plt


def draw_samples(path, name, original, adversarial, captions):
    """Save a grid of originals, adversarial images and their differences, as PNG.

    Each difference is magnified to full contrast.

    Args:
        path: of the PNG. name: of the attack.
        original, adversarial: (n, h, w, c) in [0, 1].
        captions: names of the classes of the originals, and of the predicted classes.
    """
    difference = adversarial - original
    largest = np.abs(difference).max(axis=(1, 2, 3))
    magnified = 0.5 + 0.5 * difference / per_image(largest)
    labels, predicted = captions
    rows = {
        "original": (original, labels),
        name: (adversarial, [f"predicted\n{label}" for label in predicted]),
        "difference": (magnified, [f"x{0.5 / size:.3g}" for size in largest]),
    }
    n = len(original)
    figure, axes = plt.subplots(
        3, n, figsize=(1.2 * n + 0.6, 4.6), squeeze=False, layout="constrained"
    )
    for row, (title, (images, texts)) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, image, text in zip(row, images, texts, strict=True):
            axis.imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            drawn = text.encode(errors="replace").decode()  # class folders may not be valid UTF-8
            axis.set_title(drawn, fontsize=7, parse_math=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
