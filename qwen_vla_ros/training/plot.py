# SPDX-License-Identifier: Apache-2.0
"""A picture of a run's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.saving import read_metrics

_PANELS = {
    "loss": "loss",
    "flow": "flow-matching loss",
    "action_error": "error of the action read off the text [normalised]",
    "tokens": "grounding loss of the visual tokens",
    "place_error": "distance to the named object [share of the picture]",
    "validation_loss": "flow-matching loss of episodes kept out",
    "validation_error": "error of sampled chunks of episodes kept out [normalised]",
    "learning_rate": "learning rate",
}
_SHOWN = 4


def draw(metrics: Path, out: Path) -> None:
    """Draw losses and errors, of every body where there are several, over the steps.

    Raises TrainingError when there are no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(metrics) if metrics.is_file() else []
    if not lines:
        raise TrainingError(f"{metrics}: expected the metrics of a training run")
    curves = _curves(lines)
    several = any(body for panel in curves.values() for body in panel)
    order = [name for name in _PANELS if name in curves and (name != "loss" or not several)][:_SHOWN]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    for axis, name in zip(axes.flat, order, strict=False):
        for body, points in curves[name].items():
            axis.plot(*zip(*points, strict=True), label=body or None, linewidth=1.2)
        axis.set_title(_PANELS[name], fontsize=9)
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    if several:
        axes.flat[0].legend(fontsize=8)
    for axis in list(axes.flat)[len(order) :]:
        axis.axis("off")
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)


def _curves(lines: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points (step, value) by quantity and body; the body is empty where a run has one."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        for key, value in line.items():
            body, _, name = key.rpartition("/")
            if name in _PANELS:
                found.setdefault(name, {}).setdefault(body, []).append((line["step"], value))
    return found
