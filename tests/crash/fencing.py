"""One trial of fencing: a holder of the lock is stopped, another takes over and finishes, and the first goes on.

It is stopped (SIGSTOP) at a random instant of its rollout, or at one of its writes, which is then on the wire for as
long as it is stopped. No write that arrives after the other has finished may change anything.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.crash.actor import SECONDS
from tests.crash.proxy import Answer, Boundary, Fault, WriteProxy
from tests.crash.trial import Scene, joined, problem
from tests.crash.view import View, view_of

_SUCCESS = range(200, 300)


@dataclass(frozen=True)
class Course:
    """A rollout that nobody disturbs, and what the other brings.

    Args:
        trace: its writes.
        seconds: from its first write to its last.
        newest: the environment after the other has finished.
    """

    trace: tuple[Boundary, ...]
    seconds: float
    newest: View


@dataclass(frozen=True)
class Stop:
    """When the holder is stopped: at a write, which is delivered when it goes on, or some time after the first one."""

    boundary: Boundary | None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"at {self.boundary}" if self.boundary else f"after {self.seconds:.2f} s"


@dataclass(frozen=True)
class Passed:
    """What became of a trial.

    Args:
        stop: when the holder was stopped.
        stopped: whether that was before it had finished.
        late: its writes that arrived after the other had finished.
        stale: those of them that the server carried out.
        problem: how the environment differs from what the other left; empty when it does not.
    """

    stop: Stop
    stopped: bool
    late: tuple[str, ...]
    stale: tuple[str, ...]
    problem: str


def course(scene: Scene) -> Course:
    """Play both rollouts, one after the other."""
    with scene.namespace() as namespace:
        scene.prepare(namespace, ("old",), pods=False)
        proxy = WriteProxy(scene.api_server)
        with proxy.serving() as url:
            assert scene.play(scene.release(namespace, "new", url, pods=False)) == 0, scene.log(namespace).read_text()
        assert scene.play(scene.release(namespace, "newest", pods=False)) == 0, scene.log(namespace).read_text()
        seconds = proxy.answers[-1].arrived - proxy.answers[0].arrived
        return Course(tuple(proxy.trace), seconds, view_of(namespace))


def stop_at_random(chance: random.Random, course: Course) -> Stop:
    """Half of the stops are at a write, half at any instant."""
    if chance.random() < 1 / 2:
        return Stop(chance.choice(course.trace))
    return Stop(None, chance.uniform(0, course.seconds))


def trial(scene: Scene, course: Course, stop: Stop, *, mutant: str = "") -> Passed:
    """Stop a holder, let another finish, continue the first, and look at what arrived after that.

    Args:
        scene: where.
        course: what the rollouts do when nobody disturbs them.
        stop: when.
        mutant: a fault in the holder; default: none.
    """
    with scene.namespace() as namespace:
        scene.prepare(namespace, ("old",), pods=False)
        proxy, stopped, processes = WriteProxy(scene.api_server), threading.Event(), list[BaseProcess]()

        def pause() -> None:
            _signal(processes[0], signal.SIGSTOP)
            stopped.set()

        with proxy.serving() as url:
            holder = scene.release(namespace, "new", url, pods=False, quick=True, mutant=mutant)
            if stop.boundary:
                proxy.disturb(stop.boundary, Fault.LATE_AT_THE_END, pause)
            processes.append(holder.start())
            if stop.boundary is None:
                _wait(lambda: proxy.trace or not processes[0].is_alive())
                time.sleep(stop.seconds)  # the instant is what the trial is about
                pause()
            _wait(lambda: stopped.is_set() or not processes[0].is_alive())
            was_alive = processes[0].is_alive() and _is_stopped(processes[0])
            try:
                successor = scene.release(namespace, "newest", pods=False, quick=True)
                assert scene.play(successor) == 0, successor.log.read_text()
                finished = time.monotonic()
            finally:
                _signal(processes[0], signal.SIGCONT)
            proxy.deliver()
            joined(processes[0], holder)
            late = _late(proxy.answers, finished)
        after = view_of(namespace)
    stale = tuple(answer.write for answer in late if answer.status in _SUCCESS)
    return Passed(stop, was_alive, tuple(answer.write for answer in late), stale, problem(after, [course.newest]))


def _late(answers: Sequence[Answer], finished: float) -> list[Answer]:
    """The writes that arrived after the other had finished.

    The lock is free then. A holder that was stopped before it had the lock acquires it, and its later writes are good.
    """
    late = [answer for answer in answers if answer.arrived > finished]
    acquired = [
        answer.arrived
        for answer in late
        if "leases/" in answer.write and "released" not in answer.write and answer.status in _SUCCESS
    ]
    return [answer for answer in late if answer.arrived < min(acquired, default=float("inf"))]


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, number)


def _is_stopped(process: BaseProcess) -> bool:
    """Whether a process is in state T, of proc(5)."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        _wait(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX")
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _wait(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up, "the condition did not become true"
        time.sleep(0.01)
