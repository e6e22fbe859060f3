# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on one LeRobot dataset, on one device or, through accelerate, on several.

Every random choice of a step comes from the seed, the number of the step and that of the process, so a run
that was killed and resumed goes through the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwen_vla_ros.embodiment import Embodiment, InstructionError, Statistics, normalise, render_prompt
from qwen_vla_ros.model.context import VLMContext
from qwen_vla_ros.model.flow_matching import draw_flow
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.processor import QwenVLAProcessor
from qwen_vla_ros.training import chunks, lora, saving
from qwen_vla_ros.training.card import machine
from qwen_vla_ros.training.configuration import AugmentationConfiguration, FinetuningConfiguration
from qwen_vla_ros.training.devices import choose_device
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.lerobot import Episode, LeRobotFolder
from qwen_vla_ros.training.mapping import Mapping, resolve_mapping
from qwen_vla_ros.training.schedule import learning_rate
from qwen_vla_ros.training.starting import Start

_STATE_VERSION = 2
Samples = list[tuple[Episode, int]]


class RecordedChunks:
    """A dataset as batches for one embodiment.

    Args:
        dataset: Its numbers and frames are read here.
        embodiment: Whose cameras, channels, rate and horizon are wanted.
        configuration: Mapping, split and statistics.

    Attributes:
        mapping: What was found for what.
        statistics: Of the training episodes.
        training, validation: Episodes.
    """

    def __init__(
        self, dataset: LeRobotFolder, embodiment: Embodiment, configuration: FinetuningConfiguration
    ) -> None:
        self.dataset, self.embodiment = dataset, embodiment
        faults = dataset.statistics_faults()
        if faults:
            raise TrainingError("; ".join(faults))
        self.mapping: Mapping = resolve_mapping(dataset, embodiment, configuration.mapping)
        self.chunker = chunks.Chunker(embodiment, self.mapping, chunks.stride_of(dataset, embodiment))
        if configuration.short_episodes == "refuse":
            chunks.check_lengths(dataset, self.chunker)
        # Whatever is masked, a chunk without any row teaches nothing.
        rows = 1 if configuration.short_episodes == "mask" else embodiment.horizon
        needed = self.chunker.frames_for(rows)
        dataset.episodes = [episode for episode in dataset.episodes if episode.length >= needed]
        if not dataset.episodes:
            raise TrainingError(f"{dataset.folder}: no episode of {needed} frames or more")
        dataset.read(self.mapping.features, self.mapping.cameras.values())
        self._check_tasks()
        self.training, self.validation = chunks.split(
            dataset.episodes, configuration.validation.share, configuration.seed
        )
        sampled = chunks.sample_rows(self.chunker, self.training)
        chunks.check_rows(sampled, embodiment, dataset)
        chunks.check_positions(self.chunker, self.training, dataset)
        self.statistics: Statistics = chunks.quantile_statistics(sampled, embodiment, configuration.floor)
        self.views = tuple(self.mapping.cameras)
        self._ids: dict[str, list[int]] = {}
        self._starts = np.cumsum([0, *map(self.chunker.beginnings, self.training)])

    def _check_tasks(self) -> None:
        for index, text in self.dataset.tasks.items():
            try:
                render_prompt(
                    self.embodiment,
                    self.mapping.instruction or text,
                    np.zeros(self.embodiment.layout.count),
                    statistics=Statistics(
                        np.zeros(self.embodiment.layout.count), np.ones(self.embodiment.layout.count)
                    ),
                    views=tuple(self.mapping.cameras),
                )
            except InstructionError as error:
                raise TrainingError(f"{self.dataset.folder}: task {index}: {error}") from error

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """Frames of the training episodes at random, of those whose chunk has a row within its episode."""
        rows = rng.integers(self._starts[-1], size=count)
        owners = np.searchsorted(self._starts, rows, "right") - 1
        return [(self.training[i], int(row - self._starts[i])) for i, row in zip(owners, rows, strict=True)]

    def spread(self, count: int) -> Samples:
        """Frames of the validation episodes, evenly, of those whose chunk has a row within its episode."""
        every = [
            (episode, frame)
            for episode in self.validation
            for frame in range(self.chunker.beginnings(episode))
        ]
        if not every:
            return []
        chosen = np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).astype(int))
        return [every[i] for i in chosen]

    def batch(
        self,
        samples: Samples,
        processor: QwenVLAProcessor,
        shape: tuple[int, int],
        augment: AugmentationConfiguration | None = None,
        rng: np.random.Generator | None = None,
    ) -> dict[str, Tensor]:
        """What the model reads, and `actions`, `action_mask` (b, H, K)."""
        pictures = [
            (view, self.dataset.picture(episode, camera, frame))
            for episode, frame in samples
            for view, camera in self.mapping.cameras.items()
        ]
        images = processor.images(pictures)
        if augment is not None and rng is not None:
            _augment(images["pixel_values"], images["image_grid_thw"], rng, augment)
        actions = np.zeros((len(samples), *shape), dtype=np.float32)
        mask = np.zeros(actions.shape, dtype=bool)
        horizon, count = self.embodiment.horizon, self.embodiment.layout.count
        for row, (episode, frame) in enumerate(samples):
            found, valid = self.chunker.chunks(episode, np.array([frame]))
            actions[row, :horizon, :count] = normalise(found[0], self.statistics)
            mask[row, :horizon, :count] = valid[0][:, None]
        ids = [self._tokens(processor, episode, frame) for episode, frame in samples]
        return {
            **processor.collate(ids, [self.views] * len(samples)),
            **images,
            "actions": torch.from_numpy(actions),
            "action_mask": torch.from_numpy(mask),
        }

    def _tokens(self, processor: QwenVLAProcessor, episode: Episode, frame: int) -> list[int]:
        task = int(episode.columns["task_index"][frame, 0])
        instruction = self.mapping.instruction or self.dataset.tasks[task]
        state = self.chunker.state(episode, frame) if self.mapping.state_in_prompt else None
        prompt = render_prompt(
            self.embodiment, instruction, state, statistics=self.statistics, views=self.views
        )
        if prompt.text not in self._ids:
            ids = processor.token_ids(prompt.text, prompt.views)
            if state is not None:
                return ids
            self._ids[prompt.text] = ids
        return self._ids[prompt.text]


def _augment(
    pixels: Tensor, grids: Tensor, rng: np.random.Generator, augment: AugmentationConfiguration
) -> None:
    """Change brightness, contrast and colour of each picture in place. pixels (patches, 3 * p * p)."""
    start = 0
    for size in grids.prod(dim=1).tolist():
        part = pixels[start : start + size].view(size, 3, -1)
        gain = 1.0 + augment.gain * rng.uniform(-1, 1) + augment.colour * rng.uniform(-1, 1, 3)
        part *= torch.from_numpy(gain.astype(np.float32))[None, :, None]
        part += augment.offset * rng.uniform(-1, 1)
        if augment.noise:
            part += augment.noise * torch.from_numpy(rng.standard_normal(part.shape, dtype=np.float32))
        part.clamp_(-1.0, 1.0)
        start += size


def training_bytes(parameters: Iterable[nn.Parameter], ema: bool, half: bool) -> int:
    """Memory of weights, gradients, both moments and, with `ema`, the average, without activations [bytes].

    half: frozen weights are bfloat16.
    """
    trained, frozen = 20 if ema else 16, 2 if half else 4
    return sum(p.numel() * (trained if p.requires_grad else frozen) for p in parameters)


def check_memory(needed: int, free: int, device: str) -> None:
    """Raises TrainingError where `needed` bytes are more than the device has free."""
    if needed > free:
        raise TrainingError(
            f"{device}: found {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB, without activations; "
            "less is needed with --lora, optimiser.ema: 0, backbone_rate: 0 or freeze_vision: true"
        )


class _Loss(nn.Module):
    """The flow-matching loss as one module, which DistributedDataParallel can wrap."""

    def __init__(self, model: QwenVLAForActionPrediction, grippers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self._grippers = grippers

    def forward(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss. Shape ()."""
        # What adapters drop is drawn from torch's own generator.
        torch.manual_seed(seed)
        context = encode(self.model, batch)
        generator = torch.Generator(context.hidden.device).manual_seed(seed)
        count, *shape = batch["actions"].shape
        drawn = draw_flow(count, shape, self.model.config.flow, generator, self._grippers)
        found = self.model.flow_loss(context, batch["actions"], batch["action_mask"], drawn)
        assert found.loss is not None
        return found.loss


def encode(model: QwenVLAForActionPrediction, batch: dict[str, Tensor]) -> VLMContext:
    """Backbone states in float32, so that noise and targets are not rounded to bfloat16."""
    context = model.encode(
        batch["input_ids"],
        batch["attention_mask"],
        batch["image_grid_thw"],
        pixel_values=batch["pixel_values"],
        position_ids=batch["position_ids"],
    )
    return VLMContext(context.hidden.float(), context.mask, context.positions)


class Finetuner:
    """Trains a model on the chunks of one dataset.

    Args:
        configuration: The run.
        data: What to learn.
        start: What to begin with.
        folder: Where state, metrics and the checkpoint go.
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        step: Optimiser steps done.
        seconds: Time of training, all parts of a resumed run [s].
    """

    def __init__(
        self,
        configuration: FinetuningConfiguration,
        data: RecordedChunks,
        start: Start,
        folder: Path,
        device: str = "auto",
    ) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        self.configuration, self.data, self.start, self.folder = configuration, data, start, folder
        on_cpu = choose_device(device).type == "cpu"
        half = configuration.precision == "bfloat16" or (configuration.precision == "auto" and not on_cpu)
        # The others wait while one process writes, which takes minutes for a large model.
        waiting = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        self._accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="bf16" if half else "no", kwargs_handlers=[waiting]
        )
        model = start.model
        expert = model.config.action_expert
        self._shape = (expert.horizon, expert.channels)
        if half and not on_cpu:
            # Frozen weights need no more than autocast gives them.
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        if not on_cpu:
            place = self._accelerator.device
            needed = training_bytes(model.parameters(), configuration.optimiser.ema > 0, half)
            check_memory(needed, torch.cuda.mem_get_info(place)[0], str(place))
        model.train()
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        settings = configuration.optimiser
        groups = [
            {
                "params": [p for n, p in self._trained.items() if n.startswith("backbone.") is own],
                "rate": rate,
            }
            for own, rate in ((True, configuration.backbone_rate), (False, 1.0))
        ]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self._loss, self._optimiser = self._accelerator.prepare(
            _Loss(model, data.embodiment.grippers), optimiser
        )
        self.model: QwenVLAForActionPrediction = self._accelerator.unwrap_model(self._loss).model
        self._trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self._trained.items()} if settings.ema else {}
        self.step = 0
        self.seconds = 0.0

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> str:
        """Where it trains."""
        processes = self._accelerator.num_processes
        return f"{self._accelerator.device}" + (f", {processes} processes" if processes > 1 else "")

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained weights."""
        return self.folder / saving.CHECKPOINT_NAME

    def run(
        self,
        until: int | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
        save: Callable[[Finetuner], None] | None = None,
    ) -> None:
        """Train up to step `until`, or to the end.

        report: called with the metrics of every `log_every` steps. save: called after each state is written.
        """
        settings = self.configuration
        until = settings.steps if until is None else min(until, settings.steps)
        if self.main:
            saving.make_folder(self.folder)
        saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        with contextlib.closing(self._batches(until)) as batches:
            while self.step < until:
                started = time.monotonic()
                for name, value in self._advance(batches).items():
                    sums.setdefault(name, []).append(value)
                self.step += 1
                self.seconds += time.monotonic() - started
                last = self.step == until
                judged = bool(self.data.validation) and (self.step % settings.validation.every == 0 or last)
                if self.step % settings.log_every == 0 or judged or last:
                    line = {"step": self.step, "seconds": round(self.seconds, 1)}
                    line |= {name: float(f"{np.mean(values):.5g}") for name, values in sums.items()}
                    sums.clear()
                    if judged:
                        line |= self.validate()
                    if self.main:
                        saving.append_metrics(self.folder, line)
                        if report is not None:
                            report(line)
                if self._agreed(last or time.monotonic() - saved > settings.save_every):
                    self.save_state()
                    if self.main and save is not None:
                        save(self)
                    saved = time.monotonic()
        # A disk may have been full, or the run killed, between the last state and its weights.
        if self.main and save is not None and saving.step_of(self.checkpoint) != self.step:
            save(self)

    def _agreed(self, answer: bool) -> bool:
        """The main process's answer. Each has its own clock, and whoever saves waits for the others."""
        if self._accelerator.num_processes == 1:
            return answer
        from accelerate.utils import broadcast

        told = torch.tensor([int(answer)], device=self._accelerator.device)
        return bool(broadcast(told, from_process=0).item())

    def _batches(self, until: int) -> Generator[tuple[dict[str, Tensor], int], None, None]:
        """Batches from the present step on, some of them read ahead, each with the seed of its noise."""
        settings = self.configuration
        places = ((step, part) for step in range(self.step, until) for part in range(settings.accumulate))
        if not settings.workers:
            for place in places:
                yield self._batch(*place)
            return
        with ThreadPoolExecutor(settings.workers, "batches") as pool:
            waiting: list[Future] = []
            try:
                for place in places:
                    waiting.append(pool.submit(self._batch, *place))
                    if len(waiting) > 2 * settings.workers:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _batch(self, step: int, part: int) -> tuple[dict[str, Tensor], int]:
        settings = self.configuration
        rng = np.random.default_rng([settings.seed, step, part, self._accelerator.process_index])
        samples = self.data.draw(rng, settings.batch)
        seed = int(rng.integers(2**62))
        batch = self.data.batch(samples, self.start.processor, self._shape, settings.augmentation, rng)
        return batch, seed

    def _advance(self, batches: Iterator[tuple[dict[str, Tensor], int]]) -> dict[str, float]:
        settings, parts = self.configuration, self.configuration.accumulate
        rate = learning_rate(self.step, settings.steps, settings.optimiser)
        total = 0.0
        for part in range(parts):
            batch, seed = next(batches)
            # Gradients of several processes are averaged once a step.
            apart = self._accelerator.no_sync(self._loss) if part + 1 < parts else contextlib.nullcontext()
            with apart:
                loss = self._loss(self._moved(batch), seed)
                self._accelerator.backward(loss / parts)
            total += float(loss.detach()) / parts
        norm = self._accelerator.clip_grad_norm_(list(self._trained.values()), settings.optimiser.clip)
        if not bool(torch.isfinite(torch.as_tensor(norm))):
            raise TrainingError(
                f"step {self.step}: gradient is not finite; resume from the last state with a lower "
                "optimiser.learning_rate: the same run would come to the same step"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        self._optimiser.step()
        self._optimiser.zero_grad()
        decay = min(settings.optimiser.ema, (1 + self.step) / (10 + self.step))
        if self.average:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self._trained.values()), 1.0 - decay)
        return {"loss": total, "learning_rate": rate, "gradient": float(norm)}

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self._accelerator.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Flow-matching loss, and mean absolute error of sampled chunks in normalised units, of episodes that
        training does not see; the trained weights, not their average."""
        found = self._judge() if self.main else {}
        self._accelerator.wait_for_everyone()
        return found

    def _judge(self) -> dict[str, float]:
        settings, device = self.configuration, self._accelerator.device
        samples = self.data.spread(settings.validation.chunks)
        self.model.eval()
        losses, errors = [], []
        for start in range(0, len(samples), settings.batch):
            part = samples[start : start + settings.batch]
            batch = self._moved(self.data.batch(part, self.start.processor, self._shape))
            with self._accelerator.autocast():
                context = encode(self.model, batch)
                generator = torch.Generator(device).manual_seed(settings.seed + start)
                found = self.model.flow_loss(
                    context, batch["actions"], batch["action_mask"], generator=generator
                )
                drawn = self.model.sample(context, batch["action_mask"], generator=generator)
            assert found.sample_loss is not None
            losses += found.sample_loss.float().tolist()
            difference = (drawn.clamp(-1, 1) - batch["actions"])[batch["action_mask"]]
            errors += difference.abs().float().tolist()
        self.model.train()
        return {
            "validation_loss": float(f"{np.mean(losses):.5g}"),
            "validation_error": float(f"{np.mean(errors):.5g}"),
        }

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Of all embodiments: those of the start, and the one that is trained."""
        body, own = self.data.embodiment, self.data.statistics
        entry = {
            "channels": list(body.layout.names),
            "q01": own.q01.tolist(),
            "q99": own.q99.tolist(),
            "control_rate": body.control_rate,
            "horizon": body.horizon,
        }
        return {**self.start.statistics, body.name: entry}

    def facts(self) -> dict[str, Any]:
        """What the card says of this run."""
        dataset = self.data.dataset
        frames = sum(episode.length for episode in self.data.training)
        return {
            "kind": "fine-tuning",
            "source": Path(self.start.source).resolve().name
            + (", with low-rank adapters" if self.start.low_rank else ""),
            "data": [
                f"{dataset.folder.resolve().name} (LeRobot {dataset.version}): {len(self.data.training)} "
                f"episodes, {frames} frames at {dataset.fps:g} Hz, {len(dataset.tasks)} tasks"
            ],
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "machine": machine(self._accelerator.device.type),
            "processes": self._accelerator.num_processes,
            "configuration": self.configuration.model_dump(mode="json"),
        }

    def save_checkpoint(self) -> None:
        """Write the weights, averaged where `ema` says so, as an ordinary checkpoint folder."""
        plain = lora.plain_model(self.model, self.average)
        saving.write_checkpoint(self.checkpoint, plain, self.start.processor, self.statistics(), self.facts())

    def _identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on, in plain types."""
        return {
            "embodiment": self.data.embodiment.name,
            "training episodes": [episode.index for episode in self.data.training],
            "frames": sum(episode.length for episode in self.data.training),
            "frames per step": self.data.chunker.stride,
            "q01": self.data.statistics.q01.tolist(),
            "q99": self.data.statistics.q99.tolist(),
        }

    def save_state(self) -> None:
        """Write all that is needed to go on: what is trained, and how far."""
        self._accelerator.wait_for_everyone()
        if not self.main:
            return
        saving.write_state(
            self.folder,
            {
                "version": _STATE_VERSION,
                "kind": "finetuning",
                "source": self.start.source,
                "step": self.step,
                "seconds": self.seconds,
                "configuration": self.configuration.model_dump_json(),
                "data": self._identity(),
                "trained": {name: parameter.detach() for name, parameter in self._trained.items()},
                "average": self.average,
                "optimiser": self._optimiser.state_dict(),
            },
        )

    @torch.no_grad()
    def resume(self) -> None:
        """Go on from the folder's state. Raises TrainingError when there is none or it does not fit."""
        path = self.folder / saving.STATE_NAME
        if not path.is_file():
            raise TrainingError(f"{path}: no such file; nothing to resume from")
        try:
            state = saving.read_state(path, self._accelerator.device)
            found = (state.get("kind"), state.get("version"), state.get("source"))
            expected = ("finetuning", _STATE_VERSION, self.start.source)
            if found != expected:
                raise ValueError(f"found {found}, expected {expected}")
            for name, value in self._identity().items():
                if state["data"][name] != value:
                    raise ValueError(
                        f"{name}: found {state['data'][name]}, expected {value}: the dataset, its mapping or "
                        "the robot has changed; begin another run in another --out"
                    )
            for name, own in (("trained", self._trained), ("average", self.average)):
                if set(state[name]) != set(own):
                    raise ValueError(f"{name}: other parameters are trained now than then")
                for key, tensor in own.items():
                    tensor.copy_(state[name][key])
            saving.load_optimiser(self._optimiser, state["optimiser"])
        except Exception as error:
            raise TrainingError(f"{path}: cannot be resumed from: {error}") from error
        self.step, self.seconds = state["step"], state["seconds"]
        if self.main:
            saving.forget_metrics(self.folder, self.step)
