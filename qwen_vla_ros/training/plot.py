# SPDX-License-Identifier: Apache-2.0
"""A picture of a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

from qwen_vla_ros.training.errors import TrainingError

_PANELS = {
    "flow": "flow-matching loss",
    "action_error": "error of the action read off the text [normalised]",
    "tokens": "grounding loss of the visual tokens",
    "place_error": "distance to the named object [share of the picture]",
}


def draw(metrics: Path, out: Path) -> None:
    """Draw losses and errors of every body over the steps. Raises TrainingError when there are no metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not metrics.is_file():
        raise TrainingError(f"{metrics}: no such file; expected the metrics of a training run")
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    bodies = sorted({name.split("/")[0] for line in lines for name in line if "/" in name})
    for axis, (name, title) in zip(axes.flat, _PANELS.items(), strict=True):
        for body in bodies:
            points = [(line["step"], line[f"{body}/{name}"]) for line in lines if f"{body}/{name}" in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=body, linewidth=1.2)
        axis.set_title(title, fontsize=9)
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    axes.flat[0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)
