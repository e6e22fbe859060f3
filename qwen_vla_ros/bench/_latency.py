# SPDX-License-Identifier: Apache-2.0
"""Where the time of one chunk goes, against an eager baseline and the roofline, all in one run."""

from __future__ import annotations

import gc
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen_vla_ros.bench.__main__ import machine
from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.fixed import FixedModel, shape_of
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.presets import paper_config, tiny_config
from qwen_vla_ros.model.processor import ProcessorConfig, QwenVLAProcessor
from qwen_vla_ros.model.tiny_tokenizer import IMAGE, VIDEO, VISION_END, VISION_START, build_tiny_tokenizer
from qwen_vla_ros.policy.engine import Engine

# What transformers, and so the baseline, takes for Gated DeltaNet where it is installed.
KERNELS = ("flash-linear-attention", "causal-conv1d")
PRESETS = ("tiny", "scaled", "paper")
VIEWS = ("ego", "cam_left_wrist", "cam_right_wrist")
INSTRUCTION = (
    "The robot is ALOHA with dual arms. The control frequency is 50 Hz. Please predict the next 16 control "
    "actions to execute the following task: pick up the red cube with the left arm."
)
CAMERA = (480, 640)  # [px]
# [s]; `time.thread_time` on a machine that does other work.
timer = time.perf_counter
STAGES = ("copy", "preprocess", "vision", "backbone", "DiT per step", "decode", "publish")


@dataclass(frozen=True)
class Setting:
    """One point of the table."""

    views: int = 2
    horizon: int = 16
    steps: int = 4


@dataclass
class Row:
    """What was measured at a setting. Times in ms; by stage p50 and p99.

    Attributes:
        stages: Of `STAGES`, each called by itself; publish only where there is ROS.
        chunk: Images at the size of the camera to a chunk, through the engine.
        eager: The same through transformers' own forward.
        roofline: Time that the arithmetic or the weights' bytes take at the throughput measured here.
        difference: Largest difference of a normalised action between the two.
    """

    setting: Setting
    tokens: int
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    chunk: tuple[float, float] = (0.0, 0.0)
    eager: tuple[float, float] = (0.0, 0.0)
    roofline: float = 0.0
    bound: str = ""
    gflop: float = 0.0
    difference: float = 0.0
    engine: str = ""
    peak_mib: float = 0.0


def configuration(preset: str, horizon: int) -> tuple[QwenVLAConfig, QwenVLAProcessor]:
    """Sizes of a preset: `tiny` as shipped, `scaled` between, `paper`."""
    tokenizer = build_tiny_tokenizer()
    config = paper_config() if preset == "paper" else tiny_config(tokenizer)
    if preset == "scaled":
        text, vision, expert = (
            config.backbone.text_config,
            config.backbone.vision_config,
            config.action_expert,
        )
        text.hidden_size, text.intermediate_size, text.num_hidden_layers = 384, 1024, 8
        text.layer_types = (["linear_attention"] * 3 + ["full_attention"]) * 2
        vision.hidden_size, vision.intermediate_size, vision.out_hidden_size, vision.depth = 384, 1024, 384, 6
        expert.hidden_size, expert.intermediate_size, expert.num_hidden_layers = 384, 1280, 6
    ids = tokenizer.get_vocab()
    config.backbone.image_token_id, config.backbone.video_token_id = ids[IMAGE], ids[VIDEO]
    config.backbone.vision_start_token_id = ids[VISION_START]
    config.backbone.vision_end_token_id = ids[VISION_END]
    config.action_expert.horizon = horizon
    side = 128 if preset == "tiny" else 224
    return config, QwenVLAProcessor(tokenizer, ProcessorConfig(image_size=(side, side), chat=False))


def random_model(
    config: QwenVLAConfig, device: torch.device, dtype: torch.dtype
) -> QwenVLAForActionPrediction:
    """Random weights, made on the device in their own type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = QwenVLAForActionPrediction(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(std=parameter[0].numel() ** -0.5)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def release() -> None:
    """Give back what models that are no longer in use took: they may hold themselves in a circle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clock(work: Callable[[], Any], runs: int, device: torch.device) -> tuple[float, float]:
    """p50 and p99 of a call [ms], with the wait for the device."""
    return clocks((work,), runs, device)[0]


def clocks(works: Sequence[Callable[[], Any]], runs: int, device: torch.device) -> list[tuple[float, float]]:
    """As `clock`, of several in turn: what else the machine does meets all of them alike."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for work in works:
        work()
        work()
    found: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, times in zip(works, found, strict=True):
            wait()
            began = timer()
            work()
            wait()
            times.append(1e3 * (timer() - began))
    return [(float(np.percentile(times, 50)), float(np.percentile(times, 99))) for times in found]


def throughput(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Best of several: bytes per second that a copy moves, operations per second of a matrix product."""
    cuda = device.type == "cuda"
    source = torch.zeros((1 << 30) if cuda else (1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if cuda else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    best = [float("inf"), float("inf")]
    for _ in range(8):
        best[0] = min(best[0], clock(lambda: target.copy_(source), 1, device)[0])
        best[1] = min(best[1], clock(lambda: matrix @ matrix, 1, device)[0])
    return 2e3 * source.numel() / best[0], 2e3 * side**3 / best[1]


@lru_cache
def publishing(rows: int, channels: int, runs: int) -> tuple[float, float] | None:
    """p50 and p99 of a chunk from array to middleware [ms]; None without ROS."""
    if find_spec("rclpy") is None or find_spec("qwen_vla_ros.msg") is None:
        return None
    import rclpy

    from qwen_vla_ros.msg import ActionChunk
    from qwen_vla_ros.nodes import qos

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("bench", context=context)
    publisher = node.create_publisher(ActionChunk, "bench/action_chunk", qos.RELIABLE)
    chunk, names = np.zeros((rows, channels)), [f"arm/{k}" for k in range(channels)]

    def publish() -> None:
        publisher.publish(
            ActionChunk(channels=names, step=0.1, horizon=len(chunk), data=chunk.ravel().tolist())
        )

    try:
        return clock(publish, runs, torch.device("cpu"))
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def measure(
    preset: str,
    setting: Setting,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    speed: tuple[float, float],
) -> Row:
    """Build a model of this preset and time it.

    Args:
        speed: From `throughput`.
    """
    cuda = device.type == "cuda"
    release()  # or the peak would be that of two models
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    config, processor = configuration(preset, setting.horizon)
    model = random_model(config, device, dtype)
    views = VIEWS[: setting.views]
    text = "".join(f"<|{v}_start|><|vision_start|><|image_pad|><|vision_end|><|{v}_end|>" for v in views)
    ids = processor.token_ids(text + INSTRUCTION, views)
    shape = shape_of(processor, ids, views, setting.steps)
    engine = Engine(model, shape)
    rng = np.random.default_rng(0)
    cameras = [(view, rng.integers(0, 256, (*CAMERA, 3), dtype=np.uint8)) for view in views]
    batch = {
        name: tensor.to(device) for name, tensor in processor.prompts([(text + INSTRUCTION, views)]).items()
    }
    expert = config.action_expert
    mask = torch.ones(1, expert.horizon, expert.channels, dtype=torch.bool, device=device)
    generator = torch.Generator(device)
    temperature = float(config.flow.noise_temperature)

    def fast() -> np.ndarray:
        return engine.run(processor.frames(cameras), ids, generator.manual_seed(1), temperature)

    def eager() -> np.ndarray:
        images = processor.images(cameras)
        context = model.encode(
            batch["input_ids"],
            batch["attention_mask"],
            images["image_grid_thw"],
            pixel_values=images["pixel_values"].to(device),
            position_ids=batch["position_ids"],
        )
        sample = model.sample(context, mask, setting.steps, generator.manual_seed(1))
        return sample[0].float().cpu().numpy()

    row = Row(setting, len(ids), engine=engine.how)
    with torch.inference_mode():
        model.implementation = "stock"
        row.difference = float(np.abs(fast() - eager()).max())
        row.eager, row.chunk = clocks((eager, fast), runs, device)
        fixed: FixedModel = engine.fixed
        frames = torch.from_numpy(processor.frames(cameras)).to(device)
        tokens = torch.tensor(ids, device=device)
        features = fixed.embed_images(frames)
        read = fixed.read(features, tokens)
        noise = torch.randn(expert.horizon, expert.channels, device=device)
        ones = torch.ones_like(noise)
        row.stages["copy"] = clock(engine.copy, runs, device)
        row.stages["preprocess"] = clock(lambda: processor.frames(cameras), runs, device)
        row.stages["vision"] = clock(lambda: fixed.embed_images(frames), runs, device)
        row.stages["backbone"] = clock(lambda: fixed.read(features, tokens), runs, device)
        p50, p99 = clock(lambda: fixed.sample(read, noise, ones), runs, device)
        row.stages["DiT per step"] = (p50 / setting.steps, p99 / setting.steps)
        chunk = fast().astype(np.float64)
        row.stages["decode"] = clock(lambda: np.clip(chunk, -1, 1) * 0.5 + 0.5, runs, device)
        if (published := publishing(expert.horizon, expert.channels, runs)) is not None:
            row.stages["publish"] = published
        parts = (
            (lambda: fixed.embed_images(frames), _bytes(model.backbone.model.visual), 1),
            (lambda: fixed.read(features, tokens), _bytes(model.backbone.model.language_model.layers), 1),
            (
                lambda: fixed.sample(read, noise, ones),
                _bytes(model.action_expert, "modulation"),
                setting.steps,
            ),
        )
        bounds = []
        for work, weights, times in parts:
            with FlopCounterMode(display=False) as counter:
                work()
            operations = counter.get_total_flops()
            row.gflop += operations / 1e9
            memory, arithmetic = weights * times / speed[0], operations / speed[1]
            bounds.append("memory" if memory > arithmetic else "arithmetic")
            row.roofline += 1e3 * max(memory, arithmetic)
        row.bound = ", ".join(bounds)
    if cuda:
        row.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return row


def _bytes(module: torch.nn.Module, without: str = "") -> int:
    return sum(
        p.numel() * p.element_size()
        for name, p in module.named_parameters()
        if not without or without not in name
    )


def settings(views: list[int], horizons: list[int], steps: list[int]) -> list[Setting]:
    """The middle of the table, and one thing changed at a time."""
    base = Setting()
    found = [base, *(Setting(views=v) for v in views), *(Setting(horizon=h) for h in horizons)]
    return list(dict.fromkeys([*found, *(Setting(steps=s) for s in steps)]))


def report(
    preset: str,
    rows: list[Row],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    speed: tuple[float, float],
    start: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything as plain JSON types. start: A `StartUp`, where one was measured."""
    return {
        "machine": {
            **machine(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "kernels": kernels(),
            "threads": torch.get_num_threads(),
        },
        "preset": preset,
        "type": str(dtype).removeprefix("torch."),
        "runs": runs,
        "times": "of the thread" if timer is time.thread_time else "wall",
        "copy GB/s": speed[0] / 1e9,
        "product GFLOP/s": speed[1] / 1e9,
        "rows": [asdict(row) for row in rows],
        "start-up": start,
    }


def kernels() -> dict[str, str]:
    """Versions of `KERNELS`; `none` of what is not installed."""
    versions = {}
    for name in KERNELS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions


def markdown(found: dict[str, Any]) -> str:
    """The report as a table."""
    facts = found["machine"]
    lines = [
        f"{facts['device']}, {facts['cpu']}, {facts['cores']} cores, load {facts['load'][0]} at the end; "
        f"torch {facts['torch']}, {facts['threads']} threads, "
        f"{', '.join(' '.join(pair) for pair in facts['kernels'].items())}; "
        f"preset {found['preset']}, {found['type']}, {found['runs']} runs, "
        f"times {found['times']}; copy {found['copy GB/s']:.1f} GB/s, "
        f"product {found['product GFLOP/s']:.0f} GFLOP/s.",
        "",
        f"| views | H | steps | tokens | {' | '.join(STAGES)} | chunk p50 | p99 "
        "| eager p50 | eager / ours | roofline | ours / roofline | peak MiB | difference |",
        "|" + "---|" * 19,
    ]
    for row in found["rows"]:
        s, stages = row["setting"], row["stages"]
        cells = [s["views"], s["horizon"], s["steps"], row["tokens"]]
        cells += [f"{stages[name][0]:.2f}" if name in stages else "" for name in STAGES]
        cells += [f"{row['chunk'][0]:.1f}", f"{row['chunk'][1]:.1f}", f"{row['eager'][0]:.1f}"]
        cells += [f"{row['eager'][0] / row['chunk'][0]:.2f}", f"{row['roofline']:.2f}"]
        cells += [
            f"{row['chunk'][0] / row['roofline']:.1f}",
            f"{row['peak_mib']:.0f}",
            f"{row['difference']:.0e}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Times in ms. Stages are timed one by one, operation by operation."]
    if (start := found["start-up"]) is not None:
        lines += [
            "",
            f"Start-up with files in the cache, engine {start['engine']}: {start['total']:.1f} s, of it "
            f"imports {start['imports']:.1f}, load {start['load']:.1f}, configure {start['configure']:.1f}. "
            f"Weights {start['weights_mib']:.0f} MiB; at most {start['host_mib']:.0f} MiB of the host that "
            f"no file stands for, {start['device_mib']:.0f} MiB of the device.",
        ]
    return "\n".join([*lines, ""])


def plot(found: dict[str, Any], path: Path) -> None:
    """Time of a chunk over views, rows and Euler steps, the rest as in the middle of the table."""
    from matplotlib.figure import Figure

    base = asdict(Setting())
    names = {"views": "views", "horizon": "rows of the chunk, H", "steps": "Euler steps"}
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for panel, (name, label) in zip(panels, names.items(), strict=True):
        rows = {
            row["setting"][name]: row
            for row in found["rows"]
            if all(row["setting"][other] == base[other] for other in names if other != name)
        }
        points = sorted(rows)
        eager, ours = ([rows[p][key][0] for p in points] for key in ("eager", "chunk"))
        panel.plot(points, eager, "o-", color="0.6", label="eager transformers, p50")
        panel.plot(points, ours, "o-", color="tab:blue", label="engine, p50")
        panel.plot(points, [rows[p]["roofline"] for p in points], "k--", label="roofline")
        panel.set(xlabel=label, xticks=points)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("one chunk [ms]")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{found['preset']}, {found['type']}, {found['machine']['device']}", fontsize=10)
    figure.savefig(path, dpi=120)


def write(found: dict[str, Any], out: Path) -> list[Path]:
    """Write `out`.json, `out`.md and, where there is matplotlib, `out`.png; what was written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(found))
    written = [out.with_suffix(".json"), out.with_suffix(".md")]
    if find_spec("matplotlib") is not None:
        written.append(out.with_suffix(".png"))
        plot(found, written[-1])
    return written
