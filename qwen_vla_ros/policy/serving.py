# SPDX-License-Identifier: Apache-2.0
"""What every backend does around its network: checks of the body, the observation and the chunk."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.embodiment import Embodiment, EmbodimentError, Statistics, resolve_statistics
from qwen_vla_ros.policy.interface import Observation, ObservationError, PolicyError

LOG = logging.getLogger(__name__)


def known_views(embodiment: Embodiment, views: Collection[str]) -> tuple[str, ...]:
    """Views of the body that a model knows, in the body's order. views: of the model."""
    return tuple(camera.view for camera in embodiment.cameras if camera.view in views)


def fit(
    embodiment: Embodiment,
    source: str,
    horizon: int,
    channels: int,
    statistics: Mapping[str, Mapping[str, Any]],
    views: list[str],
) -> tuple[NDArray[np.bool_], Statistics]:
    """Check a body against a model, and log which of its views are not used.

    Args:
        source: Where the model came from, for messages.
        horizon, channels: H and K.
        statistics: As in a checkpoint.
        views: That the model knows.

    Returns:
        Mask of the body's actions, shape (H, K), and its statistics.

    Raises:
        PolicyError: Names every fault.
    """
    faults: list[str] = []
    mask = own = None
    try:
        mask = embodiment.layout.mask(horizon, channels)
    except ValueError as error:
        faults.append(str(error))
    try:
        own = resolve_statistics(embodiment, statistics)
    except EmbodimentError as error:
        faults.append(str(error))
    # A chunk of another rate or length means another motion.
    trained = statistics.get(embodiment.name, {})
    found = {"control_rate": float(embodiment.control_rate), "horizon": embodiment.horizon}
    faults += [
        f"{name}: found {value:g}, the checkpoint was trained with {trained[name]:g}"
        for name, value in found.items()
        if name in trained and abs(float(trained[name]) - value) > 1e-6
    ]
    faults += [
        f"cameras: view {camera.view!r}: the checkpoint knows only {', '.join(views) or 'none'}"
        for camera in embodiment.cameras
        if camera.required and camera.view not in views
    ]
    if faults or mask is None or own is None:
        listed = "\n  ".join(faults)
        raise PolicyError(f"{source}: cannot serve embodiment {embodiment.name!r}:\n  {listed}")
    known = known_views(embodiment, views)
    for camera in embodiment.cameras:
        if camera.view not in known:
            LOG.warning(
                "embodiment %s: view %r is not used: %s does not know it",
                embodiment.name,
                camera.view,
                source,
            )
    return mask, own


def views_of(embodiment: Embodiment, observation: Observation, views: Sequence[str]) -> tuple[str, ...]:
    """Those of `views`, from `known_views`, that the observation has, in order.

    Raises ObservationError where one is missing that the body requires.
    """
    absent = [c.view for c in embodiment.cameras if c.required and c.view not in observation.images]
    if absent:
        raise ObservationError(f"observation: no image of view {', '.join(map(repr, absent))}")
    for view in views:
        if view in observation.images and not isinstance(observation.images[view], np.ndarray):
            found = type(observation.images[view]).__name__
            raise ObservationError(f"observation: view {view!r}: found {found}, expected an array (h, w, 3)")
    if embodiment.prompt.state:
        state, count = observation.state, embodiment.layout.count
        if state is None or np.shape(state) != (count,) or not np.isfinite(state).all():
            raise ObservationError(f"observation: state: found {state}, expected {count} finite values")
    return tuple(view for view in views if view in observation.images)


def blank(
    embodiment: Embodiment, sizes: Mapping[str, tuple[int, int]], statistics: Statistics
) -> Observation:
    """An observation to warm up with, whose prompt is as long as one gets by its state.

    sizes: (height, width) by view.
    """
    images = {view: np.zeros((*size, 3), dtype=np.uint8) for view, size in sizes.items()}
    # Of the last bin, whose number has most digits.
    state = statistics.q99.copy() if embodiment.prompt.state else None
    return Observation(images, "reach the red cube", 0.0, state)


def checked(
    sample: NDArray[np.float32], embodiment: Embodiment, horizon: int, channels: int
) -> NDArray[np.float32]:
    """The body's part of a model's output, clipped.

    Args:
        sample: What the model gave, expected of shape (H, K).
        horizon, channels: H and K.

    Returns:
        Shape (horizon, c) of the embodiment.

    Raises:
        PolicyError: Wrong shape, or a value that is not finite; names it.
    """
    if sample.shape != (horizon, channels):
        raise PolicyError(f"model output: found shape {sample.shape}, expected {(horizon, channels)}")
    chunk = sample[: embodiment.horizon, : embodiment.layout.count]
    bad = np.argwhere(~np.isfinite(chunk))
    if len(bad):
        row, column = bad[0]
        raise PolicyError(
            f"model output: {len(bad)} of {chunk.size} values are not finite, the first is "
            f"{chunk[row, column]} in row {row}, channel {embodiment.layout.names[column]}"
        )
    return np.clip(chunk, -1.0, 1.0)
