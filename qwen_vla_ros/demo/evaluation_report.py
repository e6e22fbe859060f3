# SPDX-License-Identifier: Apache-2.0
"""A report in Markdown from results of evaluations: tables, a plot, a contact sheet of frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qwen_vla_ros.embodiment import list_embodiments, load_embodiment
from qwen_vla_ros.training.results import Entry, Evaluation, Swap, gather

_FRAME = 240, 180
_CAPTION = 22
_EPISODES_SHOWN = 2
_FAILURES_SHOWN = 4  # of an entry
# Of bars, by what the episodes ran through.
_COLOURS = {"lock-step": "#4c78a8", "ros": "#f58518"}


def write_report(evaluations: Sequence[Evaluation], folder: Path) -> Path:
    """Write `README.md`, `success.png` and `frames.jpg` into a folder. Returns the path of the first.

    Of entries about the same, the last one counts.
    """
    entries = gather(evaluations)
    swaps = list(
        {
            (swap.pair, swap.task, swap.setting): swap for each in evaluations for swap in each.conventions
        }.values()
    )
    if not entries and not swaps:
        raise ValueError("no results to report")
    folder.mkdir(parents=True, exist_ok=True)
    own = [entry for entry in entries if entry.control == "none"]
    controls = [entry for entry in entries if entry.control != "none"]
    lines = ["# Evaluation", ""]
    lines += [f"- {line}" for line in dict.fromkeys(_origin(each) for each in evaluations)] + [""]
    lines += [
        "Closed loop in MuJoCo physics, scenes that demonstrations never use. Intervals: Wilson, 95 %. Time: "
        "median of the successful episodes. Jerk: root mean square of the commanded path, median of the "
        "episodes [rad/s^3, of a base m/s^3]. In lock-step the world waits for each chunk, or lets the time "
        "pass that is given.",
        "",
    ]
    if own:
        write_plot(own, folder / "success.png")
        lines += ["## Success", "", "![Success by body and task](success.png)", "", *_table(own), ""]
        if write_contact_sheet(own, folder / "frames.jpg"):
            lines += ["Start, half-way and end of the first episodes:", "", "![Frames](frames.jpg)", ""]
    if rows := _through_nodes(own):
        lines += ["## Through the nodes", "", *rows, ""]
    if controls:
        lines += ["## Controls", "", *_controls(controls), ""]
    if swaps:
        lines += ["## Does the sentence choose the convention?", "", *_swaps(swaps), ""]
    if failures := _failures(own):
        lines += ["## Failures", "", *failures, ""]
    path = folder / "README.md"
    path.write_text("\n".join(lines))
    return path


def _failures(entries: Sequence[Entry]) -> list[str]:
    """The first of each entry; empty without any."""
    lines = []
    for entry in entries:
        what = f"{entry.embodiment} | {entry.task} | {entry.conditions}"
        failed = [e for e in entry.episodes if not e.success]
        lines += [f"| {what} | {e.scene} | {e.instruction} | {e.detail} |" for e in failed[:_FAILURES_SHOWN]]
        if len(failed) > _FAILURES_SHOWN:
            lines.append(f"| {what} | | | {len(failed) - _FAILURES_SHOWN} more |")
    head = ["| body | task | through | scene | instruction | what happened |", "|---|---|---|---|---|---|"]
    return [*head, *lines] if lines else []


def _origin(evaluation: Evaluation) -> str:
    text = f"checkpoint `{evaluation.checkpoint}`"
    if evaluation.parameters:
        text += f", {evaluation.parameters / 1e6:.1f} M parameters"
    return text + (f"; {evaluation.machine}" if evaluation.machine else "")


def _rate(entry: Entry | Swap, hits: int, trials: int) -> str:
    low, high = entry.interval
    return f"{hits}/{trials} | {100 * entry.rate:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"


def _table(entries: Sequence[Entry]) -> list[str]:
    lines = [
        "| body | task | setting | wording | through | seeds from | success | rate | time | jerk |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        seconds = "-" if entry.seconds is None else f"{entry.seconds:.1f} s"
        lines.append(
            f"| {entry.embodiment} | {entry.task} | {entry.setting} | {entry.wording} | {entry.conditions} | "
            f"{entry.seed} | {_rate(entry, entry.successes, len(entry.episodes))} | {seconds} | "
            f"{entry.rms_jerk:.0f} |"
        )
    return lines


def _through_nodes(entries: Sequence[Entry]) -> list[str]:
    """Rows about the scenes that were run both in lock-step and through the nodes; empty without any."""
    both = [
        (entry, reference)
        for entry in entries
        for reference in entries
        if entry.through == "ros" and reference.through == "lock-step" and reference.asked == entry.asked
    ]
    rows = []
    for entry, reference in both:
        before = {(e.scene, e.instruction): e.success for e in reference.episodes}
        pairs = [
            (before[key], e.success) for e in entry.episodes if (key := (e.scene, e.instruction)) in before
        ]
        if not pairs:
            continue
        first, second = (sum(hits) for hits in zip(*pairs, strict=True))
        points = 100 * (second - first) / len(pairs)
        rows.append(
            f"| {entry.embodiment} | {entry.task} | {entry.setting} | {entry.wording} | {len(pairs)} "
            f"| {1000 * reference.latency:.0f} ms | {first} | {second} | {points:+.0f} "
            f"| {pairs.count((True, False))} | {pairs.count((False, True))} |"
        )
    if not rows:
        return []
    return [
        "The same scenes and instructions in lock-step and through the ROS nodes, where images and chunks "
        "take time and the robot moves meanwhile. Latency: from picture to chunk, in lock-step.",
        "",
        "| body | task | setting | wording | scenes | latency | lock-step | nodes | points "
        "| only lock-step | only nodes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _controls(entries: Sequence[Entry]) -> list[str]:
    lines = [
        "| control | body | task | setting | success | rate | ended at the object named |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(entries, key=lambda each: each.control):
        lines.append(
            f"| {entry.control} | {entry.embodiment} | {entry.task} | {entry.setting} | "
            f"{_rate(entry, entry.successes, len(entry.episodes))} | {entry.named}/{len(entry.episodes)} |"
        )
    return lines


def _swaps(swaps: Sequence[Swap]) -> list[str]:
    lines = [
        "The same scenes under the sentences of two embodiments, sampled without a mask: is what comes out "
        "nearer to the expert in the convention of the sentence than in the other one?",
        "",
        "| embodiments | task | setting | right | rate | distance to the sentence's, to the other |",
        "|---|---|---|---|---|---|",
    ]
    for swap in swaps:
        own, other = swap.distance
        lines.append(
            f"| {' / '.join(swap.pair)} | {swap.task} | {swap.setting} | "
            f"{_rate(swap, swap.right, swap.trials)} | {own:.3f}, {other:.3f} |"
        )
    return lines


def _label(entry: Entry) -> str:
    words = [entry.embodiment, entry.task, entry.setting]
    if entry.wording != "plain":
        words.append(entry.wording)
    if entry.conditions != "lock-step":
        words.append(entry.conditions)
    return " ".join(words)


def write_plot(entries: Sequence[Entry], path: Path) -> None:
    """Bars of the success rates with their intervals."""
    figure = Figure(figsize=(9, 0.8 + 0.36 * len(entries)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(entries))[::-1]
    rates = np.array([entry.rate for entry in entries])
    low, high = np.array([entry.interval for entry in entries]).T
    # Rounding may put the rate just outside of its interval.
    errors = np.maximum(0.0, [rates - low, high - rates])
    colours = [_COLOURS[entry.through] for entry in entries]
    axis.barh(places, rates, xerr=errors, color=colours, ecolor="0.3", capsize=3, height=0.65)
    axis.set_yticks(places, [_label(entry) for entry in entries], fontsize=8)
    axis.set_xlim(0.0, 1.02)
    axis.set_ylim(-0.6, len(entries) - 0.4)
    axis.set_xlabel("success")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def write_contact_sheet(entries: Sequence[Entry], path: Path) -> bool:
    """Start, half-way and end of the first episodes, drawn from their states. False if there are none."""
    from qwen_vla_ros.sim import make_world

    rows: list[tuple[str, list[NDArray[np.uint8]]]] = []
    for entry in entries:
        shown = [episode for episode in entry.episodes if episode.frames][:_EPISODES_SHOWN]
        if not shown or entry.embodiment not in list_embodiments():
            continue
        with make_world(load_embodiment(entry.embodiment), entry.setting) as world:
            for episode in shown:
                world.reset(entry.task, episode.scene)
                frames = [world.render_state(np.array(qpos), "spectator", *_FRAME) for qpos in episode.frames]
                ending = "done" if episode.success else "not done"
                rows.append(
                    (f'{entry.embodiment} {episode.scene}: "{episode.instruction}", {ending}', frames)
                )
    if not rows:
        return False
    width, height = _FRAME
    columns = 2 if len(rows) > 1 else 1
    across = width * max(len(frames) for _, frames in rows)
    sheet = Image.new(
        "RGB", (columns * (across + 8), -(-len(rows) // columns) * (height + _CAPTION)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (caption, frames) in enumerate(rows):
        x, y = index % columns * (across + 8), index // columns * (height + _CAPTION)
        draw.text((x + 4, y + 3), caption, fill="black", font=font)
        for k, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (x + k * width, y + _CAPTION))
    sheet.save(path, quality=82)
    return True
