# SPDX-License-Identifier: Apache-2.0
"""What the backbone hands to the action expert."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class VLMContext:
    """States of the backbone for a batch of prompts.

    Attributes:
        hidden: Shape (B, L, D).
        mask: True for tokens, false for padding. Shape (B, L).
        positions: mRoPE indices (t, h, w). Shape (3, B, L).
    """

    hidden: Tensor
    mask: Tensor
    positions: Tensor
