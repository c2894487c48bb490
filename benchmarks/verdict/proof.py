"""When the API first had the fact that proves a rollout's doom, or the first sign of a trouble that may heal.

Pure: what the witness wrote down goes in, a time comes out. The rules stand in the headers of the scenarios; they are
written without a look at how any of the measured tools decides.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from api import Object
from witness import Seen

Rule: TypeAlias = Mapping[str, Any]
FORMS: Mapping[str, str] = {
    "apply": "the apply itself",
    "event": "an event with this reason",
    "waiting": "a container that waits for this reason",
    "condition": "a condition, Kind/Type=Status",
    "ended": "so many ended runs of one container",
    "failed": "so many failed pods",
    "running": "so many running containers",
    "ready": "so many ready pods at once",
    "lost": "so many times that one pod has lost its readiness",
}
"""What a rule may ask for; `says` adds a pattern for the message that goes with it."""


def proved(rule: Rule, seen: Sequence[Seen], applied: float) -> float | None:
    """When the fact arrived, in seconds of the clock; None when it never did.

    Args:
        rule: one of `FORMS`, and possibly `says`.
        seen: everything in the scenario's namespace, in the order of arrival.
        applied: when the manifests were applied; pods of an earlier version prove nothing.
    """
    form = next(each for each in FORMS if each in rule)
    if form == "apply":
        return applied
    wanted, says = rule[form], re.compile(str(rule.get("says", "")), re.IGNORECASE)
    found = _RULES[form](_new(seen, applied), wanted, says)
    return next(found, None)


def _new(seen: Sequence[Seen], applied: float) -> list[Seen]:
    """What arrived after the apply, without the pods of before and the events about them."""
    old = {each.item["metadata"]["uid"] for each in seen if each.kind == "Pod" and _born(each.item) < int(applied)}
    return [each for each in seen if each.at >= applied and not old & {_subject(each.item)}]


def _subject(item: Object) -> str:
    return str((item.get("involvedObject") or item["metadata"]).get("uid", ""))


def _born(item: Object) -> float:
    return datetime.fromisoformat(item["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()


def _event(seen: Sequence[Seen], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for each in seen:
        if each.kind == "Event" and each.item.get("reason") == wanted and says.search(each.item.get("message") or ""):
            yield each.at


def _waiting(seen: Sequence[Seen], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for each in seen:
        for status in _containers(each):
            state = (status.get("state") or {}).get("waiting") or {}
            if state.get("reason") == wanted and says.search(state.get("message") or ""):
                yield each.at


def _condition(seen: Sequence[Seen], wanted: Any, says: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    kind, _, rest = str(wanted).partition("/")
    name, _, status = rest.partition("=")
    for each in seen:
        for state in (each.item.get("status") or {}).get("conditions") or [] if each.kind == kind else []:
            if (state["type"], state["status"]) == (name, status) and says.search(state.get("message") or ""):
                yield each.at


def _ended(seen: Sequence[Seen], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    for each in seen:
        for status in _containers(each):
            state, last = status.get("state") or {}, status.get("lastState") or {}
            # after a restart the run that is counted may be under way, or have ended and be waited out
            ended = "terminated" in state or ("terminated" in last and "running" not in state)
            if status.get("restartCount", 0) + ended >= wanted:
                yield each.at


def _failed(seen: Sequence[Seen], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    pods = set()
    for each in seen:
        if each.kind == "Pod" and (each.item.get("status") or {}).get("phase") == "Failed":
            pods.add(each.item["metadata"]["uid"])
        if len(pods) >= wanted:
            yield each.at


def _running(seen: Sequence[Seen], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    running = set()
    for each in seen:
        for status in _containers(each):
            if (status.get("state") or {}).get("running"):
                running.add((each.item["metadata"]["uid"], status["name"]))
        if len(running) >= wanted:
            yield each.at


def _ready(seen: Sequence[Seen], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    ready: dict[str, bool] = {}
    for each in seen:
        if each.kind == "Pod":
            ready[each.item["metadata"]["uid"]] = not each.gone and is_ready(each.item)
        if sum(ready.values()) >= wanted:
            yield each.at


def _lost(seen: Sequence[Seen], wanted: Any, _: "re.Pattern[str]") -> Iterator[float]:  # noqa: ANN401
    ready: dict[str, bool] = {}
    lost: dict[str, int] = {}
    for each in (each for each in seen if each.kind == "Pod"):
        uid, now = each.item["metadata"]["uid"], is_ready(each.item)
        lost[uid] = lost.get(uid, 0) + (ready.get(uid, False) and not now)
        ready[uid] = now
        if lost[uid] >= wanted:
            yield each.at


def is_ready(pod: Object) -> bool:
    """Whether a pod says that it is."""
    states = (pod.get("status") or {}).get("conditions") or []
    return any((each["type"], each["status"]) == ("Ready", "True") for each in states)


def _containers(each: Seen) -> list[Object]:
    status = each.item.get("status") or {} if each.kind == "Pod" else {}
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
