"""What must be true before the first write. The cluster is never reached: these are refused before."""

from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.apply import ChangeSet
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.records import Decision
from prefect_cd.errors import ContentChanged
from prefect_cd.pipeline.models import Approval, Environment
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.record import record_start
from prefect_cd.tasks.target import Target

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
NO_LOCK: Any = None


@pytest.fixture
def planned() -> Plan:
    commit = Commit(
        repository="https://example.org/acme/shop",
        sha="a" * 40,
        revision="main",
        subject="Sell more",
        author="Test Author",
        committed_at=NOW,
    )
    image = BuiltImage(name="registry.example.org/shop", digest=f"sha256:{'0' * 64}", built=True)
    environment = Environment(name="production", namespace="shop", manifests="k8s", approval=Approval())
    return Plan(
        target=Target(application="shop", environment=environment),
        version=Release(application="shop", commit=commit, image=image, manifests={"production": ()}),
        objects=(),
        changes=ChangeSet(changes=()),
        standing=EnvironmentState(),
        taken_over=(),
        server="https://cluster.example.org",
        kubernetes="v1.36.3",
    )


def decision(content: str) -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=NOW, content=content)


def test_i5_an_approval_of_other_content_does_not_open_a_record(planned: Plan) -> None:
    elsewhere = planned.model_copy(update={"server": "https://another.example.org"})
    with pytest.raises(ContentChanged, match="no longer what approver one approved"):
        record_start.fn(planned, NO_LOCK, decision(elsewhere.content))


def test_i5_without_an_approval_no_record_is_opened_where_one_is_wanted(planned: Plan) -> None:
    with pytest.raises(ContentChanged, match="wants an approval"):
        record_start.fn(planned, NO_LOCK, None)
