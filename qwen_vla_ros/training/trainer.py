# SPDX-License-Identifier: Apache-2.0
"""The training loop: mixed bodies, one set of weights, resumable after a kill.

Every random choice of a step comes from the seed, the number of the step and the body, so a run that was
killed and resumed, or that several processes share, goes through the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen_vla_ros.model.backbone import vision_features
from qwen_vla_ros.model.checkpoint import CheckpointError, load_checkpoint
from qwen_vla_ros.model.context import VLMContext
from qwen_vla_ros.model.flow_matching import FlowDraw, draw_flow
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.model.processor import QwenVLAProcessor
from qwen_vla_ros.training import saving, shared_prefix
from qwen_vla_ros.training.batches import Batch, BodyDemonstrations, load_bodies
from qwen_vla_ros.training.card import machine, read_facts
from qwen_vla_ros.training.configuration import (
    FlowConfiguration,
    TextToActionConfiguration,
    TrainingConfiguration,
)
from qwen_vla_ros.training.devices import choose_device, cpu_has_fast_bfloat16, has_compiler
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.graphs import CapturedGradients
from qwen_vla_ros.training.losses import (
    TrainingHeads,
    action_loss,
    last_token,
    nearness,
    offset_loss,
    place_loss,
    posture_loss,
    token_loss,
)
from qwen_vla_ros.training.muon import Muon, inner_matrices
from qwen_vla_ros.training.processes import Processes
from qwen_vla_ros.training.schedule import learning_rate

_STATE_VERSION = 5
# Threads that read demonstrations.
_READERS = 4
# What torch.compile made, in the folder of the run.
_KERNELS = "kernels"


class Trainer:
    """Trains a model on demonstrations of several bodies.

    Args:
        configuration: The run.
        bodies: Demonstrations by embodiment name; must hold those that the configuration's batch names.
        model, processor: Fresh from the preset.
        folder: Where state and metrics go.
        before: What the card of the checkpoint says whose weights the model begins with.
    """

    def __init__(
        self,
        configuration: TrainingConfiguration,
        bodies: Mapping[str, BodyDemonstrations],
        model: QwenVLAForActionPrediction,
        processor: QwenVLAProcessor,
        folder: Path,
        device: str = "cpu",
        before: Mapping[str, Any] | None = None,
    ) -> None:
        missing = sorted(set(configuration.batch.images) - set(bodies))
        if missing:
            raise TrainingError(
                f"batch.images: no demonstrations of {', '.join(missing)}; there are {sorted(bodies)}"
            )
        self.configuration = configuration
        self._processes = Processes(choose_device(device))
        self._device = self._processes.device
        cuda = self._device.type == "cuda"
        if cuda:
            # Of a model this small, casts cost more than products in 16 bits save.
            torch.set_float32_matmul_precision("high")
        self._compiled = self.losses
        if configuration.compile == "auto" and not cuda and has_compiler():
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute() / _KERNELS)
            self._compiled = torch.compile(self.losses, dynamic=False)
            # Each body has shapes of its own; at the default limit most of them would run as they are.
            torch._dynamo.config.recompile_limit = 16 * len(configuration.batch.images)
        self._graphs: dict[tuple[str, bool], CapturedGradients] | None = (
            {} if cuda and self._processes.count == 1 else None
        )
        self._bfloat16 = configuration.precision == "auto" and not cuda and cpu_has_fast_bfloat16()
        self._before = dict(before or {})
        self.bodies = {name: bodies[name] for name in configuration.batch.images}
        # What a body costs goes with its pictures, of each of its cameras.
        self._share = self._processes.share(
            {name: n * len(bodies[name].meta.views) for name, n in configuration.batch.images.items()}
        )
        # Each process reads those alone from which it draws; what is damaged is named before the first step.
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda name: self.bodies[name].read(self._device), self._share))
        self.model, self.processor, self.folder = model, processor, folder
        self._set_flow(configuration.flow)
        model.to(self._device)  # type: ignore[arg-type]
        expert = model.config.action_expert
        classes = max(len(body.meta.classes) for body in self.bodies.values())
        joints = max(len(body.meta.joints) for body in self.bodies.values())
        hands = max(body.hands for body in self.bodies.values())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(configuration.seed)
            width = model.config.backbone.text_config.hidden_size
            heads = TrainingHeads(width, classes, expert.horizon, expert.channels, joints, hands)
        self.heads = heads.to(self._device)
        self.average = copy.deepcopy(model).requires_grad_(False)
        self._start = (
            [each.clone() for each in self.average.parameters()] if configuration.start_share else []
        )
        self.step = 0
        self.seconds = 0.0
        settings = configuration.optimiser
        self._parameters = [*model.parameters(), *self.heads.parameters()]
        inner = inner_matrices(model)
        others = {id(p): p for p in self._parameters}
        for matrix in inner:
            del others[id(matrix)]
        self._optimisers = (
            Muon(
                inner,
                settings.learning_rate,
                settings.weight_decay,
                processes=self._processes,
                dtype=torch.bfloat16 if self._bfloat16 else torch.float32,
            ),
            torch.optim.AdamW(
                others.values(),
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            ),
        )

    def _set_flow(self, flow: FlowConfiguration) -> None:
        for name, value in flow.model_dump().items():
            setattr(self.model.config.flow, name, list(value) if isinstance(value, tuple) else value)

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        """On a CPU products in bfloat16, and attention by products: the flash kernel's way back is slow."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16))
            if self._device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def losses(self, batch: Batch, drawn: FlowDraw | None = None) -> dict[str, torch.Tensor]:
        """Losses and errors of a batch; with `drawn`, see draw_flow, flow matching is among them."""
        model, weights = self.model, self.configuration.loss
        features = vision_features(model.backbone.model.visual, batch.pixel_values, *batch.grid)
        n, views = batch.grounding.visible.shape[:2]
        branches = len(batch.actions) // n
        features = features.view(n, -1, features.shape[-1])
        context = shared_prefix.encode(model, batch.prompts, features, branches, batch.trunk)
        last = last_token(context.hidden, context.mask)
        near = nearness(batch.motion, weights.near)
        action, action_error, near_error = action_loss(self.heads, last, batch.actions, batch.mask, near)
        merge = self.processor.config.merge_size
        grid = (batch.grid[0] // merge, batch.grid[1] // merge)
        tokens = token_loss(self.heads, features.view(n, views, grid[0] * grid[1], -1), batch.grounding, grid)
        place, place_error = place_loss(self.heads, last, batch.grounding)
        offset, offset_error = offset_loss(self.heads, last, batch.grounding)
        posture, posture_error = posture_loss(self.heads, last, batch.grounding)
        total = weights.action * action + weights.grounding * (tokens + place + offset + posture)
        found = {
            "action": action,
            "action_error": action_error,
            "near_error": near_error,
            "tokens": tokens,
            "place": place,
            "place_error": place_error,
            "offset": offset,
            "offset_error": offset_error,
            "posture": posture,
            "posture_error": posture_error,
        }
        if drawn is not None:
            own = self._flow_rows
            part = VLMContext(
                own(context.hidden, n).float(),
                own(context.mask, n),
                own(context.positions.transpose(0, 1), n).transpose(0, 1),
            )
            flow = model.flow_loss(part, own(batch.actions, n), own(batch.mask, n), drawn)
            assert flow.loss is not None
            assert flow.sample_loss is not None
            total = total + weights.flow * (flow.sample_loss * own(near, n)).mean()
            found["flow"] = flow.loss
        return {"loss": total, **found}

    def _flow_rows(self, tensor: torch.Tensor, pictures: int) -> torch.Tensor:
        """Those of the prompts (b, ...) that go through the action expert: the first ones of each picture,
        whose goals come in random order."""
        count = self.configuration.batch.flow_prompts_per_image
        return tensor.unflatten(0, (pictures, -1))[:, :count].flatten(0, 1)

    def run(
        self,
        until: int | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
        save: Callable[[Trainer], None] | None = None,
    ) -> None:
        """Train up to step `until`, or to the end.

        report: called with the metrics of every `log_every` steps. save: called after each state is written.
        """
        keep_freed_memory()
        settings = self.configuration
        until = settings.total if until is None else min(until, settings.total)
        saving.make_folder(self.folder)
        self.model.train()
        saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        while self.step < until:
            started = time.monotonic()
            for name, value in self._advance().items():
                sums.setdefault(name, []).append(value)
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % settings.log_every == 0 or self.step == until:
                line = {"step": self.step, "seconds": round(self.seconds, 1)}
                line |= {name: float(f"{np.mean(values):.5g}") for name, values in sums.items()}
                sums.clear()
                if self.main:
                    saving.append_metrics(self.folder, line)
                    if report is not None:
                        report(line)
            if self.main and (time.monotonic() - saved > settings.save_every or self.step == until):
                self.save_state()
                if save is not None:
                    save(self)
                saved = time.monotonic()
        # A disk may have been full, or the run killed, between the last state and its weights.
        if self.main and save is not None and saving.step_of(self.checkpoint) != self.step:
            save(self)

    def _advance(self) -> dict[str, float]:
        settings = self.configuration
        first = settings.text_to_action
        step = self.step - (first.steps if first else 0)
        if first is not None and step < 0:
            rate = min(1.0, (self.step + 1) / max(1, settings.optimiser.warmup)) * first.learning_rate
            losses = self._text_to_action(first)
        else:
            rate = learning_rate(step, settings.steps, settings.optimiser)
            losses = self._all_together(step >= settings.backbone_steps)
        self._processes.add_gradients(self._parameters)
        norm = nn.utils.clip_grad_norm_(self._parameters, settings.optimiser.clip)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"step {self.step}: gradient is not finite; resume from the last state with a lower "
                "optimiser.learning_rate: the same run would come to the same step"
            )
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            # Captured steps add to the gradients' own memory. Zeros in place of none would be steps to Muon.
            optimiser.zero_grad(set_to_none=not self._graphs)
        # A short memory at first: the initial weights are noise.
        decay = min(settings.optimiser.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay)
        return {"learning_rate": rate, "gradient": norm.item(), **losses}

    def _random(self, name: str) -> tuple[np.random.Generator, torch.Generator]:
        """What decides the part that a body has in the present step."""
        rng = np.random.default_rng([self.configuration.seed, self.step, list(self.bodies).index(name)])
        return rng, torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))

    def _text_to_action(self, stage: TextToActionConfiguration) -> dict[str, float]:
        """Gradients of the action expert from sentences alone, of this process's bodies; losses of all."""
        self._set_flow(stage.flow)
        metrics: dict[str, float] = {}
        for name in self._share:
            rng, generator = self._random(name)
            batch = self.bodies[name].draw_text(rng, stage.prompts)
            with self._kernels():
                with torch.no_grad():
                    context = self.model.encode(**batch.prompts)
                context = VLMContext(context.hidden.float(), context.mask, context.positions)
                flow = self.model.flow_loss(context, batch.actions, batch.mask, generator=generator).loss
            assert flow is not None
            (flow / len(self.bodies)).backward()
            metrics[f"{name}/flow"] = flow.item()
        self._set_flow(self.configuration.flow)
        metrics = self._processes.gather(metrics)
        return {"loss": sum(metrics.values()) / len(metrics), **metrics}

    def _all_together(self, joint: bool) -> dict[str, float]:
        """Gradients of everything from pictures and sentences, of this process's bodies; losses of all."""
        settings = self.configuration
        pictures = sum(settings.batch.images.values())
        metrics: dict[str, float] = {}
        # One body at a time: its prompts are of one length, and its activations stay in the cache.
        for name in self._share:
            rng, generator = self._random(name)
            images = settings.batch.images[name]
            batch = self.bodies[name].draw(
                rng, images, settings.batch.prompts_per_image, settings.augmentation
            )
            drawn = self._draw(name, batch, generator) if joint else None
            found = self._gradients(name, images / pictures, batch, drawn)
            # All at once: each read from a GPU waits for it.
            values = torch.stack([value.detach().float() for value in found.values()]).tolist()
            metrics |= {f"{name}/{key}": value for key, value in zip(found, values, strict=True)}
        metrics = self._processes.gather(metrics)
        parts = [metrics.pop(f"{name}/loss") for name in settings.batch.images]
        return {"loss": sum(parts), **metrics}

    def _draw(self, name: str, batch: Batch, generator: torch.Generator) -> FlowDraw:
        """What flow matching needs for those of the batch's prompts that have part in it."""
        count = len(self._flow_rows(batch.motion, len(batch.grounding.joints)))
        grippers = self.bodies[name].embodiment.grippers
        return draw_flow(count, batch.actions.shape[1:], self.model.config.flow, generator, grippers)

    def _gradients(
        self, name: str, share: float, batch: Batch, drawn: FlowDraw | None
    ) -> Mapping[str, torch.Tensor]:
        """Losses of a body's batch, whose gradients are added."""
        if self._graphs is not None:
            return self._captured(name, share, batch, drawn)
        try:
            found = self._losses(share, batch, drawn)
            found["loss"].backward()
        except torch._dynamo.exc.BackendCompilerFailed as error:
            # One that was killed leaves half a library, and no later start could load it.
            kernels = self.folder / _KERNELS
            shutil.rmtree(kernels, ignore_errors=True)
            reason = str(error.inner_exception).partition("\n")[0]
            raise TrainingError(
                f"{kernels}: cannot be compiled or loaded ({reason}), and is deleted; go on with --resume, "
                "which compiles anew, or with `compile: never`"
            ) from error
        return found

    def _losses(self, share: float, batch: Batch, drawn: FlowDraw | None) -> dict[str, torch.Tensor]:
        losses = self.losses if drawn is None else self._compiled
        with self._kernels():
            found = losses(batch, drawn)
        return {**found, "loss": found["loss"] * share}

    def _captured(
        self, name: str, share: float, batch: Batch, drawn: FlowDraw | None
    ) -> Mapping[str, torch.Tensor]:
        """The same by a CUDA graph, which takes a prefix of no rows for none."""
        assert self._graphs is not None
        if drawn is not None and drawn.prefix is None:
            count, _, channels = drawn.noise.shape
            drawn = replace(
                drawn,
                prefix=torch.zeros_like(drawn.tau, dtype=torch.long),
                signs=drawn.noise.new_ones(count, channels),
            )
        key = (name, drawn is not None)
        if key not in self._graphs:
            self._graphs[key] = CapturedGradients(
                lambda batch, drawn: self._losses(share, batch, drawn), self._parameters, batch, drawn
            )
        return self._graphs[key](batch, drawn)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self._processes.main

    @property
    def checkpoint(self) -> Path:
        """Folder of the averaged weights."""
        return self.folder / saving.CHECKPOINT_NAME

    def save_checkpoint(self) -> None:
        """Write the averaged weights, in bfloat16, with the statistics of every body."""
        weights = self.average
        if self._start:
            weights = copy.deepcopy(weights)
            share = self.configuration.start_share
            with torch.no_grad():
                torch._foreach_lerp_(list(weights.parameters()), self._start, share)
        statistics = {
            name: {
                "channels": body.meta.channels,
                "q01": body.statistics.q01.tolist(),
                "q99": body.statistics.q99.tolist(),
                "control_rate": 1.0 / body.meta.step,
                "horizon": body.meta.horizon,
            }
            for name, body in self.bodies.items()
        }
        saving.write_checkpoint(self.checkpoint, weights, self.processor, statistics, self.facts())

    def facts(self) -> dict[str, Any]:
        """What the card says of this run."""
        data = [
            f"{meta.samples} pictures of {name} (setting {meta.setting}; "
            f"{', '.join(dict.fromkeys(meta.tasks))}; seed {meta.seed}"
            f"{'; states of the policy ' + meta.policy if meta.policy else ''})"
            for name, body in self.bodies.items()
            for meta in body.metas
        ]
        return {
            "kind": "demonstrations",
            "data": data,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "machine": machine(self._device.type),
            "processes": self._processes.count,
            "configuration": self.configuration.model_dump(mode="json"),
            **({"before": self._before} if self._before else {}),
        }

    def save_state(self) -> None:
        """Write all that is needed to go on."""
        state = {
            "version": _STATE_VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "configuration": self.configuration.model_dump_json(),
            "before": self._before,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        saving.write_state(self.folder, state)

    def resume(self) -> None:
        """Go on from the folder's state. Raises TrainingError when there is none or it does not fit."""
        path = self.folder / saving.STATE_NAME
        if not path.is_file():
            raise TrainingError(f"{path}: no such file; nothing to resume from")
        try:
            state = saving.read_state(path, self._device)
            if state["version"] != _STATE_VERSION:
                raise ValueError(f"version {state['version']}, expected {_STATE_VERSION}")
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.heads.load_state_dict(state["heads"])
            for optimiser, content in zip(self._optimisers, state["optimisers"], strict=True):
                saving.load_optimiser(optimiser, content)
        except Exception as error:
            raise TrainingError(f"{path}: cannot be resumed from: {error}") from error
        self.step, self.seconds, self._before = state["step"], state["seconds"], state["before"]
        if self.main:
            saving.forget_metrics(self.folder, self.step)


def prepare(
    configuration: TrainingConfiguration,
    data: Path,
    folder: Path,
    device: str = "auto",
    checkpoint: Path | None = None,
) -> Trainer:
    """A trainer on the demonstrations in `data`, see demonstrations.folders_of.

    The model is fresh, or begins with the weights of a checkpoint of the same shapes.

    Raises:
        TrainingError: Demonstrations or checkpoint cannot be used, or `start_share` lacks a checkpoint.
    """
    model, processor = build_tiny(configuration.seed)
    before: dict[str, Any] = {}
    known: Mapping[str, Any] = {}
    if checkpoint is not None:
        statistics = take_weights(model, processor, checkpoint)
        before = read_facts(checkpoint)
        known = statistics if configuration.start_share else {}
    elif configuration.start_share:
        raise TrainingError(
            f"start_share: found {configuration.start_share:g} without weights to begin with, expected "
            "--checkpoint (also with --resume) or 0"
        )
    expert = model.config.action_expert
    shape = (expert.horizon, expert.channels)
    bodies = load_bodies(
        data, configuration.batch.images, processor, shape, configuration.normalisation, known
    )
    return Trainer(configuration, bodies, model, processor, folder, device, before)


def take_weights(
    model: QwenVLAForActionPrediction, processor: QwenVLAProcessor, checkpoint: Path
) -> Mapping[str, Any]:
    """Copy the weights of a checkpoint of the same shapes; embeddings by token, new tokens stay as they are.
    Returns its statistics.

    Raises:
        TrainingError: The folder is no checkpoint, or a tensor has another shape.
    """
    try:
        loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    found, wanted = loaded.model.state_dict(), model.state_dict()
    embedding = "backbone.model.language_model.embed_tokens.weight"
    for name, tensor in wanted.items():
        here = found.get(name)
        if here is None or (name != embedding and here.shape != tensor.shape):
            raise TrainingError(
                f"{checkpoint}: {name}: found {None if here is None else tuple(here.shape)}, expected "
                f"{tuple(tensor.shape)}; only a checkpoint of the same preset can be started from"
            )
        if name != embedding:
            tensor.copy_(here)
    rows, known = found[embedding], loaded.processor.tokenizer.get_vocab()
    if rows.shape[1] != wanted[embedding].shape[1]:
        raise TrainingError(f"{checkpoint}: {embedding}: found width {rows.shape[1]}")
    for token, index in processor.tokenizer.get_vocab().items():
        if token in known:
            wanted[embedding][index] = rows[known[token]]
    return loaded.statistics


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: giving each activation back to the kernel costs a tenth of a step."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)
