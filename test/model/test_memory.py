# SPDX-License-Identifier: Apache-2.0
"""Memory of weights while they are loaded, and of the paper's preset while it runs."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from qwen_vla_ros.bench import _latency as latency
from qwen_vla_ros.model import checkpoint
from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.fixed import FixedModel, padded_length, shape_of
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.parameters import count_parameters
from qwen_vla_ros.model.presets import build_tiny, paper_config, tiny_config

# Of the paper's preset, of a GPU [bytes].
TARGET = 13e9


def anonymous() -> int:
    """Memory of this process that no file stands for, without what it has freed [bytes]."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, int]:
    """A checkpoint of about 100 MB, and the size of its weights in float32 [bytes]."""
    _, processor = build_tiny()
    config = tiny_config(processor.tokenizer)
    config.backbone.text_config.intermediate_size = 12_000
    config.action_expert.intermediate_size = 5_000
    model = QwenVLAForActionPrediction(config)
    folder = tmp_path_factory.mktemp("large")
    checkpoint.save_checkpoint(folder, model, processor, {})
    return folder, 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_held_once_while_they_are_loaded(monkeypatch, large, dtype: torch.dtype) -> None:
    folder, size = large
    read, found = checkpoint._read_tensors, []

    def watched(path: Path):
        for entry in read(path):
            yield entry
            found.append(anonymous())

    monkeypatch.setattr(checkpoint, "_read_tensors", watched)
    before = anonymous()
    loaded = checkpoint.load_checkpoint(folder, "cpu", dtype)
    expected = size * dtype.itemsize / 4
    assert size > 90e6
    assert loaded.model.action_expert.action_out[0].weight.dtype == dtype
    assert 0.8 * expected < max(found) - before < 1.2 * expected


class Peak(TorchDispatchMode):
    """Most bytes that results of operations took at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in old and key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._forget, key, size)
        self.most = max(self.most, self.now)
        return result


def bytes_of(tensors) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def shortened() -> QwenVLAConfig:
    """The paper's preset with one layer of each kind and few words."""
    config = paper_config()
    text = config.backbone.text_config
    text.layer_types, text.num_hidden_layers = ["linear_attention", "full_attention"], 2
    config.backbone.vision_config.depth = config.action_expert.num_hidden_layers = 1
    return config


def test_the_papers_preset_fits(monkeypatch) -> None:
    monkeypatch.setattr(latency, "paper_config", shortened)
    config, processor = latency.configuration("paper", 50)
    config.backbone.text_config.vocab_size = 1024
    with no_init_weights():
        model = QwenVLAForActionPrediction(config)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter, dtype=torch.bfloat16)
    views = latency.VIEWS
    text = "".join(f"<|{v}_start|><|vision_start|><|image_pad|><|vision_end|><|{v}_end|>" for v in views)
    shape = shape_of(processor, processor.token_ids(text + latency.INSTRUCTION, views), views, 10)
    fixed = FixedModel(model, shape).eval()
    own = bytes_of([*fixed.buffers(), *model.parameters()]) - bytes_of(model.parameters())
    fixed = fixed.to("meta")
    # As on a GPU.
    fixed._blockwise, fixed._size = True, padded_length(shape.length)
    images = torch.zeros(3 * 3 * 224 * 224, dtype=torch.uint8, device="meta")
    ids = torch.zeros(shape.length, dtype=torch.int64, device="meta")
    chunk = torch.zeros(50, 64, device="meta")
    with torch.no_grad(), Peak() as peak:
        fixed(images, ids, chunk, chunk)
    # Tables are one for each layer; the deepest part has 32.
    weights = 2 * count_parameters(paper_config()).total
    assert peak.most > 5e6
    assert weights + 32 * own + peak.most < TARGET
