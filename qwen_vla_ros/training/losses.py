# SPDX-License-Identifier: Apache-2.0
"""Losses beside flow matching, and the heads that they need in training only.

Flow matching alone leaves a small model on a plateau for long: nothing tells it which colour matters before
it sees objects at all. Grounding asks the visual tokens where each colour is and the last text token where
the named object is, and where the robot's joints are, which the prompt does not tell; the action head asks
it for the chunk itself. The heads are not in a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Errors below this count squared, larger ones in proportion [normalised units].
_BETA = 0.1
# Distance at which an error in it counts half of one at the object; up to which it is told [m].
_CLOSE, _LOOKED_AT = 0.05, 0.15
# Objects that a sentence may name: a thing and its pad, two pillars.
_NAMED = 2


@dataclass
class Grounding:
    """Where things are, for n pictures of v views with o objects, asked for by b prompts.

    Attributes:
        classes: Colour and kind of each object as one number, -1 where there is none. Shape (n, o).
        pixels: Centres, (column, row) as a share of the picture. Shape (n, v, o, 2).
        visible: Shape (n, v, o).
        named_pixel: Of the objects named, first and second, in the first view. Shape (b, 2, 2).
        named_visible: False, too, where no such object is named. Shape (b, 2).
        named_place: From the robot's base [m]. Shape (b, 2, 3).
        named_offset: From each hand to the objects named [m], NaN where there is no such hand or object.
            Shape (b, 2, hands, 3).
        joints: Of the robot in the picture, standardised per joint over the demonstrations. Shape (n, j).
    """

    classes: Tensor
    pixels: Tensor
    visible: Tensor
    named_pixel: Tensor
    named_visible: Tensor
    named_place: Tensor
    named_offset: Tensor
    joints: Tensor


class TrainingHeads(nn.Module):
    """Readouts of visual tokens and of the last text token.

    Args:
        width: Of the backbone's states.
        classes: Number of colours times kinds.
        horizon, channels: H, K of the action tensor.
        joints, hands: Of the body that has most.
    """

    def __init__(
        self, width: int, classes: int, horizon: int, channels: int, joints: int, hands: int
    ) -> None:
        super().__init__()
        self.shape = (horizon, channels)
        self.classes = classes
        self.tokens = nn.Linear(width, 3 * classes)
        self.action = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, horizon * channels)
        )
        self.place = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, _NAMED * 5))
        self.joints = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, joints))
        self.offset = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, _NAMED * 3 * hands))


def motion(chunks: Tensor) -> Tensor:
    """How far chunks move from where they end. chunks (..., H, c), normalised -> (...)."""
    # The fifth of the channels that moves most is left out: a gripper that closes is no long way.
    return (chunks - chunks[..., -1:, :]).abs().amax(dim=-2).quantile(0.8, dim=-1)


def nearness(motion: Tensor, near: float) -> Tensor:
    """What each chunk counts: the less it moves, the more, as its errors must be smaller.

    A millimetre that a gripper misses is nothing to the mean of errors on the way.

    Args:
        motion: Of each chunk, see `motion`. Shape (b,).
        near: Motion at which a chunk counts half of one that rests [normalised]; 0: all alike.

    Returns:
        Mean 1. Shape (b,).
    """
    if not near:
        return torch.ones_like(motion)
    weights = near / (near + motion)
    return weights / weights.mean()


def action_loss(
    heads: TrainingHeads, last: Tensor, actions: Tensor, mask: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The chunk read off the last text token.

    Args:
        last: Shape (b, d).
        actions: Normalised. Shape (b, H, K).
        mask: True where an action is. Shape (b, H, K).
        weights: Of the chunks. Shape (b,).

    Returns:
        Loss, and the mean absolute error in normalised units, of all chunks alike and by their weights.
    """
    error = torch.where(mask, heads.action(last).view(-1, *heads.shape) - actions, 0.0)
    count = mask.flatten(1).sum(dim=1).clamp(min=1)
    loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA, reduction="none")
    missed = error.detach().abs().flatten(1).sum(dim=1) / count
    mean = (loss.flatten(1).sum(dim=1) / count * weights).mean()
    return mean, missed.mean(), (missed * weights).mean()


def token_loss(heads: TrainingHeads, features: Tensor, grounding: Grounding, grid: tuple[int, int]) -> Tensor:
    """Per view and class: which visual token holds the object's centre, or none, and where in it.

    Args:
        features: Visual tokens. Shape (n, v, rows * columns, d).
        grid: (rows, columns).
    """
    rows, columns = grid
    n, views, tokens, _ = features.shape
    read = heads.tokens(features).view(n, views, tokens, heads.classes, 3)
    place = torch.stack((grounding.pixels[..., 0] * columns, grounding.pixels[..., 1] * rows), dim=-1)
    cells = place.floor().long()
    index = (cells[..., 1].clamp(0, rows - 1) * columns + cells[..., 0].clamp(0, columns - 1)).long()
    # One class more, dropped again, takes what is no object.
    objects = torch.where(grounding.classes < 0, heads.classes, grounding.classes.long())
    objects = objects[:, None].expand(n, views, -1)
    where = torch.full((n, views, heads.classes + 1), tokens, dtype=torch.long, device=features.device)
    where = where.scatter(2, objects, torch.where(grounding.visible, index, tokens))[..., :-1]
    logits = torch.cat((read[..., 0], torch.zeros_like(read[:, :, :1, :, 0])), dim=2)
    found = F.cross_entropy(logits.transpose(2, 3).flatten(0, 2), where.flatten(), reduction="none")
    # Most classes are absent from a picture; what is there must not drown among them.
    there = where.flatten() < tokens
    presence = (found * there).sum() / there.sum().clamp(min=1)
    presence = presence + (found * ~there).sum() / (~there).sum().clamp(min=1)
    picture = torch.arange(n, device=features.device)[:, None, None].expand_as(index)
    view = torch.arange(views, device=features.device)[None, :, None].expand_as(index)
    offset = read[picture, view, index, objects.clamp(max=heads.classes - 1)][..., 1:]
    target = place - cells - 0.5
    seen = grounding.visible
    error = torch.where(seen[..., None], offset - target, 0.0)
    centre = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA, reduction="sum")
    return presence + centre / (2 * seen.sum().clamp(min=1))


def place_loss(heads: TrainingHeads, last: Tensor, grounding: Grounding) -> tuple[Tensor, Tensor]:
    """Where the objects named are that can be seen: pixel and place, read off the last text token.

    Returns:
        Loss, and the mean distance in the picture as a share of its side.
    """
    seen = grounding.named_visible
    target = torch.cat((2 * grounding.named_pixel - 1, grounding.named_place), dim=-1)
    read = heads.place(last).view(target.shape)
    count = seen.sum().clamp(min=1)
    error = torch.where(seen[..., None], read - target, 0.0)
    loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA, reduction="sum") / (2 * count)
    return loss, (error.detach()[..., :2] / 2).norm(dim=-1).sum() / count


def offset_loss(heads: TrainingHeads, last: Tensor, grounding: Grounding) -> tuple[Tensor, Tensor]:
    """How far each hand is from the objects named, read off the last text token.

    Returns:
        Loss, and the mean distance by which the nearest offsets, within 15 cm, are missed [m].
    """
    offset = grounding.named_offset
    if not offset.shape[2]:
        return last.new_zeros(()), last.new_zeros(())
    known = offset.isfinite().all(dim=-1)
    offset = torch.where(known[..., None], offset, 0.0)
    far = offset.norm(dim=-1, keepdim=True)
    read = heads.offset(last).view(len(last), _NAMED, -1, 3)[:, :, : offset.shape[2]]
    # A centimetre counts where it matters: one near the object as much as several far from it.
    scale = 1.0 / (_CLOSE + far)
    error = torch.where(known[..., None], (read - offset) * scale, 0.0)
    loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA, reduction="sum") / known.sum().clamp(
        min=1
    )
    close = known & (far[..., 0] < _LOOKED_AT)
    missed = (error.detach() / scale).norm(dim=-1)
    return loss, (missed * close).sum() / close.sum().clamp(min=1)


def posture_loss(heads: TrainingHeads, last: Tensor, grounding: Grounding) -> tuple[Tensor, Tensor]:
    """Where the robot's joints are, read off the last text token.

    Returns:
        Loss, and the mean absolute error in standard deviations; both 0 for a body without joints.
    """
    target = grounding.joints.repeat_interleave(len(last) // len(grounding.joints), dim=0)
    if not target.shape[1]:
        return last.new_zeros(()), last.new_zeros(())
    error = heads.joints(last)[:, : target.shape[1]] - target
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA), error.detach().abs().mean()


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of each prompt's last token. hidden (b, l, d), mask (b, l) -> (b, d)."""
    index = mask.sum(dim=1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), index]
