# SPDX-License-Identifier: Apache-2.0
"""The Qwen-VLA model: configuration, action expert, flow matching, processor, checkpoint folder."""
