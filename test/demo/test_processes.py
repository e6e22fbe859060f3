# SPDX-License-Identifier: Apache-2.0
"""Processes of the demonstration: watched, and ended by id."""

from __future__ import annotations

import os
import sys
import time

import pytest

from qwen_vla_ros.demo.processes import NodeProcess, ProcessError

_READY = "print('ready', flush=True)\n"
_SLEEP = "import time\n" + _READY + "time.sleep(60)\n"
_STUBBORN = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + _SLEEP


def _start(tmp_path, code):
    return NodeProcess("node", [sys.executable, "-c", code], tmp_path / "node.log", dict(os.environ))


def _wait_for(process, text, seconds=20.0):
    deadline = time.monotonic() + seconds
    while text not in process.tail():
        assert time.monotonic() < deadline, f"'{text}' not seen in: {process.tail()}"
        time.sleep(0.01)


def test_a_living_process_passes_the_check_and_ends_on_interrupt(tmp_path):
    process = _start(tmp_path, _SLEEP)
    try:
        _wait_for(process, "ready")
        process.check()
    finally:
        code = process.end()
    assert code != 0  # KeyboardInterrupt


def test_a_process_that_ignores_the_interrupt_is_terminated(tmp_path, monkeypatch):
    import signal

    monkeypatch.setattr("qwen_vla_ros.demo.processes._ENDING", ((signal.SIGINT, 0.2), (signal.SIGTERM, 5.0)))
    process = _start(tmp_path, _STUBBORN)
    try:
        _wait_for(process, "ready")
    finally:
        code = process.end()
    assert code == -signal.SIGTERM


def test_an_ended_process_is_reported_with_its_last_words(tmp_path):
    process = _start(tmp_path, "print('no camera', flush=True)\nraise SystemExit(3)")
    process.wait(20.0)
    with pytest.raises(ProcessError, match=r"exit code 3(.|\n)*no camera"):
        process.check()


def test_a_logged_error_is_reported(tmp_path):
    process = _start(tmp_path, "print('[ERROR] [policy]: no checkpoint', flush=True)\n" + _SLEEP)
    _wait_for(process, "ready")
    try:
        with pytest.raises(ProcessError, match="no checkpoint"):
            process.check()
    finally:
        process.end()
