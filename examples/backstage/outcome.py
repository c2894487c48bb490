"""What the demo must show: every act ends as announced, and visitors get answers from this shop.

Pure decisions: what was announced and what was observed come in, sentences about the differences come out.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

RELEASED, ROLLED_BACK = "Completed", "Rolled back"  # how a release run ends
_RECORDS = {RELEASED: "known-good", ROLLED_BACK: "rolled-back"}  # the state of the release's record in production
_SHORT = 7  # a release id begins with these digits of the commit's SHA


@dataclass(frozen=True)
class Outcome:
    """How an act ended.

    Attributes:
        state: how its release run ended, as `ended_as` has it.
        production: the id of the release that production runs afterwards; empty when there is none.
        record: the state of the newest record of the act's commit in production; empty when it never got there.
    """

    state: str
    production: str
    record: str


def ended_as(state: Mapping[str, str]) -> str:
    """How a run ended: the name of its state, or, where that is Failed, the first words of the state's message."""
    return state["name"] if state["name"] != "Failed" else (state["message"] or "Failed").partition(": ")[0]


def act_problems(announced: str, commit: str, known_good: str, outcome: Outcome) -> list[str]:
    """What differs from the announcement; empty when the act ended as it should.

    Args:
        announced: RELEASED or ROLLED_BACK.
        commit: SHA of the version that this act releases.
        known_good: SHA of the version that production ran before; empty at first.
        outcome: what was observed.
    """
    problems = []
    if outcome.state != announced:
        problems.append(f"the run ended as {outcome.state!r}; announced was {announced!r}")
    if outcome.record != _RECORDS[announced]:
        # A version that fails on staging ends as "Rolled back", too, and production never sees it.
        record = f"is recorded as {outcome.record!r}" if outcome.record else "has no record"
        problems.append(f"{commit[:_SHORT]} {record} in production; expected {_RECORDS[announced]!r}")
    expected = commit if announced == RELEASED else known_good
    if not expected or not outcome.production.startswith(expected[:_SHORT]):
        running = outcome.production or "no release"
        problems.append(f"production runs {running}; expected a release of {expected[:_SHORT] or 'nothing'}")
    return problems


def visitor_problems(
    requests: Mapping[tuple[str, str], int], versions: Mapping[str, str], expected: Collection[str]
) -> list[str]:
    """What shows that the visitors' figures say nothing about this shop; empty when they do.

    Args:
        requests: (version that answered, failure) -> how many; both may be empty.
        versions: commit SHA -> name of the versions that the demo released.
        expected: names of the versions that must have answered, those that production kept.
    """
    answered: set[str] = set()
    strangers: Counter[str] = Counter()
    for (version, failure), count in requests.items():
        name = version_name(version, versions)
        if name and not failure:
            answered.add(name)
        if version and not name:
            strangers[version] += count
    total = sum(requests.values())
    problems = [
        f"{count} of {total} requests were answered by another shop: its version is {version}"
        for version, count in sorted(strangers.items())
    ]
    if not answered:
        return [*problems, f"none of {total} requests got an answer from the shop"]
    return problems + [f"no request got an answer from {name}" for name in expected if name not in answered]


def version_name(version: str, versions: Mapping[str, str]) -> str:
    """The name of the version that an answer carries in its header; empty for one that the demo did not release."""
    if not version:
        return ""
    return next((name for sha, name in versions.items() if sha.startswith(version)), "")
