"""What it means that a run of a container has ended.

Decides by exit code, signal, the runtime's words, and the kubelet's events about probes and hooks; most ends may have
passed by the next run, so they count and do not prove.
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
from prefect_cd.rollout.diagnosis.probes import answer

_NOT_FOUND, _NOT_EXECUTABLE, _BARE_FAILURE, _BY_SIGNAL = 127, 126, 255, 128
_AT_ONCE = timedelta(seconds=1)
_OUTLIVED = timedelta(minutes=10)
"""A run of this length has nothing to do with the crashes before it: no back-off is longer than 5 minutes."""
_SECOND = timedelta(seconds=1)


def crashed(container: Container, events: Sequence[Object], log: str = "") -> Cause | None:
    """How the latest run of a container ended, when nobody wanted it to.

    Args:
        container: with the status of its latest end.
        events: about its pod, oldest first.
        log: what the ended run wrote, where somebody has read it.
    """
    end = container.last_end
    if not end or container.ended_in_peace:
        return None
    started, finished = as_time(end.get("startedAt")), as_time(end.get("finishedAt"))
    killed = _killing(container, events)
    run = _Run(container, end, killed, log)
    meaning = next(found for rule in _ENDINGS if (found := rule(run)))
    times = max(container.failures, 1) if container.last_run < _OUTLIVED else 1
    return Cause(
        category=meaning.category,
        summary=f"{kind_and_name(container.pod)}: container {container.name} {meaning.fact}"
        f"{f', {times} times' if times > 1 else ''}",
        evidence=_evidence(run, answer(container, meaning.category, events)),
        hint=meaning.hint.format(
            pod=as_text(dig(container.pod, "metadata", "name")),
            namespace=namespace_of(container.pod),
            container=container.name,
            previous=" --previous" if container.status.get("restartCount") else "",
        ),
        object=kind_and_name(container.pod),
        container=container.name,
        proven=meaning.proven,
        since=finished,
        seen=started or finished,  # a run that began before the rollout says nothing about it
        times=times,
        counts=True,
    )


class _Run(NamedTuple):
    """A run that ended: of what, how, killed by which probe or hook, and its log as far as known."""

    container: Container
    end: Object
    killed: Object
    log: str

    @property
    def repeats(self) -> bool:
        """Whether this end is still the state of things, and not one that the running container outlived."""
        return not self.container.running or self.container.failures > 1


_LOGS = "kubectl -n {namespace} logs {pod} -c {container}{previous}"


class _Meaning(NamedTuple):
    """What a run that ended means; `fact` follows the container's name in a sentence."""

    category: Category
    fact: str
    hint: str = _LOGS
    proven: bool = False


def _for_memory(run: _Run) -> _Meaning | None:
    if run.end.get("reason") != "OOMKilled":
        return None
    limit = as_text(dig(run.container.spec, "resources", "limits", "memory"))
    fact = f"used more memory than its limit{f' of {limit}' if limit else ''}"
    return _Meaning(Category.OUT_OF_MEMORY, fact, "raise resources.limits.memory, or make the program need less")


def _by_hook(run: _Run) -> _Meaning | None:
    if run.killed.get("reason") != "FailedPostStartHook":
        return None
    fact = "was killed because its postStart hook failed"
    return _Meaning(Category.CRASH, fact, f"correct lifecycle.postStart; {_LOGS}")


def _by_probe(run: _Run) -> _Meaning | None:
    if not run.killed:
        return None
    which = "startup" if "startup probe" in as_text(run.killed.get("message")) else "liveness"
    hint = f"correct {which}Probe, or give the program more time; {_LOGS}"
    return _Meaning(Category(which), f"was killed by its {which} probe", hint)


def _for_architecture(run: _Run) -> _Meaning | None:
    said = as_text(run.end.get("message"))
    # runc writes this as the only line where the program's own output would be
    only_line = re.fullmatch(r"\s*exec .*: exec format error\s*", run.log) is not None
    if "exec format error" in said or (only_line and _ends_like_a_stranger(run)):
        fact = "is a program for another processor"
        return _Meaning(Category.WRONG_ARCHITECTURE, fact, PLATFORM, proven=run.repeats)
    if _ends_like_a_stranger(run) and not run.log.strip():
        fact = "ended at once with exit code 255, as a program for another processor does"
        return _Meaning(Category.WRONG_ARCHITECTURE, fact, "look for 'exec format error': " + _LOGS)
    return None


def _ends_like_a_stranger(run: _Run) -> bool:
    return run.end.get("exitCode") == _BARE_FAILURE and run.container.last_run <= _AT_ONCE


def _for_command(run: _Run) -> _Meaning | None:
    """A shell's word for a command that is missing: said twice by the same image, it will be said for ever.

    Where something is mounted, that may bring it.
    """
    what = {_NOT_FOUND: "found", _NOT_EXECUTABLE: "executed"}.get(run.end.get("exitCode", 0))
    if not what:
        return None
    fact = f"calls a command that cannot be {what} (exit code {run.end.get('exitCode')})"
    hint = f"correct command and args in the manifest, or the image; {_LOGS}"
    return _Meaning(
        Category.COMMAND_NOT_FOUND,
        fact,
        hint,
        proven=run.repeats and run.container.failures > 1 and not _mounts(run.container),
    )


def _mounts(container: Container) -> bool:
    """Whether volumes are mounted, apart from the service account's token."""
    paths = [as_text(each.get("mountPath")) for each in as_objects(container.spec.get("volumeMounts"))]
    return any(not path.startswith("/var/run/secrets/kubernetes.io/") for path in paths)


def _by_itself(run: _Run) -> _Meaning:
    code = run.end.get("exitCode")
    how = f"exit code {code}{_signal(run.end)}"
    if run.container.init:
        return _Meaning(Category.INIT_CONTAINER, f"must succeed before the pod starts, but ended with {how}")
    if code == 0:
        return _Meaning(Category.CRASH, "ended with exit code 0, though it should keep running")
    return _Meaning(Category.CRASH, f"crashed with {how}")


def _signal(end: Object) -> str:
    number, code = end.get("signal"), end.get("exitCode")
    if not isinstance(number, int) or not number:
        number = code - _BY_SIGNAL if isinstance(code, int) and _BY_SIGNAL < code < _BARE_FAILURE else 0
    try:
        return f" (signal {signal.Signals(number).name})" if number else ""
    except ValueError:
        return ""


_ENDINGS: tuple[Callable[[_Run], _Meaning | None], ...] = (
    _for_memory,
    _by_hook,
    _by_probe,
    _for_architecture,
    _for_command,
    _by_itself,
)


def _killing(container: Container, events: Sequence[Object]) -> Object:
    """The event in which the kubelet says that a probe or hook, not the program, ended the run; empty without one.

    Repeated events are one object with a first and a last time; it is about this run when the two overlap.
    """
    probe = rf"Container {re.escape(container.name)} failed (liveness|startup) probe"
    started, finished = as_time(container.last_end.get("startedAt")), as_time(container.last_end.get("finishedAt"))
    for event in container.told(events):
        told, again = first_time(event), last_time(event)
        if finished and told and told > finished + _SECOND:
            continue
        if started and again and again < started - _SECOND:
            continue
        if event.get("reason") == "FailedPostStartHook":
            return event
        if event.get("reason") == "Killing" and re.search(probe, as_text(event.get("message"))):
            return event
    return {}


def _evidence(run: _Run, probe_said: str) -> str:
    parts = [f"exit code {run.end.get('exitCode')} ({run.end.get('reason') or 'no reason'})",
             as_text(run.killed.get("message")), probe_said, as_text(run.end.get("message")).strip()]  # fmt: skip
    return "; ".join(dict.fromkeys(part for part in parts if part))
