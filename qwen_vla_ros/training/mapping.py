# SPDX-License-Identifier: Apache-2.0
"""Which features of a dataset are which cameras and channels of an embodiment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.embodiment.schema import Camera, Group, JointGroup
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.lerobot import Feature, LeRobotFolder

Array = NDArray[np.float64]
Reference = Literal["absolute", "previous_step"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GroupSource(_Strict):
    """Where the channels of a group are.

    Attributes:
        feature: Feature that holds the actions.
        names: Its entries, by the dataset's names, in channel order.
        columns: Its entries, by number, in channel order; instead of `names`.
        state: Feature that holds the measured values, with the same entries; needed where rows are relative.
        unit: `deg`: angles in degrees. Then value * scale + offset, one number for all channels or one each.
        reference: What an entry is: a value (`absolute`), or the change from one frame to the next
            (`previous_step`). By default the embodiment's own, and `absolute` for `chunk_start`.
    """

    feature: str = "action"
    names: tuple[str, ...] | None = None
    columns: tuple[int, ...] | None = None
    state: str = "observation.state"
    unit: Literal["deg"] | None = None
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    reference: Reference | None = None


class MappingConfiguration(_Strict):
    """cameras: feature by view. actions: source by group. instruction: in place of the dataset's tasks."""

    cameras: dict[str, str] = Field(default_factory=dict)
    actions: dict[str, GroupSource] = Field(default_factory=dict)
    instruction: str | None = None


@dataclass(frozen=True)
class Source:
    """Channels of one group, found in the dataset.

    Attributes:
        feature, state: Names of features; `state` empty where none is needed.
        columns: Entries of `feature`. Shape (c,).
        state_columns: Entries of `state`. Shape (c,).
        scale, offset: Dataset units to those of the embodiment. Shape (c,).
        reference: What an entry is.
        measured: The entries were measured at their frame, not commanded there.
    """

    group: Group
    feature: str
    columns: NDArray[np.int64]
    state: str
    state_columns: NDArray[np.int64]
    scale: Array
    offset: Array
    reference: Reference
    measured: bool

    def values(self, columns: dict[str, Array]) -> Array:
        """Of an episode, in the units of the embodiment. Shape (length, c)."""
        return self._scaled(columns[self.feature][:, self.columns])

    def states(self, columns: dict[str, Array]) -> Array:
        """What `values` are relative to. Shape (length, c)."""
        return self._scaled(columns[self.state][:, self.state_columns])

    def _scaled(self, raw: Array) -> Array:
        # A change has no offset.
        shift = self.offset if self.reference == "absolute" else 0.0
        return raw * self.scale + shift


@dataclass(frozen=True)
class Mapping:
    """A dataset as an embodiment sees it.

    Attributes:
        cameras: Feature by view, in the embodiment's order; optional views may be missing.
        sources: One per group, in order.
        instruction: In place of the dataset's tasks, or empty.
        state_in_prompt: The prompt holds the state.
    """

    cameras: dict[str, str]
    sources: tuple[Source, ...]
    instruction: str
    state_in_prompt: bool

    @property
    def features(self) -> list[str]:
        """Features of numbers that are read."""
        names = [source.feature for source in self.sources] + [source.state for source in self.sources]
        return [name for name in dict.fromkeys(names) if name]

    def describe(self, dataset: LeRobotFolder) -> list[tuple[str, str]]:
        """Pairs of embodiment's and dataset's names, for people."""
        rows = [(f"view {view}", feature) for view, feature in self.cameras.items()]
        for source in self.sources:
            feature = dataset.features[source.feature]
            for channel, column in zip(source.group.channels, source.columns, strict=True):
                label = feature.names[column] if feature.names else str(column)
                rows.append((f"{source.group.name}/{channel}", f"{source.feature}[{label}]"))
        return rows


def resolve_mapping(
    dataset: LeRobotFolder, embodiment: Embodiment, configuration: MappingConfiguration
) -> Mapping:
    """Find every camera and channel in the dataset.

    Raises TrainingError that lists what was not found: the embodiment's name, what there is, what to write.
    """
    faults: list[str] = []
    known = {group.name for group in embodiment.actions}
    views = {camera.view for camera in embodiment.cameras}
    for kind, given, allowed in (
        ("cameras", configuration.cameras, views),
        ("actions", configuration.actions, known),
    ):
        faults += [
            f"mapping.{kind}.{name}: embodiment {embodiment.name!r} has {', '.join(sorted(allowed))}"
            for name in given
            if name not in allowed
        ]
    cameras: dict[str, str] = {}
    for camera in embodiment.cameras:
        try:
            feature = _camera(dataset, embodiment, camera, configuration.cameras.get(camera.view))
        except ValueError as error:
            faults.append(str(error))
            continue
        if feature:
            cameras[camera.view] = feature
    sources: list[Source] = []
    for group in embodiment.actions:
        try:
            sources.append(_source(dataset, embodiment, group, configuration.actions.get(group.name)))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        listed = "\n  ".join(faults)
        raise TrainingError(f"{dataset.folder}: does not fit embodiment {embodiment.name!r}:\n  {listed}")
    return Mapping(cameras, tuple(sources), configuration.instruction or "", embodiment.prompt.state)


def _camera(dataset: LeRobotFolder, embodiment: Embodiment, camera: Camera, given: str | None) -> str:
    found = ", ".join(dataset.cameras) or "none"
    if given is not None:
        if given not in dataset.cameras:
            raise ValueError(f"mapping.cameras.{camera.view}: found cameras {found}, expected {given!r}")
        return given
    for name in (f"observation.images.{camera.view}", f"observation.image.{camera.view}", camera.view):
        if name in dataset.cameras:
            return name
    if len(embodiment.cameras) == len(dataset.cameras) == 1:
        return dataset.cameras[0]
    if not camera.required:
        return ""
    raise ValueError(
        f"view {camera.view!r}: found cameras {found}, expected 'observation.images.{camera.view}'; "
        f"or say which one it is: mapping.cameras.{camera.view}"
    )


def _source(
    dataset: LeRobotFolder, embodiment: Embodiment, group: Group, given: GroupSource | None
) -> Source:
    chosen = given or GroupSource()
    where = f"mapping.actions.{group.name}"
    feature = _numbers(dataset, chosen.feature, f"{where}.feature")
    columns = _columns(feature, embodiment, group, chosen, where)
    own = getattr(group, "reference", "absolute")
    reference: Reference = chosen.reference or ("previous_step" if own == "previous_step" else "absolute")
    if own == "absolute" and reference != "absolute":
        raise ValueError(f"{where}.reference: found {reference!r}, the embodiment's actions are absolute")
    relative = (own != "absolute" and reference == "absolute") or embodiment.prompt.state
    state, state_columns = "", columns
    if relative:
        held = _numbers(dataset, chosen.state, f"{where}.state")
        state = chosen.state
        state_columns = (
            columns if held.name == feature.name else _state_columns(held, feature, columns, where)
        )
    scale, offset = (
        _per_channel(value, group.count, f"{where}.{name}")
        for name, value in (("scale", chosen.scale), ("offset", chosen.offset))
    )
    if chosen.unit == "deg":
        turning = np.array([unit == "rad" for unit in group.units])
        if not turning.any():
            raise ValueError(f"{where}.unit: found 'deg', the group's unit is {group.units[0]!r}")
        scale = np.where(turning, scale * math.pi / 180.0, scale)
    measured = feature.name.startswith("observation.")
    return Source(group, feature.name, columns, state, state_columns, scale, offset, reference, measured)


def _numbers(dataset: LeRobotFolder, name: str, where: str) -> Feature:
    feature = dataset.features.get(name)
    if feature is None or feature.camera or len(feature.shape) > 1 or feature.dtype == "string":
        found = ", ".join(
            f"{each.name} {list(each.shape)}" for each in dataset.features.values() if not each.camera
        )
        raise ValueError(f"{where}: found {found}, expected a feature {name!r} with one axis of numbers")
    return feature


def _columns(
    feature: Feature, embodiment: Embodiment, group: Group, chosen: GroupSource, where: str
) -> NDArray[np.int64]:
    if chosen.names is not None and chosen.columns is not None:
        raise ValueError(f"{where}: found names and columns, expected one of them")
    if chosen.columns is not None:
        bad = [column for column in chosen.columns if not 0 <= column < feature.width]
        if bad or len(chosen.columns) != group.count:
            raise ValueError(
                f"{where}.columns: found {list(chosen.columns)}, expected {group.count} of 0 to "
                f"{feature.width - 1}, for {', '.join(group.channels)}"
            )
        return np.array(chosen.columns)
    names = feature.names or ()
    if chosen.names is not None:
        absent = [name for name in chosen.names if name not in names]
        if absent or len(chosen.names) != group.count:
            raise ValueError(
                f"{where}.names: found {list(chosen.names)}, expected {group.count} of "
                f"{', '.join(names) or 'no names in the dataset'}, for {', '.join(group.channels)}"
            )
        return np.array([names.index(name) for name in chosen.names])
    plain = [_plain(name) for name in names]
    by_name = [_find(plain, group.name, channel) for channel in group.channels]
    missing = [channel for channel, index in zip(group.channels, by_name, strict=True) if index is None]
    if not missing:
        return np.array(by_name)
    layout = embodiment.layout
    places = np.arange(layout.count)[layout.slice_of(group.name)]
    named = {_find(plain, each.name, channel) for each in embodiment.actions for channel in each.channels}
    # A name that fits says that these entries may be in another order, or another group's.
    unnamed = len(missing) == group.count and not named & set(places.tolist())
    if feature.width == layout.count and unnamed:
        return places
    shown = ", ".join(names) if names else f"{feature.width} entries without names"
    lacking = f", of which {', '.join(missing)} is missing" if len(missing) < group.count else ""
    raise ValueError(
        f"{group.name}: feature {feature.name!r}: found {shown}, expected {', '.join(group.channels)}"
        f"{lacking}; or say which they are: {where}.names or .columns"
    )


def _find(plain: list[str], group: str, channel: str) -> int | None:
    for candidate in (f"{group}/{channel}", channel):
        if plain.count(_plain(candidate)) == 1:
            return plain.index(_plain(candidate))
    return None


def _plain(name: str) -> str:
    """`shoulder_pan.pos`, `arm/shoulder_pan` and `shoulder_pan` alike but for the group."""
    text = name.lower().removesuffix(".pos").removesuffix("_pos")
    return text.replace("/", "_").replace(".", "_").replace("-", "_")


def _state_columns(
    state: Feature, feature: Feature, columns: NDArray[np.int64], where: str
) -> NDArray[np.int64]:
    if state.names and feature.names:
        plain = [_plain(name) for name in state.names]
        wanted = [feature.names[column] for column in columns]
        absent = [name for name in wanted if plain.count(_plain(name)) != 1]
        if not absent:
            return np.array([plain.index(_plain(name)) for name in wanted])
        # A name that fits says that these entries may be in another order.
        if len(absent) < len(wanted):
            raise ValueError(
                f"{where}.state: found {state.name!r} with {', '.join(state.names)}, expected the entries of "
                f"{feature.name!r}, of which {', '.join(absent)} is missing; correct names in meta/info.json"
            )
    if state.width == feature.width:
        return columns
    raise ValueError(
        f"{where}.state: found {state.name!r} with {state.width} entries, expected the entries of "
        f"{feature.name!r}, {feature.width}"
    )


def _per_channel(value: float | tuple[float, ...], count: int, where: str) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim and array.shape != (count,):
        raise ValueError(f"{where}: found {len(array)} values, expected one, or {count}")
    return np.broadcast_to(array, (count,))


def is_joint(group: Group) -> bool:
    """Whether the group's channels are single joints."""
    return isinstance(group, JointGroup)
