# SPDX-License-Identifier: Apache-2.0
"""The error of the simulation."""


class SimulationError(ValueError):
    """A request that the simulated world cannot serve, or a model that is not installed."""
