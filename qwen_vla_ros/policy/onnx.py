# SPDX-License-Identifier: Apache-2.0
"""A policy that runs graphs of `qwen-vla export` with onnxruntime; imports no torch."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.embodiment import Embodiment, Statistics, render_prompt
from qwen_vla_ros.model.prepare import Preparation, ProcessorError
from qwen_vla_ros.policy import MANIFEST, serving
from qwen_vla_ros.policy.interface import Continuation, Observation, ObservationError, PolicyError, PolicyInfo

LOG = logging.getLogger(__name__)
FORMAT = 2
WARM_UP_RUNS = 2
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


@dataclass(frozen=True)
class _Graph:
    views: tuple[str, ...]
    tokens: int
    slots: tuple[int, ...]
    session: Any


def choose_providers(device: str) -> list[str]:
    """`auto`, `cpu`, `cuda` or `tensorrt` -> execution providers that are there. Raises PolicyError."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise PolicyError(
            f"backend onnx: the Python module {error.name!r} is missing: pip install '.[onnx]' in a "
            "checkout, for a GPU onnxruntime-gpu in place of onnxruntime"
        ) from error
    found = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if "CUDAExecutionProvider" in found else "cpu"
    wanted = PROVIDERS.get(device.partition(":")[0])
    if wanted is None:
        raise PolicyError(f"device {device!r}: onnx knows {', '.join(('auto', *PROVIDERS))}")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise PolicyError(
            f"device {device!r}: this onnxruntime has no {' and no '.join(missing)}, only "
            f"{', '.join(found)}; install onnxruntime-gpu (and TensorRT), or take device cpu"
        )
    return wanted


class OnnxPolicy:
    """See `Policy`. It continues no plan: guidance needs gradients, which graphs do not have.

    Args:
        folder: What `qwen-vla export` wrote.
        device, steps, temperature, threads: See `load_policy`.

    Raises:
        PolicyError: The folder is not an export, or does not fit the options.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        *,
        steps: int | None = None,
        temperature: float | None = None,
        threads: int | None = None,
    ) -> None:
        path = folder / MANIFEST
        try:
            self._manifest = json.loads(path.read_text())
            statistics = json.loads((folder / "statistics.json").read_text())
        except (OSError, ValueError) as error:
            raise PolicyError(
                f"{folder}: not an export: {error}; write it with `qwen-vla export CHECKPOINT --onnx DIR`"
            ) from error
        if self._manifest.get("format") != FORMAT:
            raise PolicyError(
                f"{path}: format: found {self._manifest.get('format')!r}, expected {FORMAT}; export it again"
            )
        if steps is not None and steps != self._manifest["steps"]:
            raise PolicyError(
                f"steps: found {steps}, {folder} was exported with {self._manifest['steps']}; export it "
                f"again with --steps {steps}"
            )
        if temperature is not None and not 0.0 <= temperature < float("inf"):
            raise PolicyError(f"temperature: expected 0 or more, found {temperature}")
        if threads is not None and threads < 1:
            raise PolicyError(f"threads: expected at least 1, found {threads}")
        self._folder, self._statistics = folder, statistics
        self._temperature = self._manifest["temperature"] if temperature is None else temperature
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) - 1)
        self._device, self._providers = device, choose_providers(device)
        try:
            self._preparation = Preparation.from_folder(folder)
        except ProcessorError as error:
            raise PolicyError(str(error)) from error
        # Looked for once: the vocabulary has a quarter of a million tokens.
        self._known = tuple(self._preparation.views)
        self._sessions: dict[str, Any] = {}
        self._graphs: dict[tuple[str, ...], _Graph] = {}
        self._body: Embodiment | None = None
        self._views: tuple[str, ...] = ()  # of the body, that the model knows
        self._own: Statistics | None = None
        self._mask = np.zeros((0, 0), dtype=np.float32)
        # Tokens change with the instruction only, not with the image.
        self._tokenize = lru_cache(maxsize=64)(self._preparation.token_ids)

    @classmethod
    def load(cls, folder: str | Path | None, device: str = "auto", **options: Any) -> OnnxPolicy:
        """See `load_policy`."""
        if not folder:
            raise PolicyError("checkpoint: backend onnx needs a folder that `qwen-vla export` wrote")
        return cls(Path(folder), device, **options)

    @property
    def info(self) -> PolicyInfo:
        manifest = self._manifest
        return PolicyInfo(
            checkpoint=str(self._folder),
            device=self._providers[0],
            horizon=manifest["horizon"],
            channels=manifest["channels"],
            parameters=manifest["parameters"],
            embodiments=tuple(sorted(self._statistics)),
            views=self._known,
            embodiment=self._body.name if self._body else "",
            details={"euler steps": str(manifest["steps"]), "engine": "onnxruntime"},
        )

    @property
    def statistics(self) -> Statistics:
        if self._own is None:
            raise PolicyError("policy: no embodiment is configured; call configure() first")
        return self._own

    def _session(self, name: str) -> Any:
        import onnxruntime

        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            # A thread that spins for work takes it from the executor.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.log_severity_level = 3
            path = self._folder / name
            try:
                index = self._device.partition(":")[2]
                chosen = [
                    (name, {"device_id": index}) if index and name != "CPUExecutionProvider" else name
                    for name in self._providers
                ]
                session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
            except Exception as error:  # onnxruntime raises a class of its own for every cause
                text = " ".join(str(error).split())
                raise PolicyError(f"{path}: cannot be loaded: {text}; export it again") from error
            self._check_providers(session.get_providers())
            self._sessions[name] = session
        return self._sessions[name]

    def _check_providers(self, found: list[str]) -> None:
        """onnxruntime takes the next provider, without a word, where the libraries of one are missing."""
        if found[0] == self._providers[0]:
            return
        trouble = (
            f"device {self._device!r}: {self._providers[0]} cannot start, its libraries (CUDA, cuDNN, "
            f"TensorRT) are missing or do not fit; onnxruntime has only {', '.join(found)}"
        )
        if self._device != "auto":
            raise PolicyError(f"{trouble}; install them, or take device cpu")
        LOG.warning("%s, which runs the model", trouble)
        self._providers = found

    def configure(self, embodiment: Embodiment) -> None:
        manifest = self._manifest
        mask, statistics = serving.fit(
            embodiment,
            str(self._folder),
            manifest["horizon"],
            manifest["channels"],
            self._statistics,
            list(self._known),
        )
        views = serving.known_views(embodiment, self._known)
        needed = tuple(camera.view for camera in embodiment.cameras if camera.required)
        entries = {tuple(entry["views"]): entry for entry in manifest["graphs"]}
        if views not in entries:
            shown = "; ".join(", ".join(known) for known in entries)
            raise PolicyError(
                f"{self._folder}: exported for the views {shown}, not for {', '.join(views)} of "
                f"{embodiment.name}; export it with --embodiment {embodiment.name}"
            )
        graphs = {
            key: _Graph(
                key,
                entry["tokens"],
                tuple(entry["slots"]),
                self._session(entry["graph"]),
            )
            for key, entry in entries.items()
            if key in (views, needed)
        }
        before = self._body, self._own, self._mask, self._graphs, self._views
        self._body, self._own, self._graphs, self._views = embodiment, statistics, graphs, views
        self._mask = mask.astype(np.float32)
        try:
            config = self._preparation.config
            for _ in range(WARM_UP_RUNS):
                sizes = {view: config.size_of(view) for view in views}
                self.infer(serving.blank(embodiment, sizes, statistics), seed=0)
        except BaseException:
            self._body, self._own, self._mask, self._graphs, self._views = before
            raise

    def resize(self, view: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            return self._preparation.resize(view, image)
        except ProcessorError as error:
            raise ObservationError(f"observation: {error}") from error

    def infer(
        self, observation: Observation, seed: int | None = None, plan: Continuation | None = None
    ) -> NDArray[np.float32]:
        body, statistics = self._body, self.statistics
        assert body is not None
        if plan is not None and plan.known > 0:
            raise PolicyError("plan: backend onnx cannot continue one; take backend eager, or no plan")
        views = serving.views_of(body, observation, self._views)
        graph = self._graphs.get(views)
        if graph is None:
            raise ObservationError(
                f"observation: views {', '.join(views)} have no graph, only "
                f"{'; '.join(', '.join(known) for known in self._graphs)}"
            )
        prompt = render_prompt(
            body, observation.instruction, observation.state, statistics=statistics, views=views
        )
        tokenize = self._preparation.token_ids if body.prompt.state else self._tokenize
        try:
            ids = tokenize(prompt.text, views)
            images = self._preparation.frames([(view, observation.images[view]) for view in views])
        except ProcessorError as error:
            raise ObservationError(f"observation: {error}") from error
        if len(ids) > graph.tokens:
            raise PolicyError(
                f"instruction: the prompt has {len(ids)} tokens, the graphs hold {graph.tokens}; export with "
                f"--tokens {len(ids)} or more"
            )
        slots = tuple(index for index, token in enumerate(ids) if token == self._preparation.image_id)
        if slots != graph.slots:
            raise PolicyError(f"{self._folder}: the images' places in the prompt changed; export it again")
        rng = np.random.default_rng(seed)
        noise = self._temperature * rng.standard_normal(self._mask.shape, dtype=np.float32)
        inputs = {
            "images": images,
            "ids": np.array(ids, dtype=np.int64),
            "noise": noise.astype(np.float32),
            "mask": self._mask,
        }
        (chunk,) = graph.session.run(None, inputs)
        return serving.checked(chunk, body, self._manifest["horizon"], self._manifest["channels"])
