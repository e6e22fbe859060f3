# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: content, determinism, going on, damage."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment, normalise
from qwen_vla_ros.sim import SimulationError, make_world
from qwen_vla_ros.training import demonstrations
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.seeds import TRAINING_SEEDS, evaluation_scene, training_scene

SAMPLES, SHARD = 12, 8
TIAGO = "tiago_base"


@contextlib.contextmanager
def no_file_above(size):
    """As on a full disk: files cannot grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data / TIAGO, tmp_path / TIAGO)


def make(folder, samples=SAMPLES, seed=3):
    return demonstrations.make(load_embodiment(TIAGO), folder, samples, seed=seed, shard_size=SHARD)


def test_shapes_and_content(data):
    meta, arrays = demonstrations.read_all(data / "franka_panda")
    assert meta.shards == 2
    assert arrays["images"].shape == (SAMPLES, 1, 128, 128, 3)
    assert arrays["actions"].shape == (SAMPLES, 3, 16, 8)
    assert np.isfinite(arrays["actions"]).all()
    assert (arrays["scenes"] >= TRAINING_SEEDS).all()
    for row in range(SAMPLES):
        for goal in range(3):
            target, other = arrays["targets"][row, goal]
            assert other == -1
            thing = meta.classes[arrays["classes"][row, target]]
            assert arrays["instructions"][row, goal] == f"reach the {thing}"


def test_label_is_the_place_of_the_colour(data):
    """The pixel that a label points at has the colour of its object, unless the arm hides it."""
    meta, arrays = demonstrations.read_all(data / "franka_panda")
    strongest = {"red": 0, "green": 1, "blue": 2}
    hits = trials = 0
    for row in range(SAMPLES):
        for index, number in enumerate(arrays["classes"][row]):
            colour = meta.classes[number].split()[0]
            if colour not in strongest or not arrays["visible"][row, 0, index]:
                continue
            column, line = (arrays["pixels"][row, 0, index] * 128).astype(int)
            hits += int(arrays["images"][row, 0, line, column].argmax()) == strongest[colour]
            trials += 1
    assert trials >= 12
    assert hits >= 0.75 * trials


def test_the_hand_is_labelled_where_it_is(data):
    meta, arrays = demonstrations.read_all(data / "franka_panda")
    with make_world("franka_panda") as world:
        for row in range(4):
            world.teleport(dict(zip(meta.joints, arrays["state"][row].tolist(), strict=True)))
            (index,) = np.flatnonzero(arrays["classes"][row] == meta.classes.index("hand"))
            np.testing.assert_allclose(arrays["places"][row, index], world.tool(None), atol=1e-5)
            pixel, in_front = world.project(meta.views[0], world.tool(None)[None])
            assert in_front.all()
            np.testing.assert_allclose(arrays["pixels"][row, 0, index] * 128, pixel[0], atol=1e-2)


def test_actions_end_at_the_goal(data):
    """From every state the expert's chunk approaches the target's posture."""
    meta, arrays = demonstrations.read_all(data / "franka_panda")
    with make_world("franka_panda") as world:
        for row in range(4):
            world.reset(meta.tasks[0], int(arrays["scenes"][row]))
            joints = dict(zip(meta.joints, arrays["state"][row].tolist(), strict=True))
            for goal in world.goals():
                label = [str(text) for text in arrays["instructions"][row]].index(goal.instruction)
                chunk = arrays["actions"][row, label]
                point = world.task.point(world, goal)
                names = [name.split("/")[1] for name in meta.channels]
                distance = []
                for posture in (joints, dict(zip(names, chunk[-1].tolist(), strict=True))):
                    world.teleport(posture)
                    distance.append(np.linalg.norm(world.tool(goal.arm) - point))
                before, after = distance
                assert after < max(0.02, 0.9 * before)


def test_same_seed_same_bytes_and_going_on(data, tmp_path):
    folder = tmp_path / TIAGO
    meta = make(folder)
    first = demonstrations.shard_path(folder, 0)
    expected = {shard: demonstrations.read_shard(data / TIAGO, meta, shard) for shard in (0, 1)}
    stamp = first.stat().st_mtime_ns
    demonstrations.shard_path(folder, 1).unlink()
    meta = make(folder)
    assert first.stat().st_mtime_ns == stamp
    for shard, arrays in expected.items():
        found = demonstrations.read_shard(folder, meta, shard)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_another_seed_is_another_set(data, tmp_path):
    meta = make(tmp_path / TIAGO, samples=2, seed=4)
    found = demonstrations.read_shard(tmp_path / TIAGO, meta, 0)
    here = demonstrations.read_shard(data / TIAGO, demonstrations.read_meta(data / TIAGO), 0)
    assert not set(found["scenes"]) & set(here["scenes"])
    with pytest.raises(TrainingError, match="seed is 4, expected 3"):
        make(tmp_path / TIAGO, samples=2)


def test_more_samples_extend_the_folder(copy):
    before = demonstrations.read_shard(copy, demonstrations.read_meta(copy), 0)
    meta = make(copy, samples=SAMPLES + 6)
    _, arrays = demonstrations.read_all(copy)
    assert len(arrays["scenes"]) == meta.samples == SAMPLES + 6
    np.testing.assert_array_equal(arrays["images"][:SHARD], before["images"])


def test_fewer_samples_leave_the_others_there(copy):
    before = demonstrations.read_all(copy)[1]
    files = {path.name: path.read_bytes() for path in copy.glob("*.npz")}
    few = SHARD + 1
    assert make(copy, samples=few).samples == few
    np.testing.assert_array_equal(demonstrations.read_all(copy)[1]["images"], before["images"][:few])
    make(copy)
    np.testing.assert_array_equal(demonstrations.read_all(copy)[1]["actions"], before["actions"])
    assert {path.name: path.read_bytes() for path in copy.glob("*.npz")} == files


def test_statistics_are_quantiles_of_the_labels(data):
    for name in ("franka_panda", TIAGO):
        meta, arrays = demonstrations.read_all(data / name)
        rows = arrays["actions"].reshape(-1, len(meta.channels)).astype(float)
        quantities = demonstrations.read_statistics(data / name, meta)
        np.testing.assert_allclose(quantities["q01"], np.quantile(rows, 0.01, axis=0))
        np.testing.assert_allclose(quantities["q99"], np.quantile(rows, 0.99, axis=0))
        statistics = demonstrations.statistics(quantities)
        inside = np.abs(normalise(rows, statistics)) < 1
        assert 0.95 < inside.mean() <= 1


def test_constant_channel_keeps_a_width(data):
    """A gripper that stays open normalises to 0 and back to itself."""
    meta = demonstrations.read_meta(data / "franka_panda")
    statistics = demonstrations.statistics(
        demonstrations.read_statistics(data / "franka_panda", meta), floor=0.02
    )
    gripper = meta.channels.index("gripper/panda_finger_joint1")
    assert statistics.q99[gripper] - statistics.q01[gripper] == pytest.approx(0.02)
    assert (statistics.q99[gripper] + statistics.q01[gripper]) / 2 == pytest.approx(0.04)


def test_missing_folder(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere/meta.json: no such file; expected demonstrations"):
        demonstrations.read_all(tmp_path / "nowhere")


def test_damaged_meta(copy):
    (copy / "meta.json").write_text("{")
    with pytest.raises(TrainingError, match=r"meta.json: not a description of demonstrations"):
        demonstrations.read_meta(copy)


def test_other_version(copy):
    content = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(TrainingError, match="version 99, expected 'qwen_vla_ros demonstrations' version 3"):
        demonstrations.read_meta(copy)


def test_truncated_shard(copy):
    path = demonstrations.shard_path(copy, 1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(TrainingError, match=r"shard-00001.npz: damaged shard .* delete it"):
        demonstrations.read_all(copy)


def test_missing_shard(copy):
    demonstrations.shard_path(copy, 1).unlink()
    with pytest.raises(TrainingError, match=r"shard-00001.npz: no such file"):
        demonstrations.read_all(copy)


def test_shard_of_another_body(copy, data):
    shutil.copy(demonstrations.shard_path(data / "franka_panda", 0), demonstrations.shard_path(copy, 0))
    with pytest.raises(TrainingError, match=r"actions \(16, 8\), expected \(8, 3\)"):
        demonstrations.read_all(copy)


def test_training_and_evaluation_scenes_are_disjoint():
    assert training_scene(0, 0) > evaluation_scene(TRAINING_SEEDS - 2, 1)
    assert training_scene(1, 0) > training_scene(0, 2**20 - 1)
    with pytest.raises(ValueError, match="training has the rest"):
        evaluation_scene(TRAINING_SEEDS - 1, 1)


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """Demonstrations of all tasks of the Panda in varied scenes, which no test changes."""
    folder = tmp_path_factory.mktemp("full") / "franka_panda_delta"
    demonstrations.make(
        load_embodiment("franka_panda_delta"), folder, SAMPLES, seed=3, shard_size=SHARD, setting="full"
    )
    return folder


def test_several_tasks_and_views_in_one_folder(full):
    meta, arrays = demonstrations.read_all(full)
    assert meta.tasks == ["reach", "push", "pick_up", "place", "reach_pad"]
    assert arrays["images"].shape == (SAMPLES, 2, 128, 128, 3)
    present = arrays["tasks"] >= 0
    assert len(set(arrays["tasks"][present].tolist())) >= 3
    assert np.isfinite(arrays["actions"][present]).all()
    assert np.isnan(arrays["actions"][~present]).all()
    assert (arrays["instructions"] != "").tolist() == present.tolist()
    for row in range(SAMPLES):
        assert present[row, arrays["focus"][row]]
        texts = arrays["instructions"][row][present[row]]
        assert len(set(texts)) == len(texts)
        for goal in np.flatnonzero(present[row]):
            numbers = [arrays["classes"][row, named] for named in arrays["targets"][row, goal] if named >= 0]
            names = [meta.classes[number].split() for number in numbers]
            pads = {"place": [False, True], "reach_pad": [True]}.get(meta.tasks[arrays["tasks"][row, goal]])
            assert [kind == "pad" for _, kind in names] == (pads or [False])
            text = str(arrays["instructions"][row, goal]).split()
            assert all(word in text for name in names for word in name)


def test_wordings_are_the_seen_ones(full):
    from qwen_vla_ros.sim.phrases import PHRASES

    def said(templates, text):
        return any(re.fullmatch(re.sub(r"{\w+}", r"\\w+", template), text) for template in templates)

    meta, arrays = demonstrations.read_all(full)
    for row, goal in np.argwhere(arrays["tasks"] >= 0):
        text = str(arrays["instructions"][row, goal])
        seen, held_out = PHRASES[meta.tasks[arrays["tasks"][row, goal]]]
        assert said(seen, text), text
        assert not said(held_out, text), text


def test_both_settings_in_turn_with_the_words_of_the_full_one(tmp_path):
    body = load_embodiment("franka_panda")
    tasks = ["reach", "place"]
    meta = demonstrations.make(
        body, tmp_path, 2 * SHARD, seed=3, shard_size=SHARD, setting="easy+full", tasks=tasks
    )
    easy, full = (demonstrations.read_shard(tmp_path, meta, shard) for shard in (0, 1))
    # Easy scenes have no pads to place something on.
    assert set(easy["tasks"][easy["tasks"] >= 0].tolist()) == {0}
    assert set(full["tasks"][full["tasks"] >= 0].tolist()) == {0, 1}
    words = {str(text).split()[0] for text in easy["instructions"].ravel() if text}
    assert len(words) > 2
    # One look for all easy scenes: the corners of the pictures are of one table.
    corners = [shard["images"][:, 0, -1, 0].astype(int) for shard in (easy, full)]
    assert np.ptp(corners[0], axis=0).max() < 5 < np.ptp(corners[1], axis=0).max()
    assert demonstrations.read_all(tmp_path)[0].samples == 2 * SHARD


def test_a_setting_without_any_of_the_tasks_is_refused(tmp_path):
    with pytest.raises(SimulationError, match="found place, none of them in the setting easy: expected"):
        demonstrations.make(
            load_embodiment("franka_panda"), tmp_path / "x", 2, setting="easy+full", tasks=["place"]
        )
    assert not (tmp_path / "x").exists()


def test_going_on_with_varied_scenes_gives_the_same_data(full, tmp_path):
    folder = shutil.copytree(full, tmp_path / "again")
    meta = demonstrations.read_meta(folder)
    expected = demonstrations.read_shard(folder, meta, 1)
    demonstrations.shard_path(folder, 1).unlink()
    body = load_embodiment("franka_panda_delta")
    demonstrations.make(body, folder, SAMPLES, seed=3, shard_size=SHARD, setting="full")
    found = demonstrations.read_shard(folder, meta, 1)
    for name, array in expected.items():
        if name == "images":
            # The software renderer rounds a few pixels otherwise after other pictures.
            difference = np.abs(found[name].astype(int) - array)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 1e-3
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_another_setting_in_the_same_folder_is_refused(full):
    with pytest.raises(TrainingError, match="setting is 'full', expected 'easy'"):
        demonstrations.make(load_embodiment("franka_panda_delta"), full, SAMPLES, seed=3, shard_size=SHARD)


def test_several_processes_make_the_same(data, tmp_path):
    done = []
    folder = tmp_path / TIAGO
    arguments = {"samples": SAMPLES, "seed": 3, "shard_size": SHARD}
    demonstrations.make(load_embodiment(TIAGO), folder, **arguments, progress=done.append, jobs=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (data / TIAGO).iterdir()
    )
    for path in folder.iterdir():
        assert path.read_bytes() == (data / TIAGO / path.name).read_bytes()
    assert done[0] == 0
    assert done[-1] == SAMPLES


def test_processes_end_with_the_one_that_started_them(tmp_path):
    folder = tmp_path / TIAGO
    command = [sys.executable, "-m", "qwen_vla_ros.cli", "data", "make", "--embodiment", TIAGO, "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--samples", "100000", "--out", folder], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        until = time.monotonic() + 60.0
        while not any(folder.glob("shard-*")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.communicate(timeout=20.0)  # until nobody holds its output any more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_an_error_of_a_process_is_told(tmp_path):
    folder = tmp_path / TIAGO
    make(folder)
    (folder / "shard-00001.npz").unlink()
    (folder / "shard-00001.partial").mkdir()
    with pytest.raises(TrainingError, match=r"shard-00001.npz: cannot be written"):
        demonstrations.make(load_embodiment(TIAGO), folder, SAMPLES, seed=3, shard_size=SHARD, jobs=2)


def test_a_full_disk_leaves_what_was_written(copy):
    """A shard that does not fit is named, leaves nothing behind, and the next call goes on."""
    meta = demonstrations.read_meta(copy)
    before = demonstrations.shard_path(copy, 0).read_bytes()
    demonstrations.shard_path(copy, 1).unlink()
    message = r"shard-00001.npz: cannot be written: File too large; what was"
    with no_file_above(20_000), pytest.raises(TrainingError, match=message):
        make(copy)
    assert not list(copy.glob("*.partial"))
    assert demonstrations.shard_path(copy, 0).read_bytes() == before
    make(copy)
    assert demonstrations.read_all(copy)[0] == meta


def test_a_full_disk_while_a_folder_is_extended(tmp_path):
    """A last shard that was cut short, and the statistics, stay until the longer ones are there."""
    folder = tmp_path / TIAGO
    make(folder, samples=SHARD + 1)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with no_file_above(20_000), pytest.raises(TrainingError, match=r"shard-00001.npz: cannot be written"):
        make(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert demonstrations.read_all(folder)[0].samples == SHARD + 1
    assert make(folder).samples == len(demonstrations.read_all(folder)[1]["scenes"]) == SAMPLES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ["base/dx"]}, r"channels: found \['base/dx'\], expected \['"),
        ({"q001": [0.0]}, r"q001: found \[0.0\], expected \d+ finite numbers"),
        ({"maximum": None}, r"maximum: found None, expected \d+ finite numbers"),
        ({"q99": ...}, r"'q99' is missing"),
    ],
)
def test_statistics_that_do_not_fit(copy, change, message):
    path = copy / "statistics.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(
        TrainingError, match=rf"statistics.json: not statistics of these demonstrations: {message}"
    ):
        demonstrations.read_statistics(copy, demonstrations.read_meta(copy))


def test_half_written_shards_are_not_taken_for_whole_ones(copy):
    """What a killed run leaves is written again."""
    path = demonstrations.shard_path(copy, 1)
    path.with_suffix(".partial").write_bytes(path.read_bytes()[:5000])
    path.unlink()
    make(copy)
    demonstrations.read_all(copy)
    assert not path.with_suffix(".partial").exists()


def test_actions_that_are_not_finite(copy):
    meta = demonstrations.read_meta(copy)
    arrays = demonstrations.read_shard(copy, meta, 0)
    arrays["actions"][2, 1, 0, 0] = np.inf
    np.savez(demonstrations.shard_path(copy, 0), **arrays)
    with pytest.raises(TrainingError, match=r"shard-00000.npz: found actions that are not finite"):
        demonstrations.read_all(copy)


def test_unknown_task(tmp_path):
    body = load_embodiment(TIAGO)
    with pytest.raises(SimulationError, match="found 'fly', expected some of drive, stop_in_front"):
        demonstrations.make(body, tmp_path / "x", 2, setting="full", tasks=["fly"])


def test_every_wording_is_made_of_known_words():
    """A word that the tokenizer does not know falls into bytes, and makes its sentence long."""
    from qwen_vla_ros.model.tiny_tokenizer import build_tiny_tokenizer
    from qwen_vla_ros.sim.phrases import PHRASES
    from qwen_vla_ros.sim.scene import COLOURS, KINDS

    tokenizer = build_tiny_tokenizer()
    words = {word for both in PHRASES.values() for texts in both for text in texts for word in text.split()}
    words = {word.strip(",") for word in words if "{" not in word} | {*COLOURS, *KINDS, "left", "right"}
    for word in words:
        assert len(tokenizer(f" {word}")["input_ids"]) == 1, word
