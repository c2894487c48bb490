"""Why a run of a container ended, and what that means for the rollout.

Exit code, signal, the runtime's message, and the kubelet's events about probes and hooks decide. Most ends may not
recur in the next run, so they are counted and not permanent.
"""

import re
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from prefect_cd.kube.objects import (
    Object,
    as_objects,
    as_text,
    as_time,
    dig,
    first_time,
    kind_and_name,
    last_time,
    namespace_of,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.container import Container
from prefect_cd.rollout.diagnosis.image_pull import PLATFORM
from prefect_cd.rollout.diagnosis.probes import latest_probe_failure

_NOT_FOUND, _NOT_EXECUTABLE, _BARE_FAILURE, _BY_SIGNAL = 127, 126, 255, 128
"""Exit codes as shells set them: 128 plus the signal's number after a signal (bash manual, Exit Status)."""
_IMMEDIATE = timedelta(seconds=1)
_LONG_RUN = timedelta(minutes=10)
"""A run of this length is unrelated to the crashes before it.

The kubelet resets its back-off after such a run, too (Kubernetes documentation, Pod Lifecycle).
"""
_ROUNDING = timedelta(seconds=1)
"""Timestamps in objects are whole seconds."""


def termination_problem(container: Container, events: Sequence[Object], log: str = "") -> Cause | None:
    """Why the latest run of a container ended; None when it ended as intended, or no run has ended.

    Args:
        container: with the status of its latest run that ended.
        events: about its pod, oldest first.
        log: what the run wrote, where that has been read.
    """
    termination = container.last_termination
    if not termination or container.completed:
        return None
    started, finished = as_time(termination.get("startedAt")), as_time(termination.get("finishedAt"))
    run = _Run(container, termination, _kill_event(container, events), log)
    explanation = next(result for explain_end in _EXPLANATIONS if (result := explain_end(run)))
    return Cause(
        category=explanation.category,
        fact=f"{kind_and_name(container.pod)}: container {container.name} {explanation.fact}",
        evidence=_evidence(run, latest_probe_failure(container, explanation.category, events)),
        hint=explanation.hint.format(
            pod=as_text(dig(container.pod, "metadata", "name")),
            namespace=namespace_of(container.pod),
            container=container.name,
            previous=" --previous" if container.status.get("restartCount") else "",
        ),
        object=kind_and_name(container.pod),
        container=container.name,
        permanent=explanation.permanent,
        since=finished,
        last_seen=started or finished,  # a run that began before the rollout says nothing about it
        times=max(container.ended_runs, 1) if container.last_run_duration < _LONG_RUN else 1,
        counted=True,
    )


class _Run(NamedTuple):
    """A run that ended: its container and status, the event of the probe or hook that killed it, and its log."""

    container: Container
    termination: Object
    kill_event: Object
    log: str

    @property
    def is_current(self) -> bool:
        """Whether this end still describes the container: it does not run now, or has ended more than once."""
        return not self.container.running or self.container.ended_runs > 1


_LOGS = "kubectl -n {namespace} logs {pod} -c {container}{previous}"


class _Explanation(NamedTuple):
    """What the end of a run means; `fact` follows the container's name in the sentence."""

    category: Category
    fact: str
    hint: str = _LOGS
    permanent: bool = False


def _out_of_memory(run: _Run) -> _Explanation | None:
    if run.termination.get("reason") != "OOMKilled":
        return None
    limit = as_text(dig(run.container.spec, "resources", "limits", "memory"))
    fact = f"used more memory than its limit{f' of {limit}' if limit else ''}"
    return _Explanation(
        Category.OUT_OF_MEMORY, fact, "raise resources.limits.memory, or reduce the program's memory use"
    )


def _killed_by_hook(run: _Run) -> _Explanation | None:
    if run.kill_event.get("reason") != "FailedPostStartHook":
        return None
    fact = "was killed because its postStart hook failed"
    return _Explanation(Category.CRASH, fact, f"correct lifecycle.postStart; {_LOGS}")


def _killed_by_probe(run: _Run) -> _Explanation | None:
    if not run.kill_event:
        return None
    probe = "startup" if "startup probe" in as_text(run.kill_event.get("message")) else "liveness"
    hint = f"correct {probe}Probe, or give the program more time; {_LOGS}"
    return _Explanation(Category(probe), f"was killed by its {probe} probe", hint)


def _wrong_architecture(run: _Run) -> _Explanation | None:
    message = as_text(run.termination.get("message"))
    # runc writes this as the only line of the log; the same text among a program's own output proves nothing.
    only_line = re.fullmatch(r"\s*exec .*: exec format error\s*", run.log) is not None
    failed_immediately = (
        run.termination.get("exitCode") == _BARE_FAILURE and run.container.last_run_duration <= _IMMEDIATE
    )
    if "exec format error" in message or (only_line and failed_immediately):
        fact = "is built for another CPU architecture"
        return _Explanation(Category.WRONG_ARCHITECTURE, fact, PLATFORM, permanent=run.is_current)
    if failed_immediately and not run.log.strip():
        fact = "ended immediately with exit code 255, as a program for another CPU architecture does"
        return _Explanation(Category.WRONG_ARCHITECTURE, fact, "look for 'exec format error': " + _LOGS)
    return None


def _missing_command(run: _Run) -> _Explanation | None:
    """A shell's exit code for a command that is missing: the second time it is permanent, since images do not change.

    A mounted volume may still provide the command, so then it is not permanent.
    """
    exit_code = run.termination.get("exitCode", 0)
    verb = {_NOT_FOUND: "found", _NOT_EXECUTABLE: "executed"}.get(exit_code)
    if not verb:
        return None
    return _Explanation(
        Category.COMMAND_NOT_FOUND,
        f"calls a command that cannot be {verb} (exit code {exit_code})",
        f"correct command and args in the manifest, or the image; {_LOGS}",
        permanent=run.is_current and run.container.ended_runs > 1 and not _has_mounts(run.container),
    )


def _has_mounts(container: Container) -> bool:
    """Whether volumes are mounted, apart from the service account's token."""
    paths = [as_text(mount.get("mountPath")) for mount in as_objects(container.spec.get("volumeMounts"))]
    return any(not path.startswith("/var/run/secrets/kubernetes.io/") for path in paths)


def _crash(run: _Run) -> _Explanation:
    """Any other end: the program ended by itself, or by a signal."""
    exit_code = run.termination.get("exitCode")
    result = f"exit code {exit_code}{_signal(run.termination)}"
    if run.container.init:
        return _Explanation(Category.INIT_CONTAINER, f"must succeed before the pod starts, but ended with {result}")
    if exit_code == 0:
        return _Explanation(Category.CRASH, "ended with exit code 0, although it should keep running")
    return _Explanation(Category.CRASH, f"crashed with {result}")


def _signal(termination: Object) -> str:
    """The name of the signal that ended a run, in parentheses; empty without a signal."""
    number, exit_code = termination.get("signal"), termination.get("exitCode")
    if not isinstance(number, int) or not number:
        number = 0
        if isinstance(exit_code, int) and _BY_SIGNAL < exit_code < _BARE_FAILURE:
            number = exit_code - _BY_SIGNAL
    try:
        return f" (signal {signal.Signals(number).name})" if number else ""
    except ValueError:
        return ""


_EXPLANATIONS: tuple[Callable[[_Run], _Explanation | None], ...] = (
    _out_of_memory,
    _killed_by_hook,
    _killed_by_probe,
    _wrong_architecture,
    _missing_command,
    _crash,
)
"""In the order in which they are tried; the last one explains every end."""


def _kill_event(container: Container, events: Sequence[Object]) -> Object:
    """The event in which the kubelet reports that a probe or hook ended the run; empty when the program ended itself.

    Repeated events are one object with a first and a last time: it is about this run when the two periods overlap.
    """
    probe_failed = rf"Container {re.escape(container.name)} failed (liveness|startup) probe"
    started = as_time(container.last_termination.get("startedAt"))
    finished = as_time(container.last_termination.get("finishedAt"))
    for event in container.events_in(events):
        first, last = first_time(event), last_time(event)
        if finished and first and first > finished + _ROUNDING:
            continue
        if started and last and last < started - _ROUNDING:
            continue
        if event.get("reason") == "FailedPostStartHook":
            return event
        if event.get("reason") == "Killing" and re.search(probe_failed, as_text(event.get("message"))):
            return event
    return {}


def _evidence(run: _Run, probe_failure: str) -> str:
    parts = [
        f"exit code {run.termination.get('exitCode')} ({run.termination.get('reason') or 'no reason'})",
        as_text(run.kill_event.get("message")),
        probe_failure,
        as_text(run.termination.get("message")).strip(),
    ]
    return "; ".join(dict.fromkeys(part for part in parts if part))
