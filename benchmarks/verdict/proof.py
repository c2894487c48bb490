"""When the API first had the fact that proves a rollout's failure, or the first sign of a temporary problem.

Pure: the witness's record goes in, a time comes out. The rules are in the headers of the scenarios, and independent of
how any of the measured tools decides.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from api import Object
from witness import Observation

Rule: TypeAlias = Mapping[str, Any]
FORMS: Mapping[str, str] = {
    "apply": "the apply itself",
    "event": "an event with this reason",
    "waiting": "a container that waits for this reason",
    "condition": "a condition, Kind/Type=Status",
    "ended": "this many ended runs of one container",
    "failed": "this many failed pods",
    "running": "this many running containers",
    "ready": "this many ready pods at once",
    "lost": "this many losses of readiness of one pod",
}
"""The forms of a rule; `says` adds a pattern for the message of the event, state or condition."""


def proved(rule: Rule, observations: Sequence[Observation], applied: float) -> float | None:
    """When the fact arrived, in seconds of the clock; None when it never did.

    Args:
        rule: one of `FORMS`, and possibly `says`.
        observations: all changes in the scenario's namespace, in the order of arrival.
        applied: when the manifests were applied; pods of an earlier version prove nothing.
    """
    form = next(form for form in FORMS if form in rule)
    if form == "apply":
        return applied
    wanted, says = rule[form], re.compile(str(rule.get("says", "")), re.IGNORECASE)
    times = _RULES[form](_after_apply(observations, applied), wanted, says)
    return next(times, None)


def _after_apply(observations: Sequence[Observation], applied: float) -> list[Observation]:
    """The changes after the apply, without those of pods that existed before and events about them."""
    pods = [change.item for change in observations if change.kind == "Pod"]
    old = {pod["metadata"]["uid"] for pod in pods if _created(pod) < int(applied)}
    return [change for change in observations if change.at >= applied and _subject(change.item) not in old]


def _subject(item: Object) -> str:
    """The uid of the object, or of the object that an event is about."""
    return str((item.get("involvedObject") or item["metadata"]).get("uid", ""))


def _created(item: Object) -> float:
    return datetime.fromisoformat(item["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()


def _event(observations: Sequence[Observation], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for change in observations:
        if (
            change.kind == "Event"
            and change.item.get("reason") == wanted
            and says.search(change.item.get("message") or "")
        ):
            yield change.at


def _waiting(observations: Sequence[Observation], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for change in observations:
        for status in _containers(change):
            state = (status.get("state") or {}).get("waiting") or {}
            if state.get("reason") == wanted and says.search(state.get("message") or ""):
                yield change.at


def _condition(observations: Sequence[Observation], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    kind, _, rest = str(wanted).partition("/")
    name, _, status = rest.partition("=")
    for change in observations:
        if change.kind != kind:
            continue
        for state in (change.item.get("status") or {}).get("conditions") or []:
            if (state["type"], state["status"]) == (name, status) and says.search(state.get("message") or ""):
                yield change.at


def _ended(observations: Sequence[Observation], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for change in observations:
        for status in _containers(change):
            state, last = status.get("state") or {}, status.get("lastState") or {}
            # After a restart the counted run may still be running, or have ended and be waiting for the next restart.
            ended = "terminated" in state or ("terminated" in last and "running" not in state)
            if status.get("restartCount", 0) + ended >= wanted:
                yield change.at


def _failed(observations: Sequence[Observation], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    pods = set()
    for change in observations:
        if change.kind == "Pod" and (change.item.get("status") or {}).get("phase") == "Failed":
            pods.add(change.item["metadata"]["uid"])
        if len(pods) >= wanted:
            yield change.at


def _running(observations: Sequence[Observation], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    running = set()
    for change in observations:
        for status in _containers(change):
            if (status.get("state") or {}).get("running"):
                running.add((change.item["metadata"]["uid"], status["name"]))
        if len(running) >= wanted:
            yield change.at


def _ready(observations: Sequence[Observation], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    ready: dict[str, bool] = {}
    for change in observations:
        if change.kind == "Pod":
            ready[change.item["metadata"]["uid"]] = not change.deleted and is_ready(change.item)
        if sum(ready.values()) >= wanted:
            yield change.at


def _lost(observations: Sequence[Observation], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    ready: dict[str, bool] = {}
    lost: dict[str, int] = {}
    for change in observations:
        if change.kind != "Pod":
            continue
        uid, now = change.item["metadata"]["uid"], is_ready(change.item)
        lost[uid] = lost.get(uid, 0) + (ready.get(uid, False) and not now)
        ready[uid] = now
        if lost[uid] >= wanted:
            yield change.at


def is_ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is true."""
    states = (pod.get("status") or {}).get("conditions") or []
    return any((state["type"], state["status"]) == ("Ready", "True") for state in states)


def _containers(change: Observation) -> list[Object]:
    status = change.item.get("status") or {} if change.kind == "Pod" else {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


_RULES = {
    "event": _event,
    "waiting": _waiting,
    "condition": _condition,
    "ended": _ended,
    "failed": _failed,
    "running": _running,
    "ready": _ready,
    "lost": _lost,
}
