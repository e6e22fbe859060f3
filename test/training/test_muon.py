# SPDX-License-Identifier: Apache-2.0
"""The optimiser of inner matrices."""

import pytest
import torch

from qwen_vla_ros.training.muon import Muon, inner_matrices, orthogonal


@pytest.mark.parametrize("shape", [(3, 96, 64), (2, 64, 64), (2, 64, 160)])
def test_singular_values_are_brought_near_one(shape):
    generator = torch.Generator().manual_seed(1)
    matrices = (
        torch.randn(shape, generator=generator) * torch.tensor([1e-4, 1.0, 50.0])[: shape[0], None, None]
    )
    assert torch.linalg.svdvals(matrices).amax() > 3.0
    found = torch.linalg.svdvals(orthogonal(matrices))
    # What is almost singular is not blown up all the way.
    assert found.amax() < 1.3
    assert found.quantile(0.1) > 0.6
    # Directions stay: U V' of the singular value decomposition, nearly.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    ideal = left @ right
    cosine = (orthogonal(matrices) * ideal).sum(dim=(1, 2)) / ideal.square().sum(dim=(1, 2))
    assert cosine.amin() > 0.8


def test_a_step_has_the_size_of_adamw_and_decays_weights():
    torch.manual_seed(0)
    before = torch.randn(128, 256)
    matrix = torch.nn.Parameter(before.clone())
    optimiser = Muon([matrix], lr=0.01, weight_decay=0.5)
    matrix.grad = 1e-6 * torch.randn(128, 256)
    optimiser.step()
    moved = matrix.detach() - before * (1.0 - 0.01 * 0.5)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.15)
    assert (moved * matrix.grad).sum() < 0


def test_a_ravine_is_descended_faster_than_by_its_gradient():
    """Directions whose gradients are tiny move as far as the others."""
    scales = torch.logspace(0, -1, 64)
    target = torch.eye(64)
    left = {}
    for name in ("muon", "sgd"):
        matrix = torch.nn.Parameter(torch.zeros(64, 64))
        optimiser = (
            Muon([matrix], lr=0.05, weight_decay=0.0) if name == "muon" else torch.optim.SGD([matrix], lr=0.5)
        )
        for _ in range(100):
            optimiser.zero_grad()
            (0.5 * (scales[:, None] * (matrix - target)).square().sum()).backward()
            optimiser.step()
        left[name] = (matrix - target).diagonal().abs().amax().item()
    assert left["sgd"] > 0.5
    assert left["muon"] < 0.2


def test_inner_matrices_leave_out_embeddings_and_readouts():
    from qwen_vla_ros.model.presets import build_tiny

    model = build_tiny()[0]
    inner = {id(p) for p in inner_matrices(model)}
    names = {name for name, p in model.named_parameters() if id(p) in inner}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert names
    assert not any("embed" in name for name in names)
    assert all(len(shapes[name]) == 2 and min(shapes[name]) >= 64 for name in names)
    # The greater part of the weights, of every part of the model.
    assert sum(shapes[n].numel() for n in names) > 0.8 * sum(s.numel() for s in shapes.values())
    assert all(any(part in name for name in names) for part in ("visual", "language_model", "action_expert"))
