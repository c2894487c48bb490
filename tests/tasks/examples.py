"""Examples of what stages get and return: commits, releases, records, plans. All of the application shop."""

import subprocess
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.record import Record, State
from prefect_cd.errors import DeliveryError
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import Environment, ImageSettings, Pipeline, RolloutSettings, SourceSettings
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report, WorkloadRow
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.record import record_applying, record_verifying
from prefect_cd.tasks.target import Target, Version, id_of
from tests import records

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
IMAGE = "registry.example.org/shop"


def commit(sha: str = "a" * 40, subject: str = "Sell more") -> Commit:
    return Commit(
        repository="https://example.org/acme/shop",
        sha=sha,
        revision="main",
        subject=subject,
        author="Test Author",
        committed_at=NOW,
    )


def image(*, built: bool = True) -> BuiltImage:
    return BuiltImage(name=IMAGE, digest=f"sha256:{'1' * 64}", built=built)


def config_map(name: str = "shop", **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str = "shop", reference: str = IMAGE) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": reference}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def service(name: str = "shop") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    }


def release(*objects: Object, of: Commit | None = None, environment: str = "staging") -> Release:
    manifests = {environment: objects or (config_map(greeting="hello"),)}
    return Release(application="shop", commit=of or commit(), image=image(), manifests=manifests)


def record(number: int, state: State = State.KNOWN_GOOD, **changes: Any) -> Record:  # noqa: ANN401
    ours = {"app.kubernetes.io/managed-by": "prefect-cd", "prefect-cd.dev/application": "shop"}
    labels = {**ours, "prefect-cd.dev/environment": "staging"}
    item = config_map(greeting=f"hello from {number}")
    placed = {**item, "metadata": {"name": "shop", "namespace": "shop", "labels": labels}}
    fields: dict[str, Any] = {"commit": commit(), "image": image(), "objects": (placed,), "started_at": NOW}
    return records.record(number, state, **{**fields, **changes})


def evidence(gate: str = "smoke", outcome: Outcome = Outcome.PASSED, **changes: Any) -> Evidence:  # noqa: ANN401
    return Evidence(
        **{"gate": gate, "outcome": outcome, "summary": f"{outcome.value} in 1.0 s", "seconds": 1, **changes}
    )


def environment(**settings: Any) -> Environment:  # noqa: ANN401
    at_once = RolloutSettings(settle=timedelta())
    return Environment(**{"name": "staging", "namespace": "shop", "manifests": "k8s", "rollout": at_once, **settings})


def pipeline(*environments: Environment, repository: Path | str = "https://example.org/acme/shop") -> Pipeline:
    return Pipeline(
        application="shop",
        source=SourceSettings(repository=str(repository)),
        image=ImageSettings(name=IMAGE),
        environments=environments or (environment(),),
    )


def plan_of(target: Target, version: Version, *objects: Object, **changes: Any) -> Plan:  # noqa: ANN401
    fields: dict[str, Any] = {
        "target": target,
        "version": version,
        "objects": objects,
        "changes": ChangeSet(changes=()),
        "state": EnvironmentState(),
        "unrecorded": (),
        "findings": (),
        "server": "https://cluster.example.org",
        "kubernetes": "v1.36.3",
    }
    return Plan(**{**fields, **changes})


def applied(target: Target, version: Version | None = None, *objects: Object) -> Applied:
    version = version or release()
    return Applied(
        target=target,
        release_id=id_of(version),
        commit=version.commit,
        objects=objects,
        changes=ChangeSet(changes=()),
        since=NOW,
    )


def report(phase: Phase = Phase.COMPLETE) -> Report:
    ready = int(phase is Phase.COMPLETE)
    row = WorkloadRow(
        workload="deployment/shop", phase=phase, summary=f"{ready} of 1 ready", ready=ready, wanted=1, pods=()
    )
    return Report(workloads=(row,), seconds=1)


class HeldLock:
    """A lock as stages use it: awaited before each write; raises `error` once it is set."""

    epoch = 1

    def __init__(self) -> None:
        self.guarded = 0
        self.marked: int | None = None
        self.added: list[str] = []
        self.error: DeliveryError | None = None

    async def guard(self) -> None:
        if self.error:
            raise self.error
        self.guarded += 1

    async def mark_open(self, number: int, added: Sequence[Ref] = ()) -> None:
        self.marked, self.added = number, list(map(str, added))

    def mark_settled(self) -> None:
        self.marked = None

    async def confirm(self, _: object) -> None:
        if self.error:
            raise self.error


class GitRepository:
    """A real git repository with one branch, main."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        author = ["-c", "user.name=Test Author", "-c", "user.email=author@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *author, *arguments]
        return subprocess.run(command, cwd=self.path, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, files: dict[str, str], subject: str = "Sell more") -> Commit:
        for name, content in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)
        return commit(self.git("rev-parse", "HEAD"), subject)


def verified(target: Target, started: Record, lock: Any) -> Record:  # noqa: ANN401
    """A record in the cluster as it is when its gates begin."""
    return record_verifying(target, record_applying(target, started, lock), lock)


def as_yaml(*objects: Object) -> str:
    return yaml.safe_dump_all(objects)
