# SPDX-License-Identifier: Apache-2.0
"""A policy that runs a checkpoint with torch in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import (
    Embodiment,
    EmbodimentError,
    Statistics,
    normalise,
    render_prompt,
    resolve_statistics,
)
from qwen_vla_ros.model import flow_matching
from qwen_vla_ros.model.checkpoint import Checkpoint, load_checkpoint
from qwen_vla_ros.model.processor import ProcessorError
from qwen_vla_ros.policy.interface import Continuation, Observation, ObservationError, PolicyError, PolicyInfo

WARM_UP_RUNS = 2


@dataclass(frozen=True)
class _Configured:
    embodiment: Embodiment
    statistics: Statistics
    mask: torch.Tensor  # (1, H, K)


def usable_cpus() -> int:
    """Number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(device: str) -> torch.device:
    """`auto` or a torch device name -> a device that is there. Raises PolicyError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise PolicyError(f"device {device!r}: cannot be used: {first}; try `auto` or `cpu`") from error
    return chosen


class LocalPolicy:
    """See `Policy`.

    Args:
        checkpoint: From `load_checkpoint`, on the device to run on.
        steps, temperature, threads: See `load_policy`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("threads", threads)):
            if value is not None and value < 1:
                raise PolicyError(f"{name}: expected at least 1, found {value}")
        if temperature is not None and not 0.0 <= temperature < float("inf"):
            raise PolicyError(f"temperature: expected 0 or more, found {temperature}")
        # A thread that waits for a busy core holds up the others: leave one for the rest of the robot.
        torch.set_num_threads(max(1, usable_cpus() - 1) if threads is None else threads)
        self._checkpoint = checkpoint
        self._model = checkpoint.model.eval().requires_grad_(False)
        self._processor = checkpoint.processor
        self._steps, self._temperature = steps, temperature
        self._configured: _Configured | None = None
        # Tokens change with the instruction only, not with the image.
        self._tokenize = lru_cache(maxsize=64)(self._tokenize_prompt)

    @classmethod
    def load(cls, checkpoint: str | Path | None, device: str = "auto", **options) -> LocalPolicy:
        """See `load_policy`."""
        chosen = choose_device(device)
        folder = Path(checkpoint) if checkpoint else resources.checkpoints_directory() / "qwen_vla_tiny"
        return cls(load_checkpoint(folder, chosen), **options)

    @property
    def info(self) -> PolicyInfo:
        config = self._model.config
        return PolicyInfo(
            checkpoint=str(self._checkpoint.folder),
            device=str(self._model.device),
            horizon=config.action_expert.horizon,
            channels=config.action_expert.channels,
            parameters=sum(p.numel() for p in self._model.parameters()),
            embodiments=tuple(sorted(self._checkpoint.statistics)),
            views=tuple(self._processor.views),
            embodiment=self._configured.embodiment.name if self._configured else "",
            details={"euler steps": str(self._steps or config.flow.num_steps)},
        )

    @property
    def statistics(self) -> Statistics:
        return self._ready().statistics

    def _ready(self) -> _Configured:
        if self._configured is None:
            raise PolicyError("policy: no embodiment is configured; call configure() first")
        return self._configured

    def configure(self, embodiment: Embodiment) -> None:
        expert = self._model.config.action_expert
        faults: list[str] = []
        mask = statistics = None
        try:
            mask = embodiment.layout.mask(expert.horizon, expert.channels)
        except ValueError as error:
            faults.append(str(error))
        try:
            statistics = resolve_statistics(embodiment, self._checkpoint.statistics)
        except EmbodimentError as error:
            faults.append(str(error))
        faults += self._timing_faults(embodiment)
        known = self._processor.views
        faults += [
            f"cameras: view {camera.view!r}: the checkpoint knows only {', '.join(known) or 'none'}"
            for camera in embodiment.cameras
            if camera.view not in known
        ]
        if faults or mask is None or statistics is None:
            listed = "\n  ".join(faults)
            raise PolicyError(
                f"{self._checkpoint.folder}: cannot serve embodiment {embodiment.name!r}:\n  {listed}"
            )
        before, self._configured = (
            self._configured,
            _Configured(embodiment, statistics, torch.from_numpy(mask)[None].to(self._model.device)),
        )
        try:
            self._warm_up(embodiment)
        except BaseException:
            self._configured = before
            raise

    def _timing_faults(self, embodiment: Embodiment) -> list[str]:
        """A chunk of another rate or length means another motion."""
        trained: Mapping = self._checkpoint.statistics.get(embodiment.name, {})
        found = {"control_rate": float(embodiment.control_rate), "horizon": embodiment.horizon}
        return [
            f"{name}: found {value:g}, the checkpoint was trained with {trained[name]:g}"
            for name, value in found.items()
            if name in trained and abs(float(trained[name]) - value) > 1e-6
        ]

    def _warm_up(self, embodiment: Embodiment) -> None:
        images = {
            camera.view: np.zeros((*self._processor.config.size_of(camera.view), 3), dtype=np.uint8)
            for camera in embodiment.cameras
        }
        state = np.zeros(embodiment.layout.count) if embodiment.prompt.state else None
        for _ in range(WARM_UP_RUNS):
            self.infer(Observation(images, "reach the red cube", 0.0, state), seed=0)

    def _tokenize_prompt(self, text: str, views: tuple[str, ...]) -> dict[str, torch.Tensor]:
        tensors = self._processor.prompts([(text, views)])
        return {name: tensor.to(self._model.device) for name, tensor in tensors.items()}

    def infer(
        self, observation: Observation, seed: int | None = None, plan: Continuation | None = None
    ) -> NDArray[np.float32]:
        configured = self._ready()
        embodiment = configured.embodiment
        cameras = [camera for camera in embodiment.cameras if camera.view in observation.images]
        absent = [c.view for c in embodiment.cameras if c.required and c.view not in observation.images]
        if absent:
            raise ObservationError(f"observation: no image of view {', '.join(map(repr, absent))}")
        views = tuple(camera.view for camera in cameras)
        try:
            prompt = render_prompt(
                embodiment,
                observation.instruction,
                observation.state,
                statistics=configured.statistics,
                views=views,
            )
            pixels = self._processor.images([(view, observation.images[view]) for view in views])
        except ProcessorError as error:
            raise ObservationError(f"observation: {error}") from error
        # With the state in the prompt every text is new.
        tokenize = self._tokenize_prompt if embodiment.prompt.state else self._tokenize
        tokens = tokenize(prompt.text, views)
        device = self._model.device
        generator = torch.Generator(device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        prefix = None if plan is None or plan.known < 1 else self._prefix(plan, configured)
        # Guidance needs gradients, which inference mode rules out.
        with torch.inference_mode() if prefix is None else torch.no_grad():
            context = self._model.encode(
                tokens["input_ids"],
                tokens["attention_mask"],
                pixels["image_grid_thw"],
                pixel_values=pixels["pixel_values"].to(device),
                position_ids=tokens["position_ids"],
            )
            sample = self._model.sample(
                context,
                configured.mask,
                self._steps,
                generator,
                temperature=self._temperature,
                prefix=prefix,
            )
        return self._check(sample, embodiment)

    def _prefix(self, plan: Continuation, configured: _Configured) -> flow_matching.Prefix:
        body, flow = configured.embodiment, self._model.config.flow
        rows = np.asarray(plan.rows, dtype=np.float64)
        expected = (body.horizon, body.layout.count)
        if rows.shape != expected or not 0 <= plan.committed <= plan.known <= len(rows):
            raise PolicyError(
                f"plan: found rows of shape {rows.shape}, {plan.committed} of {plan.known} rows committed, "
                f"expected shape {expected} and committed <= known <= horizon"
            )
        if not np.isfinite(rows[: plan.known]).all():
            raise PolicyError("plan: a planned row is not finite")
        actions = torch.zeros(configured.mask.shape)
        rows = np.where(np.arange(len(rows))[:, None] < plan.known, rows, 0.0)
        values = torch.from_numpy(normalise(rows, configured.statistics))
        actions[0, : body.horizon, : body.layout.count] = values
        weight = flow_matching.prefix_weights(plan.committed, plan.known, actions.shape[1])[:, None]
        weight = weight.repeat(1, actions.shape[2])
        for group in body.actions:
            if group.kind == "gripper":
                # Open or closed, there is nothing in between to lean to.
                weight[plan.committed :, body.layout.slice_of(group.name)] = 0.0
        device = self._model.device
        return flow_matching.Prefix(
            actions.to(device),
            weight[None].to(device),
            plan.committed,
            clean=plan.committed <= flow.prefix_rows and flow.prefix_rows > 0,
        )

    def _check(self, sample: torch.Tensor, embodiment: Embodiment) -> NDArray[np.float32]:
        expert = self._model.config.action_expert
        expected = (1, expert.horizon, expert.channels)
        if tuple(sample.shape) != expected:
            raise PolicyError(f"model output: found shape {tuple(sample.shape)}, expected {expected}")
        chunk = sample[0, : embodiment.horizon, : embodiment.layout.count].float().cpu().numpy()
        bad = np.argwhere(~np.isfinite(chunk))
        if len(bad):
            row, column = bad[0]
            raise PolicyError(
                f"model output: {len(bad)} of {chunk.size} values are not finite, the first is "
                f"{chunk[row, column]} in row {row}, channel {embodiment.layout.names[column]}"
            )
        return np.clip(chunk, -1.0, 1.0)
