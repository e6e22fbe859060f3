# SPDX-License-Identifier: Apache-2.0
"""Pictures of what happened: an animation and a plot per body, and a summary file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion.base import compose
from qwen_vla_ros.nodes.recording import Episode, Figures

_SHOWN_CHANNELS = 5
_CAPTION_HEIGHT = 30


def write_animation(frames: list[NDArray[np.uint8]], captions: list[str], path: Path, rate: float) -> None:
    """Write frames as one GIF at `rate` [Hz], each below its caption.

    Args:
        frames: RGB, each of shape (height, width, 3).
        captions: One per frame.
    """
    if not frames:
        raise ValueError(f"{path}: no frames to write")
    font = ImageFont.load_default(16)
    pictures = [_captioned(frame, text, font) for frame, text in zip(frames, captions, strict=True)]
    # An octree keeps small saturated things, which median cut gives up for shades of the floor.
    palette = _mosaic(pictures).quantize(256, Image.Quantize.FASTOCTREE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0)


def _mosaic(pictures: list[Image.Image]) -> Image.Image:
    """Up to eight pictures from all over the list, one below the other."""
    chosen = pictures[:: max(1, len(pictures) // 8)][:8]
    width, height = chosen[0].size
    mosaic = Image.new("RGB", (width, height * len(chosen)))
    for row, picture in enumerate(chosen):
        mosaic.paste(picture, (0, row * height))
    return mosaic


def _captioned(frame: NDArray[np.uint8], text: str, font: ImageFont.ImageFont) -> Image.Image:
    height, width = frame.shape[:2]
    picture = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "white")
    picture.paste(Image.fromarray(frame), (0, _CAPTION_HEIGHT))
    ImageDraw.Draw(picture).text((8, 5), text, fill="black", font=font)
    return picture


def write_plot(episode: Episode, embodiment: Embodiment, path: Path) -> None:
    """Draw the camera view, the planned chunks, and the commanded and measured motion of one episode."""
    base = [g for g in embodiment.actions if g.kind in ("waypoint", "base_velocity")]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    figure.suptitle(
        f'{episode.embodiment}: "{episode.instruction}", '
        f"{'reached' if episode.success else 'not reached'} after {episode.elapsed:.1f} s"
    )
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.2])
    _draw_views(left.subplots(max(1, len(episode.views)), 1, squeeze=False)[:, 0], episode)
    if base:
        _draw_base(right, episode, base[0].name, embodiment)
    else:
        _draw_joints(right, episode, embodiment)
    figure.savefig(path, dpi=110)


def _draw_views(axes: np.ndarray, episode: Episode) -> None:
    for axis, (view, image) in zip(axes, episode.views.items(), strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(f"camera {view}, {image.shape[1]} x {image.shape[0]}", fontsize=10)
        axis.axis("off")


def _draw_joints(figure: Figure, episode: Episode, embodiment: Embodiment) -> None:
    columns = _joint_columns(episode, embodiment)
    travel = {
        name: np.ptp(measured[:, i]) for name, (_, i, _, measured, _) in columns.items() if len(measured)
    }
    shown = sorted(travel, key=travel.__getitem__, reverse=True)[:_SHOWN_CHANNELS]
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, [n for n in columns if n in shown], strict=True):
        channel, i, times, measured, group = columns[name]
        for chunk in episode.chunks:
            axis.plot(chunk.due - episode.started, chunk.data[:, channel], ".-", color="0.75", ms=3, lw=0.8)
        if group in episode.commanded:
            at, rows = episode.commanded[group].arrays()
            axis.plot(at - episode.started, rows[:, i], color="C1", lw=1.6)
        axis.plot(times - episode.started, measured[:, i], color="C0", lw=1.2)
        axis.set_ylabel(f"{name.split('/')[-1]}\n[{_unit(embodiment, group)}]", fontsize=8)
        axis.set_xlim(0, max(episode.elapsed, 1e-3))
    axes[-1].set_xlabel("time [s]")
    _legend(axes[0])


def _joint_columns(
    episode: Episode, embodiment: Embodiment
) -> dict[str, tuple[int, int, np.ndarray, np.ndarray, str]]:
    """By channel name: columns in chunk and group, times and rows measured, name of the group."""
    columns = {}
    for group in embodiment.actions:
        series = episode.measured.get(group.name)
        if series is None:
            continue
        times, rows = series.arrays()
        start = embodiment.layout.slice_of(group.name).start
        for i in range(rows.shape[1]):
            columns[embodiment.layout.names[start + i]] = (start + i, i, times, rows, group.name)
    return columns


def _unit(embodiment: Embodiment, group: str) -> str:
    """Unit of the named action group."""
    return next(g.unit for g in embodiment.actions if g.name == group)


def _draw_base(figure: Figure, episode: Episode, group: str, embodiment: Embodiment) -> None:
    plan, speed = figure.subplots(1, 2, width_ratios=[1.3, 1])
    times, poses = episode.measured[group].arrays()
    columns = embodiment.layout.slice_of(group)
    for chunk in episode.chunks:
        at = int(np.argmin(np.abs(times - chunk.stamp)))
        path = np.vstack([poses[at], compose(poses[at], chunk.data[:, columns])])
        plan.plot(path[:, 0], path[:, 1], ".-", color="0.75", ms=4, lw=0.8)
    plan.plot(poses[:, 0], poses[:, 1], color="C0", lw=1.6)
    plan.plot(*poses[0, :2], "ko", ms=5)
    plan.set_aspect("equal", adjustable="datalim")
    plan.set_xlabel("x [m]")
    plan.set_ylabel("y [m]")
    plan.set_title("planned (grey) and driven path in the odometry frame", fontsize=9)
    if group in episode.commanded:
        at, rows = episode.commanded[group].arrays()
        speed.plot(at - episode.started, rows[:, 0], label="commanded v [m/s]", color="C1")
        speed.plot(at - episode.started, rows[:, 1], label="commanded w [rad/s]", color="C2")
    dt = np.diff(times)
    moved = np.hypot(*np.diff(poses[:, :2], axis=0).T)
    speed.plot(
        times[1:] - episode.started, moved / np.maximum(dt, 1e-6), label="measured |v| [m/s]", color="C0"
    )
    speed.set_xlabel("time [s]")
    speed.legend(fontsize=8)


def _legend(axis: Axes) -> None:
    for label, colour in (("planned chunks", "0.75"), ("commanded", "C1"), ("measured", "C0")):
        axis.plot([], [], color=colour, label=label)
    axis.legend(fontsize=8, ncols=3, loc="upper right")


def write_summary(results: dict[str, tuple[list[Episode], Figures]], path: Path) -> None:
    """Write the figures and the outcome of every episode as JSON."""
    summary = {
        name: {
            "figures": asdict(figures),
            "episodes": [
                {
                    "instruction": e.instruction,
                    "seed": e.seed,
                    "success": e.success,
                    "distance": e.distance,
                    "elapsed": e.elapsed,
                    "code": e.code,
                    "message": e.message,
                }
                for e in episodes
            ],
        }
        for name, (episodes, figures) in results.items()
    }
    path.write_text(json.dumps(summary, indent=2) + "\n")
