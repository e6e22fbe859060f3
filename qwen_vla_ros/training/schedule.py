# SPDX-License-Identifier: Apache-2.0
"""The learning rate over a run."""

from __future__ import annotations

import math

from qwen_vla_ros.training.configuration import OptimiserConfiguration


def learning_rate(step: int, steps: int, optimiser: OptimiserConfiguration) -> float:
    """Rate of a step: linear warm-up, flat, cosine to `final` of it at the last step."""
    peak = optimiser.learning_rate
    if step < optimiser.warmup:
        return peak * (step + 1) / optimiser.warmup
    decay_from = max(optimiser.warmup, int(optimiser.flat * steps))
    if step < decay_from:
        return peak
    share = min(1.0, (step - decay_from) / max(1, steps - 1 - decay_from))
    return peak * (optimiser.final + (1.0 - optimiser.final) * 0.5 * (1.0 + math.cos(math.pi * share)))
