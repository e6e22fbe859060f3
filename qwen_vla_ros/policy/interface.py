# SPDX-License-Identifier: Apache-2.0
"""What every policy takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.embodiment import Embodiment, Statistics


class PolicyError(RuntimeError):
    """The policy cannot serve an embodiment, or its model gave no usable chunk."""


class ObservationError(PolicyError):
    """An observation that the policy cannot use: a view is missing, or an image or a state is malformed."""


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one moment.

    Attributes:
        images: RGB by view. Each uint8, shape (h, w, 3), any size.
        instruction: What to do.
        stamp: Capture time of the oldest image, depth included [s].
        state: In the order and the units of the embodiment's channels; None where neither prompt nor policy
            needs one. NaN in channels that are no joints.
            Shape (c,).
        depth: Distance along the optical axis [m] by view, of the same pixels as the image; NaN where it is
            unknown. Of the views whose camera has a depth topic; ours use none. Each float32, shape (h, w).
    """

    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    stamp: float
    state: NDArray[np.float64] | None = None
    depth: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation:
    """What is planned already, which the next chunk has to continue (real-time chunking, arXiv 2506.07339).

    Attributes:
        rows: The plan as a chunk of the new observation would say it, in the embodiment's units and
            references; values from row `known` on are not read. Shape (horizon, c).
        known: Leading rows that are planned.
        committed: Leading rows that will have been executed when the new chunk arrives; at most `known`.
    """

    rows: NDArray[np.float64]
    known: int
    committed: int


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy is.

    Attributes:
        checkpoint: Name or path of what it runs.
        device: Where it runs.
        horizon, channels: H and K of its action tensor.
        parameters: Number of weights.
        embodiments: Names that it has statistics for.
        views: Views that it has tags for.
        embodiment: Configured embodiment, or empty.
        details: Further facts for a reader.
        reads_state: It needs `Observation.state`, whatever the prompt holds.
    """

    checkpoint: str
    device: str
    horizon: int
    channels: int
    parameters: int
    embodiments: tuple[str, ...]
    views: tuple[str, ...]
    embodiment: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    reads_state: bool = False


class Policy(Protocol):
    """Observation to normalised chunk. One caller at a time."""

    @property
    def info(self) -> PolicyInfo:
        """What this policy is."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Normalisation of the configured embodiment's channels. Raises PolicyError before `configure`."""
        ...

    def configure(self, embodiment: Embodiment) -> None:
        """Serve this embodiment from now on, and warm up.

        Raises:
            PolicyError: Channels, horizon, rate, views or statistics do not fit; names each.
        """
        ...

    def resize(self, view: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image at the size at which the model sees the view. Both uint8, shape (h, w, 3).

        `infer` takes images of any size; a caller that has time before the model has may bring them to this
        one.

        Raises:
            ObservationError: The image is malformed.
        """
        ...

    def infer(
        self, observation: Observation, seed: int | None = None, plan: Continuation | None = None
    ) -> NDArray[np.float32]:
        """Predict a chunk.

        Args:
            observation: Images of all required views.
            seed: Makes the result repeatable.
            plan: What the chunk has to continue; without it the chunk is free.

        Returns:
            Normalised actions in [-1, 1]. Shape (horizon, c) of the embodiment.

        Raises:
            InstructionError: The instruction is empty, too long or holds control text.
            ObservationError: See there.
            PolicyError: Not configured; or the model's output is not finite or has the wrong shape.
        """
        ...
