# SPDX-License-Identifier: Apache-2.0
"""Chunks cut out of recordings: rows in time, references, units, statistics."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment, parse_embodiment
from qwen_vla_ros.training.chunks import (
    Chunker,
    check_lengths,
    check_positions,
    check_rows,
    quantile_statistics,
    split,
    stride_of,
)
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.lerobot import Episode, Feature
from qwen_vla_ros.training.mapping import MappingConfiguration, resolve_mapping


class Recorded:
    """Numbers of one episode, as `LeRobotFolder` would hold them."""

    def __init__(self, fps, names=None, **columns):
        self.folder, self.fps = Path("dataset"), fps
        self.columns = {name.replace("__", "."): np.asarray(v, dtype=float) for name, v in columns.items()}
        self.cameras = ["observation.images.ego"]
        self.features = {
            name: Feature(name, "float32", (values.shape[1],), names) for name, values in self.columns.items()
        }
        self.features["observation.images.ego"] = Feature("observation.images.ego", "video", (8, 8, 3), None)
        length = len(next(iter(self.columns.values())))
        self.episodes = [Episode(0, length, Path("episode"), {}, self.columns)]

    def chunker(self, embodiment, **mapping):
        found = resolve_mapping(self, embodiment, MappingConfiguration(**mapping))
        return Chunker(embodiment, found, stride_of(self, embodiment))

    def chunk(self, embodiment, frame, **mapping):
        rows, valid = self.chunker(embodiment, **mapping).chunks(self.episodes[0], np.array([frame]))
        return rows[0], valid[0].tolist()


@pytest.fixture
def body(robot_content):
    """`body(**changes of the arm)`: two joints, four rows at 10 Hz, one camera."""

    def make(rate=10.0, **changes):
        content = copy.deepcopy(robot_content)
        content["cameras"] = content["cameras"][:1]
        content["actions"] = content["actions"][:1]
        content["actions"][0] |= changes
        return parse_embodiment(content | {"control_rate": rate})

    return make


def ramp(length, *slopes):
    return np.arange(length)[:, None] * np.array(slopes)


def test_every_second_frame_is_a_row(body):
    """A step of 10 Hz is two frames of 20 Hz; the command of frame j is reached at frame j + 1."""
    rows, valid = Recorded(20, action=ramp(12, 0.1, -0.1)).chunk(body(), 2)
    np.testing.assert_allclose(rows[:, 0], [0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(rows[:, 1], -rows[:, 0])
    assert valid == [True] * 4


def test_rows_beyond_the_end_are_masked(body):
    rows, valid = Recorded(10, action=ramp(12, 0.1, 0.0)).chunk(body(), 10)
    assert valid == [True, True, False, False]
    np.testing.assert_allclose(rows[:, 0], [1.0, 1.1, 1.1, 1.1])


@pytest.mark.parametrize(("fps", "rate"), [(25, 10.0), (5, 10.0), (30, 20.0)])
def test_rates_that_do_not_fit(body, fps, rate):
    message = f"fps: found {fps}, expected a whole multiple of the control rate of 'my_robot', {rate:g} Hz"
    with pytest.raises(TrainingError, match=message):
        Recorded(fps, action=ramp(12, 0.1, 0.1)).chunker(body(rate))


def test_relative_to_the_measured_state(body):
    data = Recorded(10, action=ramp(12, 0.1, 0.2), observation__state=ramp(12, 0.1, 0.2) - 0.05)
    rows, _ = data.chunk(body(reference="chunk_start"), 3)
    np.testing.assert_allclose(rows[:, 0], [0.05, 0.15, 0.25, 0.35])
    rows, _ = data.chunk(body(reference="previous_step"), 3, actions={"arm": {"reference": "absolute"}})
    np.testing.assert_allclose(rows[:, 1], [0.05, 0.2, 0.2, 0.2])


def test_measured_values_are_found_by_their_names(body):
    """In another order than the actions, under names that are spelt otherwise."""
    robot = body(reference="chunk_start")
    names = [channel for group in robot.actions for channel in group.channels]
    data = Recorded(10, action=ramp(12, 0.1, 0.2), observation__state=ramp(12, 0.2, 0.1))
    said = [f"{name}.pos" for name in names]
    data.features["action"] = replace(data.features["action"], names=tuple(said))
    state = data.features["observation.state"]
    data.features["observation.state"] = replace(state, names=tuple(reversed(names)))
    rows, _ = data.chunk(robot, 3)
    np.testing.assert_allclose(rows, np.outer(np.arange(4), [0.1, 0.2]), atol=1e-12)
    data.features["observation.state"] = replace(state, names=("elsewhere", names[0]))
    with pytest.raises(TrainingError, match=rf"entries of 'action', of which {said[1]} is missing"):
        data.chunker(robot)


def test_changes_of_frames_add_up(body):
    data = Recorded(20, action=np.tile([[0.1, -0.2]], (12, 1)))
    rows, _ = data.chunk(body(reference="previous_step"), 1)
    np.testing.assert_allclose(rows, np.tile([[0.2, -0.4]], (4, 1)))
    mapping = {"actions": {"arm": {"reference": "previous_step"}}}
    rows, _ = data.chunk(body(reference="chunk_start"), 1, **mapping)
    np.testing.assert_allclose(rows[:, 0], [0.2, 0.4, 0.6, 0.8])
    with pytest.raises(TrainingError, match="actions are absolute"):
        data.chunker(body(), **mapping)


def test_degrees_scale_and_columns(body):
    data = Recorded(10, action=ramp(12, 1.0, 2.0, 3.0))
    rows, _ = data.chunk(body(), 0, actions={"arm": {"columns": [2, 0], "unit": "deg", "offset": [0.5, 0.0]}})
    np.testing.assert_allclose(rows[1], [np.radians(3.0) + 0.5, np.radians(1.0)])
    rows, _ = data.chunk(body(), 0, actions={"arm": {"columns": [0, 1], "scale": 0.1}})
    np.testing.assert_allclose(rows[1], [0.1, 0.2])


def test_names_find_columns_in_any_order(body):
    data = Recorded(10, names=("jaw.pos", "elbow.pos", "shoulder.pos"), action=ramp(12, 0.0, 0.1, 0.2))
    rows, _ = data.chunk(body(), 0)
    np.testing.assert_allclose(rows[1], [0.2, 0.1])


def test_names_that_do_not_fit(body):
    data = Recorded(10, names=("a", "b", "c"), action=ramp(12, 0.0, 0.1, 0.2))
    with pytest.raises(TrainingError) as caught:
        data.chunker(body(), cameras={"top": "x"})
    message = str(caught.value)
    assert "arm: feature 'action': found a, b, c, expected shoulder, elbow" in message
    assert "mapping.cameras.top: embodiment 'my_robot' has ego" in message
    with pytest.raises(TrainingError, match=r"mapping.actions.arm.names: found \['a', 'z'\]"):
        data.chunker(body(), actions={"arm": {"names": ["a", "z"]}})
    with pytest.raises(TrainingError, match=r"arm.feature: found action \[3\], expected a feature 'moves'"):
        data.chunker(body(), actions={"arm": {"feature": "moves"}})


def test_names_of_which_some_fit_are_not_taken_by_position(body):
    """They are in another order: elbow first."""
    data = Recorded(10, names=("elbow.pos", "shoulder_pan.pos"), action=ramp(12, 0.1, 0.2))
    with pytest.raises(TrainingError) as caught:
        data.chunker(body())
    message = (
        "found elbow.pos, shoulder_pan.pos, expected shoulder, elbow, of which shoulder is missing; or say"
    )
    assert message in str(caught.value)
    said = {"arm": {"names": ["shoulder_pan.pos", "elbow.pos"]}}
    np.testing.assert_allclose(data.chunk(body(), 0, actions=said)[0][1], [0.2, 0.1])
    for names in (None, ("a", "b")):
        rows, _ = Recorded(10, names=names, action=ramp(12, 0.1, 0.2)).chunk(body(), 0)
        np.testing.assert_allclose(rows[1], [0.1, 0.2])


def test_an_entry_that_is_named_after_another_group_is_not_taken_by_position(robot_content):
    embodiment = parse_embodiment({**robot_content, "cameras": robot_content["cameras"][:1]})
    moves = ramp(12, 0.01, 0.02, 0.03)
    with pytest.raises(
        TrainingError, match="arm: feature 'action': found jaw, a, b, expected shoulder, elbow"
    ):
        Recorded(10, names=("jaw", "a", "b"), action=moves).chunker(embodiment)
    rows, _ = Recorded(10, names=("a", "b", "jaw"), action=moves).chunk(embodiment, 0)
    np.testing.assert_allclose(rows[1], [0.01, 0.02, 0.03])


def test_waypoints_from_poses():
    """Poses of odometry become waypoints in the frame of the base."""
    body = load_embodiment("tiago_base")
    length = 40
    heading = 0.5 * np.pi
    poses = np.stack((np.zeros(length), 0.1 * np.arange(length), np.full(length, heading)), axis=1)
    poses[30:, 2] += 0.3
    data = Recorded(body.control_rate, observation__pose=poses)
    mapping = {"actions": {"base": {"feature": "observation.pose", "state": "observation.pose"}}}
    rows, valid = data.chunk(body, 5, **mapping)
    np.testing.assert_allclose(rows[:, 0], 0.1 * np.arange(1, 9), atol=1e-9)
    np.testing.assert_allclose(rows[:, 1:], 0.0, atol=1e-9)
    assert all(valid)
    rows, _ = data.chunk(body, 28, **mapping)
    np.testing.assert_allclose(rows[:, 2], [0.0] + [0.3] * 7, atol=1e-9)
    # A measurement beyond the last frame does not exist.
    assert data.chunk(body, 36, **mapping)[1] == [True] * 3 + [False] * 5


def test_end_effector_changes_compose():
    """Two frames of a turn by 0.1 about z and a shift, in fixed axes, are one row."""
    body = load_embodiment("widowx")
    step = [0.01, 0.0, 0.02, 0.0, 0.0, 0.1, 1.0]
    data = Recorded(2 * body.control_rate, action=np.tile([step], (40, 1)))
    rows, _ = data.chunk(body, 0)
    np.testing.assert_allclose(rows[:, :6], np.tile([[0.02, 0, 0.04, 0, 0, 0.2]], (16, 1)), atol=1e-9)
    assert (rows[:, 6] == 1.0).all()


def test_turns_in_fixed_axes():
    """From poses: the turn of a row multiplies from the left."""
    from scipy.spatial.transform import Rotation

    body = load_embodiment("widowx")
    rng = np.random.default_rng(0)
    poses = np.column_stack((rng.normal(size=(30, 3)), rng.uniform(-1, 1, (30, 3)), np.ones(30)))
    data = Recorded(body.control_rate, observation__state=poses)
    source = {"feature": "observation.state", "reference": "absolute"}
    rows, _ = data.chunk(body, 4, actions={"eef": source, "gripper": {"feature": "observation.state"}})
    turn = Rotation.from_euler("xyz", poses[4, 3:6])
    for row in range(3):
        turn = Rotation.from_euler("xyz", rows[row, 3:6]) * turn
    np.testing.assert_allclose(
        turn.as_matrix(), Rotation.from_euler("xyz", poses[7, 3:6]).as_matrix(), atol=1e-9
    )
    np.testing.assert_allclose(rows[:3, :3].sum(axis=0), poses[7, :3] - poses[4, :3])


def test_degrees_do_not_pass_as_radians(body):
    data = Recorded(10, action=ramp(12, 10.0, 1.0))
    chunker = data.chunker(body())
    rows, _ = chunker.chunks(data.episodes[0], np.arange(12))
    with pytest.raises(
        TrainingError, match=r"arm/shoulder: found values of 0 to 110, expected limits.position"
    ):
        check_rows(rows.reshape(-1, 2), chunker.embodiment, data)


@pytest.mark.parametrize("reference", ["chunk_start", "previous_step"])
@pytest.mark.parametrize("wrong", ["action", "observation.state"])
def test_degrees_do_not_pass_as_radians_where_rows_are_differences(body, reference, wrong):
    embodiment = body(reference=reference)
    moves = 0.5 + ramp(12, 0.01, 0.02)
    recorded = {"action": moves, "observation__state": moves}
    actions = {"arm": {"reference": "absolute"}}

    def check(**columns):
        data = Recorded(10, **columns)
        chunker = data.chunker(embodiment, actions=actions)
        check_positions(chunker, data.episodes, data)
        return chunker.chunks(data.episodes[0], np.arange(9))[0]

    rows = check(**recorded)
    assert np.abs(rows).max() < 0.1
    recorded[wrong.replace(".", "__")] = np.degrees(moves)
    message = (
        rf"arm/shoulder: found values of 28.65 to 34.95 in '{wrong}', expected limits.position of -2 to 2"
    )
    with pytest.raises(TrainingError, match=message):
        check(**recorded)
    # A few values beyond the limits, or changes, say nothing of the unit.
    recorded[wrong.replace(".", "__")] = np.concatenate((np.full((1, 2), 2.5), moves[1:]))
    check(**recorded)
    actions["arm"]["reference"] = "previous_step"
    check(action=np.degrees(ramp(12, 0.1, 0.1)))


@pytest.mark.parametrize("kind", ["joints", "tip"])
def test_positions_do_not_pass_as_changes(body, kind):
    """A group that moves by changes takes a dataset's entries for changes, until it is told otherwise."""
    embodiment = body(reference="previous_step")
    recorded, group, first = ramp(12, 0.3, 0.3), "arm", "arm/shoulder"
    if kind == "tip":
        embodiment, group, first = load_embodiment("widowx"), "eef", "eef/x"
        recorded = np.column_stack((np.full((12, 3), 0.3), np.zeros((12, 3)), np.ones(12)))
    fps = embodiment.control_rate
    data = Recorded(fps, action=recorded, observation__state=recorded)
    chunker = data.chunker(embodiment)
    rows, valid = chunker.chunks(data.episodes[0], np.arange(12))
    with pytest.raises(TrainingError, match=rf"{first}: found values of .* changes at 3 x limits.velocity"):
        check_rows(rows[valid], embodiment, data)
    told = data.chunker(embodiment, actions={group: {"reference": "absolute"}})
    rows, valid = told.chunks(data.episodes[0], np.arange(12))
    check_rows(rows[valid], embodiment, data)


def test_statistics_of_the_embodiment_that_do_not_fit(body):
    data = Recorded(10, action=ramp(12, 0.1, 0.1))
    embodiment = body(normalisation={"q01": [0.0, -3.0], "q99": [0.1, 3.0]})
    rows, _ = data.chunker(embodiment).chunks(data.episodes[0], np.arange(12))
    with pytest.raises(
        TrainingError, match=r"arm/shoulder: found values of 0 to 1.1, expected normalisation"
    ):
        check_rows(rows.reshape(-1, 2), embodiment, data)


def test_quantiles_and_floor(body):
    rows = np.column_stack((np.linspace(-1, 1, 1001), np.full(1001, 0.5)))
    found = quantile_statistics(rows, body(), floor=0.01)
    np.testing.assert_allclose(found.q01, [-0.98, 0.495])
    np.testing.assert_allclose(found.q99, [0.98, 0.505])
    own = quantile_statistics(rows, body(normalisation={"q01": [-2.0, 0.0], "q99": [2.0, 1.0]}), floor=0.01)
    np.testing.assert_allclose((own.q01, own.q99), [[-2.0, 0.0], [2.0, 1.0]])


def test_a_gripper_that_seldom_closes_can_be_closed(body):
    """Where only rare values are as far apart as the floor, they are the ends; elsewhere outliers."""
    seldom = np.r_[np.zeros(5), np.ones(996)]
    found = quantile_statistics(np.column_stack((seldom, seldom / 200)), body(), floor=0.01)
    np.testing.assert_allclose((found.q01, found.q99), [[0.0, 0.0], [1.0, 0.01]], atol=1e-12)
    found = quantile_statistics(np.column_stack((seldom, np.linspace(0, 1, 1001))), body(), floor=0.01)
    np.testing.assert_allclose((found.q01[1], found.q99[1]), [0.01, 0.99])


@pytest.mark.parametrize(("feature", "needed"), [("action", 8), ("observation.state", 9)])
def test_frames_of_a_whole_chunk(body, feature, needed):
    """Four rows of two frames. The last command is reached after the last frame, a measurement at it."""
    for length in (needed - 1, needed):
        moves = ramp(length, 0.1, 0.1)
        data = Recorded(20, action=moves, observation__state=moves)
        chunker = data.chunker(body(), actions={"arm": {"feature": feature}})
        frames = np.arange(length)
        _, valid = chunker.chunks(data.episodes[0], frames)
        assert valid.all(axis=1).any() == (length == needed)
        assert frames[valid.any(axis=1)].tolist() == list(range(chunker.beginnings(data.episodes[0])))
        if length == needed:
            check_lengths(data, chunker)
            continue
        with pytest.raises(
            TrainingError, match=f"found {length} frames, expected at least {needed}, one chunk"
        ):
            check_lengths(data, chunker)


def test_split_by_episode():
    episodes = [Episode(i, 10, Path("x"), {}) for i in range(10)]
    training, validation = split(episodes, 0.2, seed=1)
    assert (len(training), len(validation)) == (8, 2)
    assert {e.index for e in training} | {e.index for e in validation} == set(range(10))
    assert [e.index for e in split(episodes, 0.2, seed=1)[1]] == [e.index for e in validation]
    assert [len(part) for part in split(episodes[:1], 0.5, seed=1)] == [1, 0]
    assert [len(part) for part in split(episodes[:2], 0.01, seed=1)] == [1, 1]
