# SPDX-License-Identifier: Apache-2.0
"""What training refuses."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Data, configuration or state that cannot be used: which file, what was found, what was expected."""
