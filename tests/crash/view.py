"""What a stranger sees of an environment, and how a whole one is built again in another namespace."""

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record
from prefect_cd.environment.record_format import decode, encode, epoch_of
from tests.crash.proxy import TOUCHED

Object = dict[str, Any]
DELETION_SECONDS = 30
_OURS = ("app.kubernetes.io/managed-by", "prefect-cd.dev/")
_OF_THE_SERVER = frozenset(
    "uid resourceVersion generation creationTimestamp managedFields namespace selfLink finalizers".split()  # noqa: SIM905
)
_OF_OTHERS = frozenset(
    {
        "deployment.kubernetes.io/revision",
        "kubectl.kubernetes.io/last-applied-configuration",
        "prefect-cd.dev/epoch",  # it only gives an object another version
        TOUCHED,
    }
)
_NOT_THE_TESTS = frozenset({"kube-root-ca.crt", "kubernetes"})
_RECORD, _NUMBER, _STATE = "prefect-cd.dev/record", "prefect-cd.dev/number", "prefect-cd.dev/state"
_OPEN = frozenset({"prepared", "applying", "verifying"})
"""States of a record without an outcome."""
_PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}


_http = httpx.Client(trust_env=False, timeout=60, headers={"Connection": "close"})
"""For all threads, since a new client reads certificates for some milliseconds."""


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class View:
    """What a stranger sees of an environment: its objects as they were asked for, and the states of its records."""

    objects: Mapping[str, Object]
    states: tuple[str, ...]
    holder: str

    @property
    def is_settled(self) -> bool:
        """Whether the newest record has an outcome; one over which another was started is history."""
        return not self.states or self.states[-1] not in _OPEN

    def without_labels(self) -> "View":
        """The view without what only says that the objects are ours: taking over and giving back leaves that."""
        return View({name: _unlabelled(item) for name, item in self.objects.items()}, self.states, self.holder)


def view_of(namespace: str) -> View:
    """The namespace as kubectl shows it, without what the server and controllers write.

    What is being deleted is waited for.
    """
    give_up = time.monotonic() + DELETION_SECONDS
    while True:
        kinds = "configmaps,deployments,services,secrets,leases"
        items = json.loads(kubectl("-n", namespace, "get", kinds, "-o", "json"))["items"]
        if not any("deletionTimestamp" in item["metadata"] for item in items) or time.monotonic() > give_up:
            return _view(items)
        time.sleep(0.2)


def _view(items: list[Object]) -> View:
    objects = {
        f"{item['kind']}/{item['metadata']['name']}": _wanted(item)
        for item in items
        if item["kind"] not in {"Secret", "Lease"} and item["metadata"]["name"] not in _NOT_THE_TESTS
    }
    labels = [item["metadata"]["labels"] for item in items if _is_record(item)]
    states = tuple(state for _, state in sorted((int(label[_NUMBER]), label[_STATE]) for label in labels))
    leases = [item for item in items if item["kind"] == "Lease"]
    return View(objects, states, str(leases[0]["spec"].get("holderIdentity") or "") if leases else "")


def _is_record(item: Object) -> bool:
    return item["kind"] == "Secret" and _RECORD in (item["metadata"].get("labels") or {})


def _wanted(item: Object) -> Object:
    metadata = {key: value for key, value in item["metadata"].items() if key not in _OF_THE_SERVER}
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key not in _OF_OTHERS}
    metadata["annotations"] = annotations
    return {key: value for key, value in item.items() if key != "status"} | {"metadata": metadata}


def _unlabelled(item: Object) -> Object:
    labels = item["metadata"].get("labels") or {}
    theirs = {key: value for key, value in labels.items() if not key.startswith(_OURS)}
    return {**item, "metadata": {**item["metadata"], "labels": theirs}}


@dataclass(frozen=True)
class Objects:
    """The objects of a namespace, through an API server without TLS."""

    api_server: str
    namespace: str

    def get(self, kind: str, name: str) -> Object | None:
        answer = _http.get(self._url(kind, name))
        return dict(answer.json()) if answer.is_success else None

    def records(self) -> list[Object]:
        answer = _http.get(self._url("Secret"), params={"labelSelector": _RECORD})
        return list(answer.raise_for_status().json()["items"])

    def create(self, item: Object) -> None:
        content = json.dumps({key: value for key, value in item.items() if key != "status"})
        _http.post(self._url(item["kind"]), content=content).raise_for_status()

    def apply(self, item: Object, manager: str) -> None:
        """As a manager with this name applies the object."""
        headers = {"Content-Type": "application/apply-patch+yaml"}
        url, parameters = self._url(item["kind"], item["metadata"]["name"]), {"fieldManager": manager}
        content = json.dumps(item)
        answer = _http.patch(url, params=parameters, content=content, headers=headers)
        answer.raise_for_status()

    def merge(self, kind: str, name: str, patch: Object) -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        content = json.dumps(patch)
        _http.patch(self._url(kind, name), content=content, headers=headers)

    def _url(self, kind: str, name: str = "") -> str:
        path = _PATHS[kind].format(self.namespace)
        return f"{self.api_server}{path}/{name}" if name else f"{self.api_server}{path}"


@dataclass(frozen=True)
class Snapshot:
    """A whole environment: its records and its lock. The records are enough to build it again (I2)."""

    namespace: str
    secrets: tuple[Object, ...]
    lease: Object

    @classmethod
    def of(cls, objects: Objects) -> "Snapshot":
        lease = objects.get("Lease", "prefect-cd.shop")
        assert lease
        return cls(objects.namespace, tuple(objects.records()), lease)

    def restore(self, objects: Objects) -> None:
        """Build the environment again in another namespace, where nothing runs yet."""
        for secret in self.secrets:
            record = decode(_ownership(self.namespace), {"apiVersion": "v1", "kind": "Secret", **secret})
            assert isinstance(record, Record), record
            moved = record.model_dump_json().replace(self.namespace, objects.namespace)
            moved_record = Record.model_validate_json(moved)
            item, parts = encode(_ownership(objects.namespace), moved_record, epoch_of(secret))
            assert not parts, "records of tests are small"
            objects.create(item)
            if record.number == self._known_good:
                for wanted in moved_record.objects:
                    objects.apply(wanted, "prefect-cd")
        objects.create(_bare(self.lease))

    @property
    def _known_good(self) -> int:
        labels = [item["metadata"]["labels"] for item in self.secrets]
        return max(int(label[_NUMBER]) for label in labels if label[_STATE] == "known-good")


def _ownership(namespace: str) -> Ownership:
    return Ownership("shop", "production", namespace)


def _bare(item: Object) -> Object:
    """The object without what a server writes, to be created elsewhere."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in _OF_THE_SERVER}
    return {**item, "metadata": metadata}
