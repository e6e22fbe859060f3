# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with real ROS 2 processes. Nothing here imports rclpy before a fixture is asked for."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "qwen_vla_ros"
# A fixture that hangs at its end, because of what made its test fail, ends the run [s]. pytest's
# faulthandler_timeout is over by then: it counts to the failure.
_LONGEST_END = 120.0
_PATIENCE = ((signal.SIGINT, 5.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))


def wait_for(predicate: Callable[[], Any], timeout: float, what: str | Callable[[], str]) -> Any:
    """First true value of `predicate()`.

    Args:
        predicate: Asked every 10 ms.
        timeout: [s]
        what: Completes "timed out waiting for ..."; called at the end, if it is a function.

    Raises:
        AssertionError: `timeout` has passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"timed out after {timeout} s waiting for {what() if callable(what) else what}"
            )
        time.sleep(0.01)


class Process:
    """A started process and what it printed (standard output and error together).

    Attributes:
        name: Name of the executable.
        pid: Process id; the process is the leader of a session of its own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path):
        self.name = Path(command[0]).name
        self._log = log
        with log.open("wb") as stream:
            self._popen = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def wait_for_output(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Wait until the output matches a regular expression; fails at once if the process ends first."""

        def found() -> re.Match[str] | None:
            ended = self.returncode is not None
            match = re.search(pattern, self.output)
            if match is None and ended:
                raise AssertionError(f"{self.name} ended with {self.returncode} before printing {pattern!r}")
            return match

        return wait_for(found, timeout, f"{pattern!r} in the output of {self.name}")

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end; the exit code."""
        return self._popen.wait(timeout)

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, such as `signal.SIGKILL` or `signal.SIGSTOP`."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._popen.kill()
        self._popen.wait()

    def end(self) -> int:
        """SIGINT, then SIGTERM, then SIGKILL; the exit code."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)
        for number, patience in _PATIENCE:
            if self._popen.poll() is not None:
                break
            self._popen.send_signal(number)
            try:
                self._popen.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        return self._popen.wait()


@pytest.fixture(scope="session", name="wait_for")
def _wait_for() -> Callable[[Callable[[], Any], float, str], Any]:
    """`wait_for(predicate, timeout, what)`: wait for a condition instead of sleeping."""
    return wait_for


def _overlay() -> Path:
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix and (Path(prefix) / "share" / PACKAGE / "package.xml").is_file():
            return Path(prefix)
    pytest.fail(
        "this test needs the built package: run pytest through tools/with_ros, or 'make test'", pytrace=False
    )


@pytest.fixture(scope="session")
def ros_environment() -> Iterator[dict[str, str]]:
    """Environment for ROS processes of this pytest process, and set in this process too.

    A ROS_DOMAIN_ID that no other pytest process of this machine uses, and discovery on loopback.
    """
    _overlay()
    locks = Path(tempfile.gettempdir()) / f"{PACKAGE}-domains-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    start = os.getpid() % 101
    for step in range(101):
        # Above 101 the ports of a domain reach into the range of ephemeral ports.
        domain = 1 + (start + step) % 101
        lock = (locks / str(domain)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.close()
    else:
        pytest.fail("all ROS domains are in use by other tests", pytrace=False)
    changes = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
        "RCUTILS_LOGGING_BUFFERED_STREAM": "0",
    }
    with pytest.MonkeyPatch.context() as patch, lock:
        for name, value in changes.items():
            patch.setenv(name, value)
        yield dict(os.environ)


def _spawner(
    ros_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Process]]:
    """Start node processes: `spawn(executable, arguments=(), parameters=None, ...) -> Process`.

    executable: `policy`, `executor` or `sim` of the built package, or the path of any program.
    arguments: Command line arguments before `--ros-args`; remappings and the like go to `ros_arguments`.
    parameters: Node parameters by name; bool, int, float, str and lists of them.
    ros_arguments: Further arguments after `--ros-args`, such as `("-r", "__ns:=/left")`.
    environment: Variables beside those of `ros_environment`.

    All are ended by their ids at the end, the last started first; their output is shown where the
    test failed.
    """
    overlay = _overlay()
    logs = tmp_path_factory.mktemp("spawn")
    processes: list[Process] = []

    def start(
        executable: str | Path,
        arguments: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        *,
        ros_arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        program = overlay / "lib" / PACKAGE / executable
        command = [str(program if program.is_file() else executable), *arguments]
        ros = list(ros_arguments)
        for name, value in (parameters or {}).items():
            ros += ["-p", f"{name}:={_parameter(value)}"]
        if ros:
            command += ["--ros-args", *ros]
        log = logs / f"{len(processes)}_{Path(executable).name}.log"
        process = Process(command, {**ros_environment, **(environment or {})}, log)
        processes.append(process)
        return process

    yield start
    for process in reversed(processes):
        code = process.end()
        print(f"--- {process.name} (pid {process.pid}, exit code {code}) ---\n{process.output}")


spawn = pytest.fixture(_spawner, name="spawn")
module_spawn = pytest.fixture(_spawner, name="module_spawn", scope="module")
"""As `spawn`, for processes that the tests of a module share."""


def _parameter(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # YAML reads an unquoted 1.0, true or "" as something else.
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_parameter(item) for item in value) + "]"
    return repr(value)


def _ros_node(ros_environment: dict[str, str]) -> Iterator[Any]:
    """An rclpy node in a context of its own, spun in a thread; for publishers, subscriptions, clients.

    rclpy's entities are not safe from other threads: one that is destroyed while the executor looks at it
    ends the spinning, and an answer that overtakes its request is dropped. `create_...` and `destroy_...` of
    this node therefore run in the spinning thread; `call_in_loop(function)` does the same for a request.
    """
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=int(ros_environment["ROS_DOMAIN_ID"]))
    node = rclpy.create_node("test_node", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    ended = threading.Event()

    def spin() -> None:
        # Not executor.spin(): shutdown() from another thread destroys what it is using.
        with contextlib.suppress(ExternalShutdownException):
            while not ended.is_set():
                executor.spin_once(timeout_sec=0.1)

    thread = threading.Thread(target=spin, name="test_node")

    def call_in_loop(function: Callable[[], Any]) -> Any:
        if ended.is_set() or threading.current_thread() is thread:
            return function()
        task = executor.create_task(function)
        wait_for(task.done, 10.0, "the spinning thread of the test node")
        return task.result()

    def moved(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: call_in_loop(lambda: method(*arguments, **options))

    node.call_in_loop = call_in_loop
    for kind in ("subscription", "publisher", "client", "service", "timer"):
        for name in (f"create_{kind}", f"destroy_{kind}"):
            setattr(node, name, moved(getattr(node, name)))
    thread.start()
    yield node
    ended.set()
    faulthandler.dump_traceback_later(_LONGEST_END, exit=True, file=sys.__stderr__)
    thread.join(5.0)
    executor.shutdown()
    # destroy_node() leaves action clients. They would keep the DDS participant until the garbage collector
    # ends it, in whichever thread that runs and with the GIL held: a run of the tests has hung there.
    for waitable in list(node.waitables):
        waitable.destroy()
    node.destroy_node()
    rclpy.shutdown(context=context)
    faulthandler.cancel_dump_traceback_later()
    assert not thread.is_alive(), "the spinning thread of the test node did not end"


ros_node = pytest.fixture(_ros_node, name="ros_node")
module_ros_node = pytest.fixture(_ros_node, name="module_ros_node", scope="module")
"""As `ros_node`, for the tests of a module."""
