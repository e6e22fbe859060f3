# SPDX-License-Identifier: Apache-2.0
"""A policy that runs a checkpoint with torch in this process."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import Embodiment, Statistics, normalise, render_prompt
from qwen_vla_ros.model import flow_matching
from qwen_vla_ros.model.checkpoint import Checkpoint, load_checkpoint
from qwen_vla_ros.model.fixed import Shape, shape_of
from qwen_vla_ros.model.processor import ProcessorError, QwenVLAProcessor
from qwen_vla_ros.policy import serving
from qwen_vla_ros.policy.engine import Engine
from qwen_vla_ros.policy.interface import Continuation, Observation, ObservationError, PolicyError, PolicyInfo

LOG = logging.getLogger(__name__)
WARM_UP_RUNS = 2
# What an instruction may have more tokens than "reach the red cube" before the slower path is taken; where
# sizes follow the prompt, longer ones cost no time.
SPARE_TOKENS, SPARE_RAGGED = 8, 64
ROUND_TOKENS = 8
KEPT_ENGINES = 8


@dataclass(frozen=True)
class _Configured:
    embodiment: Embodiment
    statistics: Statistics
    mask: torch.Tensor  # (1, H, K)
    views: tuple[str, ...]  # that the model knows


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
        engine: Run at fixed shapes, traced or as a CUDA graph; without it operation by operation.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        threads: int | None = None,
        engine: bool = False,
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
        # Counted once: a vocabulary of a quarter of a million tokens is looked through for views.
        self._known = tuple(self._processor.views)
        self._parameters = sum(p.numel() for p in self._model.parameters())
        self._steps, self._temperature = steps, temperature
        self._configured: _Configured | None = None
        self._with_engine = engine
        self._engine: Engine | None = None
        self._engines: dict[Shape, Engine] = {}
        self._told: set[str] = set()
        # Tokens change with the instruction only, not with the image.
        # Not a method: a cache that holds the policy would keep its weights until the collector comes.
        self._tokenize_prompt = partial(_tokenize, self._processor, self._model.device)
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
            parameters=self._parameters,
            embodiments=tuple(sorted(self._checkpoint.statistics)),
            views=self._known,
            embodiment=self._configured.embodiment.name if self._configured else "",
            details={
                "euler steps": str(self._steps or config.flow.num_steps),
                "engine": "none" if self._engine is None else self._engine.how,
            },
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
        mask, statistics = serving.fit(
            embodiment,
            str(self._checkpoint.folder),
            expert.horizon,
            expert.channels,
            self._checkpoint.statistics,
            list(self._known),
        )
        before = self._configured, self._engine
        views = serving.known_views(embodiment, self._known)
        self._configured = _Configured(
            embodiment, statistics, torch.from_numpy(mask)[None].to(self._model.device), views
        )
        self._engine = None
        try:
            sizes = {view: self._processor.config.size_of(view) for view in views}
            observation = serving.blank(embodiment, sizes, statistics)
            if self._with_engine:
                self._engine = self._make_engine(self._configured, observation)
            for _ in range(WARM_UP_RUNS):
                self.infer(observation, seed=0)
        except BaseException:
            self._configured, self._engine = before
            if self._engine is not None and self._configured is not None:
                # Bodies of one look share an engine.
                self._engine.set_mask(self._configured.mask[0])
            raise

    def _make_engine(self, configured: _Configured, observation: Observation) -> Engine | None:
        body, views = configured.embodiment, configured.views
        prompt = render_prompt(
            body, observation.instruction, observation.state, statistics=configured.statistics, views=views
        )
        ids = self._processor.token_ids(prompt.text, views)
        # A CUDA graph has one size; elsewhere rows of padding would take their time.
        ragged = self._model.device.type != "cuda"
        spare = SPARE_RAGGED if ragged else SPARE_TOKENS
        length = -(-(len(ids) + spare) // ROUND_TOKENS) * ROUND_TOKENS
        steps = self._steps or self._model.config.flow.num_steps
        try:
            shape = shape_of(self._processor, ids, views, steps, length, ragged)
            engine = self._engines.pop(shape, None) or Engine(self._model, shape)
        except ValueError as error:
            self._tell(f"no fixed shapes for {body.name}, runs operation by operation: {error}")
            return None
        engine.set_mask(configured.mask[0])
        # Bodies that look alike to the model share one.
        self._engines[shape] = engine
        while len(self._engines) > KEPT_ENGINES:
            del self._engines[next(iter(self._engines))]
        return engine

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            LOG.warning(text)

    def resize(self, view: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            return self._processor.resize(view, image)
        except ProcessorError as error:
            raise ObservationError(f"observation: {error}") from error

    def infer(
        self, observation: Observation, seed: int | None = None, plan: Continuation | None = None
    ) -> NDArray[np.float32]:
        configured = self._ready()
        embodiment = configured.embodiment
        views = serving.views_of(embodiment, observation, configured.views)
        try:
            prompt = render_prompt(
                embodiment,
                observation.instruction,
                observation.state,
                statistics=configured.statistics,
                views=views,
            )
            pairs = [(view, observation.images[view]) for view in views]
            frames = [(view, self._processor.resize(view, image)) for view, image in pairs]
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
        if self._engine is not None and prefix is None:
            ids = tokens["input_ids"][0].tolist()
            if self._engine.holds(ids, self._processor.image_id):
                flow = self._model.config.flow
                temperature = flow.noise_temperature if self._temperature is None else self._temperature
                sample = self._engine.run(self._processor.frames(frames), ids, generator, temperature)
                return self._check(sample.copy(), embodiment)
            self._tell(
                f"a prompt of {len(ids)} tokens and views {', '.join(views)} has not the shape that was "
                f"prepared ({self._engine.shape.length} tokens, all views): it runs operation by operation"
            )
        pixels = self._processor.images(frames)
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
        return self._check(sample[0].float().cpu().numpy(), embodiment)

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
        # Open or closed, there is nothing in between to lean to.
        weight[plan.committed :, list(body.grippers)] = 0.0
        device = self._model.device
        return flow_matching.Prefix(
            actions.to(device),
            weight[None].to(device),
            plan.committed,
            clean=plan.committed <= flow.prefix_rows and flow.prefix_rows > 0,
        )

    def _check(self, sample: NDArray[np.float32], embodiment: Embodiment) -> NDArray[np.float32]:
        expert = self._model.config.action_expert
        return serving.checked(sample, embodiment, expert.horizon, expert.channels)


def _tokenize(
    processor: QwenVLAProcessor, device: torch.device, text: str, views: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in processor.prompts([(text, views)]).items()}
