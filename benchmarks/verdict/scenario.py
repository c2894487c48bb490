"""Scenarios: one YAML file each, a header and the manifests that are rolled out.

The header has the expected verdict, so that it is fixed before anything is measured. Words with a `$` are filled in:
NAMESPACE, REGISTRY, FAULTY (a registry that misbehaves by the requested path) and NODE (a simulated node of the
scenario's own).
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
"""Seconds from the apply that a tool has for its verdict; the soak time is added for every tool."""
_KEYS = frozenset(
    {"about", "kind", "watch", "categories", "provable", "proof", "patience", "named", "twin", "window", "existing",
     "node", "earlier", "steps"}
)  # fmt: skip
_VERBS = frozenset({"apply", "delete", "patch", "evict"})


class Wrong(Exception):
    """A scenario file with a mistake."""


@dataclass(frozen=True)
class Step:
    """A change to the cluster while the rollout is watched.

    Args:
        after: seconds after the apply.
        verb: apply, delete, patch or evict.
        target: an object for apply; else `kind/name`, or a label for evict.
        change: the merge patch.
    """

    after: float
    verb: str
    target: Any
    change: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """The version that runs before: the manifests with a merge patch on the workload.

    Args:
        change: the patch.
        until: seconds to wait before the next apply; None: until all of its pods are ready.
    """

    change: Object
    until: float | None


@dataclass(frozen=True)
class Scenario:
    """One rollout, and its expected verdict.

    Args:
        name: the file's name.
        about: one sentence that describes it.
        kind: failing or good.
        watch: kind/name of the workload that the tools watch.
        manifests: the objects that are rolled out.
        categories: the causes that are right to name.
        provable: one fact proves the failure; otherwise the problem may be temporary.
        proof: the rule for the arrival of that fact, or of the problem's first sign, in the API.
        patience: seconds from the first sign to the verdict; 0 where one fact proves the failure.
        named: a pattern for a tool's output that names the cause.
        twin: the scenario that looks the same at first and ends otherwise.
        window: seconds that each tool has, without the soak time.
        existing: objects that are created before, and are no part of the release.
        node: taints of a simulated node, `$NODE`; None without one.
        earlier: the version before.
        steps: changes after the apply.
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
    existing: Sequence[Object] = ()
    node: Sequence[Object] | None = None
    earlier: Earlier | None = None
    steps: Sequence[Step] = ()

    @property
    def good(self) -> bool:
        """Whether the rollout completes in the end."""
        return self.kind == GOOD

    @property
    def workload(self) -> tuple[str, str]:
        """Kind, in lower case, and name of the watched workload."""
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
        Wrong: the header lacks a key, or has an unknown key or value.
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
        existing=[_placed(item, namespace) for item in header.get("existing", ())],
        node=header["node"].get("taints", []) if "node" in header else None,
        earlier=_earlier(header.get("earlier")),
        steps=[_step(step, namespace) for step in header.get("steps", ())],
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
    return re.sub(rf"\$({'|'.join(values)})\b", lambda match: values[match[1]], text)


def merged(item: Any, change: Any) -> Any:  # noqa: ANN401  any JSON
    """A JSON merge patch (RFC 7386) applied."""
    if not isinstance(change, Mapping):
        return change
    base = item if isinstance(item, Mapping) else {}
    kept = {key: value for key, value in base.items() if change.get(key, value) is not None}
    return kept | {key: merged(base.get(key), value) for key, value in change.items() if value is not None}


def _placed(item: Object, namespace: str) -> Object:
    if item["kind"] in CLUSTER_WIDE:
        return item
    return {**item, "metadata": {"namespace": namespace, **item["metadata"]}}


def _earlier(entry: Object | None) -> Earlier | None:
    if entry is None:
        return None
    until = entry.get("until", "complete")
    return Earlier(entry.get("with", {}), None if until == "complete" else _seconds(until))


def _step(entry: Object, namespace: str) -> Step:
    (verb,) = _VERBS & set(entry)
    target = _placed(entry[verb], namespace) if verb == "apply" else entry[verb]
    return Step(_seconds(entry["after"]), verb, target, entry.get("with", {}))


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?s", text):
        raise Wrong(f"{text!r} is not a number of seconds, as in 8s")
    return float(text.removesuffix("s"))


def _check(scenario: Scenario) -> None:
    if scenario.kind not in (FAILING, GOOD):
        raise Wrong(f"{scenario.name}: kind is {scenario.kind!r}")
    if not scenario.good and not (scenario.categories and scenario.proof and scenario.named):
        raise Wrong(f"{scenario.name}: a failing scenario needs categories, a proof and a pattern that names the cause")
    if scenario.proof and not set(FORMS) & set(scenario.proof):
        raise Wrong(f"{scenario.name}: a proof is one of {', '.join(FORMS)}")
