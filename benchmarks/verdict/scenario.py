"""Scenarios: one YAML file each, a header and the manifests that are rolled out.

The header says what is to be expected, so that nobody can fit the expectation to what was measured. Words with a `$`
are filled in: NAMESPACE, REGISTRY, FAULTY (a registry that misbehaves by the path asked for) and NODE (a simulated
node of the scenario's own).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from api import CLUSTER_WIDE, Object
from proof import FORMS, Rule

FOLDER = Path(__file__).with_name("scenarios")
FAULTY_PORT = 5055
FAILING, GOOD = "failing", "good"
WINDOW = 60.0
"""Seconds from the apply in which a tool may come to its verdict; the settle time is added for all of them."""
_KEYS = frozenset(
    {"about", "kind", "watch", "categories", "provable", "proof", "patience", "named", "twin", "window", "given",
     "node", "earlier", "steps"}
)  # fmt: skip
_VERBS = frozenset({"apply", "delete", "patch", "evict"})


class Wrong(Exception):
    """A scenario file that cannot be meant as it is written."""


@dataclass(frozen=True)
class Step:
    """Something that happens while the rollout is watched.

    Args:
        after: seconds after the apply.
        verb: apply, delete, patch or evict.
        what: an object for apply; else `kind/name`, or a label for evict.
        change: the merge patch.
    """

    after: float
    verb: str
    what: Any
    change: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """The version that runs before: the manifests with a merge patch on the workload.

    Args:
        change: the patch.
        until: how many seconds it is left alone; None: until all of its pods are ready.
    """

    change: Object
    until: float | None


@dataclass(frozen=True)
class Scenario:
    """One rollout, and what is to be said of it.

    Args:
        name: that of the file.
        about: one sentence for people.
        kind: failing or good.
        watch: kind and name of the workload, as tools are asked for it.
        manifests: what is rolled out.
        categories: the causes that are honest to name.
        provable: one fact proves doom; otherwise it may heal.
        proof: when the fact, or the first sign of the trouble, was in the API.
        patience: seconds from the first sign to the verdict; 0 where the fact is all there is.
        named: a pattern that a tool's words match when they name the cause.
        twin: the scenario that looks the same at first and ends otherwise.
        window: seconds that each tool has before the settle time.
        given: what is there before the apply, and no part of the release.
        node: taints of a simulated node, `$NODE`; None without one.
        earlier: the version before.
        steps: what happens afterwards.
    """

    name: str
    about: str
    kind: str
    watch: str
    manifests: Sequence[Object]
    categories: Sequence[str] = ()
    provable: bool = False
    proof: Rule | None = None
    patience: float = 0
    named: str = ""
    twin: str = ""
    window: float = WINDOW
    given: Sequence[Object] = ()
    node: Sequence[Object] | None = None
    earlier: Earlier | None = None
    steps: Sequence[Step] = ()

    @property
    def good(self) -> bool:
        """Whether it comes up in the end."""
        return self.kind == GOOD

    @property
    def workload(self) -> tuple[str, str]:
        """Kind, in lower case, and name of what is watched."""
        kind, _, name = self.watch.partition("/")
        return kind, name

    def before(self) -> list[Object]:
        """The manifests of the earlier version."""
        kind, name = self.workload
        change = self.earlier.change if self.earlier else {}
        return [
            merged(item, change) if (item["kind"].lower(), item["metadata"]["name"]) == (kind, name) else item
            for item in self.manifests
        ]


def names() -> list[str]:
    """All scenarios, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, namespace: str = "verdict") -> Scenario:
    """Read a scenario's file and fill in the names for a run in `namespace`.

    Raises:
        Wrong: the header says too little, too much or something unknown.
    """
    header, *manifests = yaml.safe_load_all(filled((FOLDER / f"{name}.yaml").read_text(), namespace))
    if unknown := set(header) - _KEYS:
        raise Wrong(f"{name}: unknown in the header: {', '.join(sorted(unknown))}")
    scenario = Scenario(
        name=name,
        about=header["about"],
        kind=header["kind"],
        watch=header.get("watch", "deployment/app"),
        manifests=[_placed(item, namespace) for item in manifests],
        categories=header.get("categories", ()),
        provable=header.get("provable", False),
        proof=header.get("proof"),
        patience=_seconds(header.get("patience", "0s")),
        named=header.get("named", ""),
        twin=header.get("twin", ""),
        window=_seconds(header.get("window", f"{WINDOW:.0f}s")),
        given=[_placed(item, namespace) for item in header.get("given", ())],
        node=header["node"].get("taints", []) if "node" in header else None,
        earlier=_earlier(header.get("earlier")),
        steps=[_step(each, namespace) for each in header.get("steps", ())],
    )
    _check(scenario)
    return scenario


def filled(text: str, namespace: str) -> str:
    """The text with its `$` words filled in."""
    values = {
        "NAMESPACE": namespace,
        "NODE": f"{namespace}-node",
        "REGISTRY": os.environ.get("REGISTRY", "localhost:5000"),
        "FAULTY": f"localhost:{FAULTY_PORT}",
    }
    return re.sub(rf"\$({'|'.join(values)})\b", lambda found: values[found[1]], text)


def merged(item: Any, change: Any) -> Any:  # noqa: ANN401  any JSON
    """A JSON merge patch (RFC 7386) applied."""
    if not isinstance(change, Mapping):
        return change
    base = item if isinstance(item, Mapping) else {}
    found = {key: value for key, value in base.items() if change.get(key, value) is not None}
    return found | {key: merged(base.get(key), value) for key, value in change.items() if value is not None}


def _placed(item: Object, namespace: str) -> Object:
    if item["kind"] in CLUSTER_WIDE:
        return item
    return {**item, "metadata": {"namespace": namespace, **item["metadata"]}}


def _earlier(told: Object | None) -> Earlier | None:
    if told is None:
        return None
    until = told.get("until", "complete")
    return Earlier(told.get("with", {}), None if until == "complete" else _seconds(until))


def _step(told: Object, namespace: str) -> Step:
    (verb,) = _VERBS & set(told)
    what = _placed(told[verb], namespace) if verb == "apply" else told[verb]
    return Step(_seconds(told["after"]), verb, what, told.get("with", {}))


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?s", text):
        raise Wrong(f"{text!r} is not a number of seconds, as in 8s")
    return float(text.removesuffix("s"))


def _check(scenario: Scenario) -> None:
    if scenario.kind not in (FAILING, GOOD):
        raise Wrong(f"{scenario.name}: kind is {scenario.kind!r}")
    if not scenario.good and not (scenario.categories and scenario.proof and scenario.named):
        raise Wrong(f"{scenario.name}: a failing scenario needs categories, a proof and the words that name it")
    if scenario.proof and not set(FORMS) & set(scenario.proof):
        raise Wrong(f"{scenario.name}: a proof is one of {', '.join(FORMS)}")
