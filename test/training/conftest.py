# SPDX-License-Identifier: Apache-2.0
"""Real demonstrations, few of them, and recorded datasets, small ones."""

import json

import av
import cv2
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from qwen_vla_ros.embodiment import load_embodiment, parse_embodiment
from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.presets import initialise_fan_in, tiny_config
from qwen_vla_ros.model.processor import ProcessorConfig, QwenVLAProcessor
from qwen_vla_ros.model.tiny_tokenizer import build_tiny_tokenizer
from qwen_vla_ros.training import demonstrations

SAMPLES, SHARD = 12, 8


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of demonstrations per body, which no test changes."""
    root = tmp_path_factory.mktemp("data")
    for name in ("franka_panda", "tiago_base"):
        demonstrations.make(load_embodiment(name), root / name, SAMPLES, seed=3, shard_size=SHARD)
    return root


def build_micro(image_size=(128, 128), seed=0):
    """Model and processor: the tiny preset, a quarter as wide and half as deep."""
    tokenizer = build_tiny_tokenizer()
    content = tiny_config(tokenizer).to_dict()
    text, vision = content["backbone"]["text_config"], content["backbone"]["vision_config"]
    text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "linear_num_key_heads": 1, "linear_num_value_heads": 1}
    vision |= {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    content["action_expert"] |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    content["action_expert"] |= {"intermediate_size": 64, "timestep_dim": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QwenVLAForActionPrediction(QwenVLAConfig(**content))
        initialise_fan_in(model)
    return model, QwenVLAProcessor(tokenizer, ProcessorConfig(image_size=image_size, chat=False))


@pytest.fixture(scope="session")
def micro():
    return build_micro


ROBOT = {
    "schema": 1,
    "name": "my_robot",
    "description": "two joints and a gripper",
    "prompt": {"robot_tag": "MyRobot", "arms": "single"},
    "control_rate": 10.0,
    "command_rate": 50.0,
    "horizon": 4,
    "execute_steps": 2,
    "cameras": [
        {"view": "ego", "topic": "camera/ego/image_raw", "size": [48, 32]},
        {"view": "wrist_2", "topic": "camera/wrist/image_raw", "size": [48, 32]},
    ],
    "state": {"joint_states": ["joint_states"]},
    "actions": [
        {
            "name": "arm",
            "kind": "joint_position",
            "joints": ["shoulder", "elbow"],
            "unit": "rad",
            "reference": "absolute",
            "limits": {"position": [-2.0, 2.0], "velocity": 3.0, "acceleration": 15.0, "jerk": 300.0},
            "controller": {"type": "joint_trajectory", "topic": "arm_controller/joint_trajectory"},
        },
        {
            "name": "gripper",
            "kind": "gripper",
            "joints": ["jaw"],
            "unit": "fraction",
            "reference": "absolute",
            "limits": {"position": [0.0, 1.0], "velocity": 4.0, "acceleration": 40.0, "jerk": 1000.0},
            "controller": {"type": "forward_command", "topic": "gripper_controller/commands"},
        },
    ],
}


@pytest.fixture(scope="session")
def robot():
    """Of the datasets that `write_lerobot` writes: 10 Hz, four rows, two cameras, three channels."""
    return parse_embodiment(ROBOT)


def write_lerobot(
    folder,
    version="v2.1",
    lengths=(12, 14, 12),
    fps=20,
    images="video",
    names=("jaw.pos", "shoulder.pos", "elbow.pos"),
):
    """A LeRobot dataset as the format's documentation describes it.

    Two joints move evenly, the gripper closes; the brightness of a picture is the number of the frame.
    """
    folder.mkdir(parents=True)
    cameras = ("observation.images.ego", "observation.images.wrist_2")
    vector = {"dtype": "float32", "shape": [3], "names": list(names)}
    single = {"shape": [1], "names": None}
    features = {
        "action": vector,
        "observation.state": vector,
        **{
            camera: {"dtype": images, "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
            for camera in cameras
        },
        "timestamp": {"dtype": "float32", **single},
        **{
            key: {"dtype": "int64", **single}
            for key in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    tasks = ["push the red button", "close the drawer"]
    episodes = [_recording(index, length, fps) for index, length in enumerate(lengths)]
    total = sum(lengths)
    info = {
        "codebase_version": version,
        "robot_type": "my_robot",
        "total_episodes": len(lengths),
        "total_frames": total,
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": features,
    }
    _Writer(folder, cameras, images, fps).write(info, episodes, tasks)
    return folder


def _recording(index, length, fps):
    frame = np.arange(length)
    action = np.stack([frame < 6, 0.06 * frame - 0.4, 0.01 * index - 0.04 * frame], axis=1).astype(np.float32)
    pictures = {
        camera: np.stack([np.full((32, 48, 3), base + 10 * frame, dtype=np.uint8) for frame in range(length)])
        for camera, base in (("observation.images.ego", 20 + 3 * index), ("observation.images.wrist_2", 60))
    }
    numbers = {
        "action": action,
        "observation.state": np.concatenate((action[:1], action[:-1])),
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(length, index),
        "task_index": np.full(length, index % 2),
    }
    return numbers, pictures


class _Writer:
    def __init__(self, folder, cameras, images, fps):
        self.folder, self.cameras, self.images, self.fps = folder, cameras, images, fps

    def write(self, info, episodes, tasks):
        (self.folder / "meta").mkdir()
        start = 0
        for numbers, _ in episodes:
            numbers["index"] = np.arange(start, start + len(numbers["frame_index"]))
            start += len(numbers["frame_index"])
        if info["codebase_version"] == "v3.0":
            info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            self._v3(episodes, tasks)
        else:
            info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
            info["video_path"] = (
                "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
            )
            self._v2(episodes, tasks)
        (self.folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))

    def _v2(self, episodes, tasks):
        lines = [
            {"episode_index": i, "tasks": [tasks[i % 2]], "length": len(numbers["index"])}
            for i, (numbers, _) in enumerate(episodes)
        ]
        _json_lines(self.folder / "meta" / "episodes.jsonl", lines)
        _json_lines(
            self.folder / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)]
        )
        for i, (numbers, pictures) in enumerate(episodes):
            self._parquet(self.folder / f"data/chunk-000/episode_{i:06d}.parquet", [(numbers, pictures)])
            for camera in self.cameras:
                self._video(self.folder / f"videos/chunk-000/{camera}/episode_{i:06d}.mp4", pictures[camera])

    def _v3(self, episodes, tasks):
        pandas_like = pyarrow.table({"task_index": [0, 1], "__index_level_0__": tasks})
        parquet.write_table(pandas_like, self.folder / "meta" / "tasks.parquet")
        self._parquet(self.folder / "data/chunk-000/file-000.parquet", episodes)
        rows, start = [], 0
        for i, (numbers, _) in enumerate(episodes):
            length = len(numbers["index"])
            row = {
                "episode_index": i,
                "tasks": [tasks[i % 2]],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
            }
            for camera in self.cameras if self.images == "video" else ():
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
                row |= {
                    f"videos/{camera}/from_timestamp": start / self.fps,
                    f"videos/{camera}/to_timestamp": (start + length) / self.fps,
                }
            rows.append(row)
            start += length
        path = self.folder / "meta/episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        for camera in self.cameras:
            frames = np.concatenate([pictures[camera] for _, pictures in episodes])
            self._video(self.folder / f"videos/{camera}/chunk-000/file-000.mp4", frames)

    def _parquet(self, path, episodes):
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {}
        for name in episodes[0][0]:
            values = np.concatenate([numbers[name] for numbers, _ in episodes])
            columns[name] = values.tolist() if values.ndim == 2 else values
        if self.images == "image":
            for camera in self.cameras:
                columns[camera] = [
                    {"bytes": cv2.imencode(".png", frame[:, :, ::-1])[1].tobytes(), "path": None}
                    for _, pictures in episodes
                    for frame in pictures[camera]
                ]
        parquet.write_table(pyarrow.table(columns), path, row_group_size=8)

    def _video(self, path, frames):
        if self.images != "video":
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=self.fps, options={"g": "4", "crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def _json_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session", name="write_lerobot")
def _write_lerobot():
    return write_lerobot


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Datasets by version and kind of pictures, which no test changes."""
    root = tmp_path_factory.mktemp("recorded")
    kinds = (("v2.1", "video"), ("v3.0", "video"), ("v3.0", "image"))
    return {(v, i): write_lerobot(root / f"{v}-{i}", v, images=i) for v, i in kinds}


@pytest.fixture(scope="session")
def robot_content():
    return ROBOT
