# SPDX-License-Identifier: Apache-2.0
"""Exported graphs give the chunks of torch, without torch."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.model.checkpoint import load_checkpoint, save_checkpoint
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.presets import build_tiny, initialise_fan_in, tiny_config
from qwen_vla_ros.policy import Continuation, Observation, PolicyError, load_policy
from qwen_vla_ros.policy.export import export_onnx
from qwen_vla_ros.policy.local import LocalPolicy
from qwen_vla_ros.policy.onnx import OnnxPolicy, choose_providers

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# Of normalised actions, whose range is 2: what float32 sums in another order leave.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(resources.checkpoints_directory() / "qwen_vla_tiny", folder)
    return folder


def difference(monkeypatch, folder: Path, checkpoint: Path, body_name: str, implementation: str) -> float:
    """Largest difference between onnxruntime's chunk and transformers' own forward, same noise."""
    body = load_embodiment(body_name)
    reference = LocalPolicy.load(checkpoint, "cpu", threads=1)
    reference._model.implementation = implementation
    reference.configure(body)
    policy = OnnxPolicy.load(folder, "cpu", threads=1)
    policy.configure(body)
    noise = np.random.default_rng(5).standard_normal(policy._mask.shape, dtype=np.float32)

    class Same:
        def standard_normal(self, shape, dtype):
            return noise

    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: Same())
    monkeypatch.setattr(torch, "randn", lambda *_a, **_k: torch.from_numpy(noise.copy())[None])
    pictures = np.random.Generator(np.random.PCG64(3))
    worst = 0.0
    for instruction in ("reach the red cube", "touch the small green ball over there"):
        images = {
            camera.view: pictures.integers(0, 256, (240, 320, 3), dtype=np.uint8) for camera in body.cameras
        }
        observation = Observation(images, instruction, 0.0)
        found, expected = policy.infer(observation), reference.infer(observation)
        assert np.abs(expected).max() > 0.05
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def test_images_may_be_brought_to_size_before(shipped: Path) -> None:
    policy = OnnxPolicy.load(shipped, "cpu", threads=1)
    policy.configure(load_embodiment("franka_panda"))
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    images = [image, policy.resize("ego", image)]
    assert images[1].shape == (128, 128, 3)
    chunks = [policy.infer(Observation({"ego": each}, "reach the red cube", 0.0), seed=1) for each in images]
    np.testing.assert_array_equal(*chunks)


@pytest.mark.parametrize("body", ["franka_panda", "unitree_g1"])
def test_shipped_checkpoint(monkeypatch, shipped: Path, body: str) -> None:
    checkpoint = resources.checkpoints_directory() / "qwen_vla_tiny"
    assert difference(monkeypatch, shipped, checkpoint, body, "stock") <= TOLERANCE


def test_larger_random_model_with_two_views(monkeypatch, tmp_path: Path) -> None:
    _, processor = build_tiny()
    config = tiny_config(processor.tokenizer)
    text, expert = config.backbone.text_config, config.action_expert
    # Wider; more value than key heads, an inner layer for the expert, a causal chunk.
    text.linear_num_value_heads, text.hidden_size, text.num_hidden_layers = 8, 192, 3
    text.layer_types = ["linear_attention", "full_attention", "full_attention"]
    config.backbone.vision_config.out_hidden_size, config.backbone.vision_config.depth = 192, 2
    expert.hidden_size, expert.vlm_layer, expert.bidirectional, expert.horizon = 256, 1, False, 32
    expert.num_hidden_layers, config.flow.num_steps = 2, 2
    expert.head_dim, expert.num_attention_heads, expert.channels = 64, 4, 40
    processor.config = dataclasses.replace(processor.config, view_image_size={"cam_wrist": (64, 96)})
    torch.manual_seed(2)
    model = QwenVLAForActionPrediction(config)
    initialise_fan_in(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape)
    body = load_embodiment("so101")
    entry = {
        "channels": list(body.layout.names),
        "q01": [-1.0] * body.layout.count,
        "q99": [1.0] * body.layout.count,
        "control_rate": body.control_rate,
        "horizon": body.horizon,
    }
    save_checkpoint(tmp_path / "checkpoint", model, processor, {"so101": entry})
    export_onnx(load_checkpoint(tmp_path / "checkpoint"), tmp_path / "onnx")
    found = difference(monkeypatch, tmp_path / "onnx", tmp_path / "checkpoint", "so101", "stock")
    assert found <= TOLERANCE


def test_an_optional_view_that_the_checkpoint_does_not_know_is_not_used(tmp_path: Path, caplog) -> None:
    text = (resources.embodiments_directory() / "franka_panda.yaml").read_text()
    tail = "  - {view: tail, topic: tail/image_raw, size: [64, 48], required: false}\n"
    path = tmp_path / "franka_panda.yaml"
    path.write_text(text.replace("  - view: ego", f"{tail}  - view: ego", 1))
    checkpoint, folder = resources.checkpoints_directory() / "qwen_vla_tiny", tmp_path / "onnx"
    manifest = export_onnx(checkpoint, folder, [str(path)], steps=1)
    assert [entry["views"] for entry in manifest["graphs"]] == [["ego"]]
    caplog.clear()
    policy = OnnxPolicy.load(folder, "cpu", threads=1)
    policy.configure(load_embodiment(path))
    told = f"embodiment franka_panda: view 'tail' is not used: {folder} does not know it"
    assert [record.getMessage() for record in caplog.records if "qwen_vla" in record.name] == [told]
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for view in ("tail", "ego")}
    seen = policy.infer(Observation(images, "reach the red cube", 0.0), seed=1)
    del images["tail"]
    np.testing.assert_array_equal(seen, policy.infer(Observation(images, "reach the red cube", 0.0), seed=1))


def test_needs_no_torch(shipped: Path) -> None:
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.policy import Observation, load_policy
policy = load_policy({str(shipped)!r}, threads=1)
policy.configure(load_embodiment("tiago_base"))
image = np.zeros((480, 640, 3), dtype=np.uint8)
chunk = policy.infer(Observation({{"ego": image}}, "drive to the red pillar", 0.0), seed=1)
print(policy.info.details["engine"], chunk.shape, bool(np.isfinite(chunk).all()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[0] == "onnxruntime (8, 3) True"


def test_refuses_in_clear_words(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no CUDAExecutionProvider"):
        choose_providers("cuda")
    with pytest.raises(PolicyError, match=r"no Tensorrt\w+ and no CUDA\w+, only .*CPU"):
        choose_providers("tensorrt")
    assert choose_providers("auto") == ["CPUExecutionProvider"]
    with pytest.raises(PolicyError, match="onnx knows auto, cpu, cuda, tensorrt"):
        choose_providers("npu")
    with pytest.raises(PolicyError, match="qwen-vla export"):
        load_policy(tmp_path, "cpu", backend="onnx")
    with pytest.raises(PolicyError, match="exported with 4; export it again with --steps 2"):
        load_policy(shipped, "cpu", steps=2)
    with pytest.raises(PolicyError, match="expected one of auto, eager"):
        load_policy(shipped, "cpu", backend="jax")
    policy = load_policy(shipped, "cpu", threads=1)
    assert policy.info.device == "CPUExecutionProvider"
    body = load_embodiment("franka_panda")
    policy.configure(body)
    observation = Observation({"ego": np.zeros((8, 8, 3), dtype=np.uint8)}, "reach the red cube", 0.0)
    rows = np.zeros((body.horizon, body.layout.count))
    with pytest.raises(PolicyError, match="cannot continue"):
        policy.infer(observation, plan=Continuation(rows, 4, 1))
    with pytest.raises(PolicyError, match=r"export with --tokens \d+"):
        policy.infer(dataclasses.replace(observation, instruction="reach the red cube " * 24))
    changed = tmp_path / "changed"
    shutil.copytree(shipped, changed)
    manifest = json.loads((changed / "onnx.json").read_text())
    (changed / manifest["graphs"][0]["graph"]).write_bytes(b"not a graph")
    with pytest.raises(PolicyError, match=r"onnx: cannot be loaded"):
        load_policy(changed, "cpu").configure(body)


def test_a_provider_that_cannot_start_is_told_of(monkeypatch, caplog, shipped: Path) -> None:
    import onnxruntime

    # As onnxruntime-gpu on a machine without CUDA's libraries: it lists the provider, then does without.
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    body = load_embodiment("franka_panda")
    for device, name in (("cuda", listed[1]), ("tensorrt", listed[0])):
        policy = OnnxPolicy.load(shipped, device, threads=1)
        with pytest.raises(PolicyError, match=rf"device '{device}': {name} cannot start, .*only CPU"):
            policy.configure(body)
    policy = OnnxPolicy.load(shipped, "auto", threads=1)
    with caplog.at_level(logging.WARNING):
        policy.configure(body)
    told = "CUDAExecutionProvider cannot start"
    assert len([record for record in caplog.records if told in record.message]) == 1
    assert policy.info.device == "CPUExecutionProvider"


def test_without_onnxruntime(monkeypatch, shipped: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PolicyError, match="module 'onnxruntime' is missing: pip install"):
        load_policy(shipped, "cpu")
