# SPDX-License-Identifier: Apache-2.0
"""What all lifecycle nodes have in common: parameters, configure that explains itself, a clean end."""

from __future__ import annotations

import gc
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time

from qwen_vla_ros.embodiment import Embodiment, load_embodiment

from .ending import Ending

# How long a moving robot may take to come to rest when the process is asked to end [s].
END_PATIENCE = 2.0


# How long one thread may keep the others waiting [s]. With Python's 5 ms an inference of many small
# operations delays every callback, and with it the heartbeat.
SWITCH_INTERVAL = 0.0005


class ConfigurationError(ValueError):
    """The node cannot be configured; the text says what was found and what was expected."""


class Interrupted(BaseException):
    """The process has been asked to end within `BodyNode.interruptible`."""


def seconds(stamp) -> float:
    """A stamp message in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9


def declare(
    node: Node,
    name: str,
    default: bool | int | float | str,
    description: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Declare a read-only parameter of the type of its default, within [low, high]."""
    descriptor = ParameterDescriptor(description=description, read_only=True)
    if low is not None and high is not None:
        if isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    node.declare_parameter(name, default, descriptor)


class BodyNode(LifecycleNode):
    """A lifecycle node that serves one embodiment.

    Subclasses implement `configure`, `activate`, `deactivate` and `cleanup`; whatever they raise becomes one
    ERROR entry in the log and a failed transition.
    """

    def __init__(self, name: str):
        super().__init__(name)
        declare(self, "embodiment", "franka_panda", "Name of an embodiment, or path of its YAML file")
        declare(self, "autostart", True, "Configure and activate at start; else wait for a lifecycle manager")
        self._guard_transitions()
        self.embodiment: Embodiment | None = None
        self.active = False
        # Set when the process has been asked to end; long waits must watch it.
        self.ending = Ending()
        self.in_interruptible = False

    # For subclasses

    def configure(self, embodiment: Embodiment) -> None:
        raise NotImplementedError

    def activate(self) -> None:
        raise NotImplementedError

    def deactivate(self) -> None:
        raise NotImplementedError

    def cleanup(self) -> None:
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """The node needs a little longer before it may end."""
        return False

    def prepare_end(self) -> None:
        """The process is about to end: begin to come to rest."""

    # Helpers

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of `configure` that takes long and that a signal may end in its middle, such as loading.

        Raises:
            Interrupted: SIGINT or SIGTERM. Nothing but `_succeeds` is to catch it.
        """
        self.in_interruptible = True
        try:
            yield
        finally:
            self.in_interruptible = False

    @property
    def now(self) -> float:
        """Time of the node's clock [s]."""
        # Without the objects that `Clock.now` makes: a loop asks often.
        return self.get_clock().handle.get_now().nanoseconds * 1e-9

    def stamp(self, time: float):
        """A stamp message of a time [s]."""
        # Not round(1e9 * time): of so large a number a float keeps a quarter of a microsecond.
        whole = math.floor(time)
        return Time(nanoseconds=whole * 10**9 + round((time - whole) * 1e9)).to_msg()

    def value(self, name: str):
        return self.get_parameter(name).value

    def autostart(self) -> None:
        """Configure and activate, if the parameter says so."""
        if not self.value("autostart"):
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # Transitions

    def _guard_transitions(self) -> None:
        """Refuse a transition that cannot be: in Jazzy, rclpy raises there, which would end the process."""
        service = next(entity for entity in self.services if entity.srv_name.endswith("/change_state"))
        change = service.callback

        def guarded(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().error(f"transition {request.transition.id} refused: {error}")
                response.success = False
                return response

        service.callback = guarded

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        def configure() -> None:
            # Loaded here, not in the constructor: a corrected file needs no new process.
            self.embodiment = load_embodiment(self.value("embodiment"))
            self.configure(self.embodiment)

        if not self._succeeds("configure", configure):
            self._succeeds("cleanup", self.cleanup)
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"configured for {self.embodiment.name}")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        if result != TransitionCallbackReturn.SUCCESS:
            return result
        if not self._succeeds("activate", self.activate):
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self.active = True
        self.get_logger().info("active")
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        if not self._succeeds("deactivate", self.deactivate):
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        if not self._succeeds("cleanup", self.cleanup):
            return TransitionCallbackReturn.ERROR
        self.embodiment = None
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self.active:
            self.active = False
            self._succeeds("deactivate", self.deactivate)
        self._succeeds("cleanup", self.cleanup)
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        self._succeeds("cleanup", self.cleanup)
        return TransitionCallbackReturn.SUCCESS

    def _succeeds(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except (ConfigurationError, ValueError, OSError) as error:
            self.get_logger().error(f"{what} failed: {error}")
        except Interrupted:
            self.get_logger().info(f"{what} was interrupted")
        except Exception:  # a defect: the log must show where
            self.get_logger().error(f"{what} failed:\n{traceback.format_exc()}")
        else:
            return True
        return False


def _come_to_rest(node: BodyNode, executor: SingleThreadedExecutor) -> bool:
    """Let a robot that moves come to rest, whatever callbacks do meanwhile. False if one of them failed."""
    faultless = True
    try:
        node.prepare_end()
        # Wall time: the robot's clock may stand still.
        deadline = time.monotonic() + END_PATIENCE
        while node.busy and time.monotonic() < deadline:
            try:
                executor.spin_once(timeout_sec=0.02)
            except Exception:  # the loop that brakes is another one
                faultless = False
                node.get_logger().fatal(traceback.format_exc())
    finally:
        node.trigger_shutdown()
    return faultless


def run(make_node: Callable[[], Node], args: list[str] | None = None) -> int:
    """Run a node until SIGINT or SIGTERM.

    The signals do not tear down the context (`SignalHandlerOptions.NO`), so that a moving robot can still be
    stopped: the node is asked to come to rest, and then everything is destroyed.

    The node has an `Ending` named `ending`, set when the process has been asked to end; it may set it itself,
    with `failed` true when that is because of a fault.

    Returns:
        The exit code: 1 when the node could not be made or has failed, else 0.
    """
    ending = Ending()
    node: Node | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        ending.set()
        if node is not None:
            node.ending.set()
            # Once: what follows is the way out.
            if getattr(node, "in_interruptible", False):
                node.in_interruptible = False
                raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    sys.setswitchinterval(SWITCH_INTERVAL)
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = make_node()
        except (ValueError, OSError) as error:
            get_logger("qwen_vla_ros").fatal(str(error))
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            failed = False
            try:
                if isinstance(node, BodyNode) and not ending.is_set():
                    node.autostart()
                # A full collection of what is there to stay would hold the loop up for tens of milliseconds.
                gc.collect()
                gc.freeze()
                while not (ending.is_set() or node.ending.is_set()):
                    # A signal is handled when the wait returns.
                    executor.spin_once(timeout_sec=0.1)
            except Exception:  # a defect; a robot that moves is stopped all the same
                failed = True
                node.get_logger().fatal(traceback.format_exc())
            if isinstance(node, BodyNode):
                failed = not _come_to_rest(node, executor) or failed
        finally:
            executor.shutdown()
            node.destroy_node()
        return 1 if failed or getattr(node, "failed", False) else 0
    finally:
        # Ctrl-C in a terminal reaches a launched node twice. At its end the interpreter puts back the default
        # for a signal that is handled, not for one that is ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        rclpy.try_shutdown()
        if "torch" in sys.modules:
            # To search what torch leaves for cycles takes seconds on a busy machine.
            gc.freeze()
        else:
            # Extension modules complain of objects that the interpreter's end does not reach.
            gc.unfreeze()
