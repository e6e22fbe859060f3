# SPDX-License-Identifier: Apache-2.0
"""The demonstration: starts the processes of one body, runs episodes, measures, and draws what happened."""
