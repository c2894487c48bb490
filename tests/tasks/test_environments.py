"""The page that says what runs where: what it says, and when a new version of it is written."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort

from prefect_cd.environment.record import Decision, State
from prefect_cd.environment.status import EnvironmentStatus, Version
from prefect_cd.errors import ClusterUnreachable
from prefect_cd.pipeline.models import ClusterAccess, Environment, Pipeline
from prefect_cd.tasks import environments, markdown_summary
from prefect_cd.tasks.markdown_summary import condition_text
from tests.tasks import examples
from tests.tasks.conftest import Run
from tests.tasks.examples import pipeline

Play = Callable[[Callable[[], Any]], Run]
NOW = datetime(2026, 1, 1, 9, tzinfo=timezone.utc)


def version(state: State = State.KNOWN_GOOD, subject: str = "Sell more", **changes: object) -> Version:
    decision = Decision(approved=True, name="Ada", comment="", decided_at=NOW, content="c")
    fields = {"release_id": "abc-1", "record": 1, "commit": examples.commit(subject=subject), "image": "shop@sha256:1"}
    more = {"state": state, "since": NOW, "run": "http://127.0.0.1/runs/flow-run/1", "decision": decision, "reason": ""}
    return Version.model_validate({**fields, **more, **changes})


def status(**changes: object) -> EnvironmentStatus:
    fields = {"environment": "staging", "namespace": "shop", "condition": "whole", "runs": version()}
    return EnvironmentStatus.model_validate({**fields, "newest": None, "holder": None, **changes})


def pages(application: str) -> list[Artifact]:
    """All versions of the page, newest first."""
    key = ArtifactFilterKey(any_=[f"{application}-environments"])
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=key), sort=ArtifactSort.CREATED_DESC)


def test_a_new_version_is_written_only_where_it_says_something_new(
    run: Play, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = pipeline(environment).model_copy(update={"application": "says-something-new"})
    answers = [[status()], [status()], [status(runs=version(subject="Picks"))]]
    monkeypatch.setattr(environments, "read", lambda *_, **__: answers.pop(0))
    for _ in range(3):
        run(lambda: environments.publish(shop))
    assert [page.description for page in pages("says-something-new")] == [
        "staging: aaaaaaa Picks (whole)",
        "staging: aaaaaaa Sell more (whole)",
    ]
    assert {page.task_run_id for page in pages("says-something-new")} == {None}


def test_it_is_read_from_the_clusters_and_other_processes_know_its_rows(run: Play, environment: Environment) -> None:
    away = examples.environment(name="production", cluster=ClusterAccess(kubeconfig="/nowhere/kubeconfig"))
    shop: Pipeline = pipeline(environment, away).model_copy(update={"application": "two-clusters"})
    rows = run(lambda: environments.publish(shop)).result
    assert [(row.environment, row.runs) for row in rows] == [("staging", "nothing"), ("production", "unknown")]
    with get_client(sync_client=True) as client:
        assert environments.latest(client, "two-clusters") == rows
        assert environments.latest(client, "unheard-of") == ()


def test_it_says_version_approver_url_state_and_the_last_releases() -> None:
    shop = pipeline(examples.environment(url="http://shop.example"))
    taken_back = version(State.ROLLED_BACK, "Picks", reason="[gate-failed] smoke failed\nmore")
    text = markdown_summary.environments(shop, [status(releases=(taken_back, version()))])
    assert "| staging | aaaaaaa Sell more | 2026-01-01 09:00 | Ada | whole |" in text
    assert "URL `http://shop.example`" in text
    assert (
        "| 2026-01-01 09:00 | aaaaaaa Picks | rolled-back | Ada | \\[gate-failed\\] smoke failed "
        "| [run](http://127.0.0.1/runs/flow-run/1) |"
    ) in text


def test_an_environment_that_does_not_answer_hides_no_other_one() -> None:
    shop = pipeline(examples.environment(), examples.environment(name="production", namespace="shop-production"))
    text = markdown_summary.environments(shop, [ClusterUnreachable("nobody answers"), status()])
    assert "| staging | unknown |  |  | nobody answers |" in text
    assert "| production | aaaaaaa Sell more |" in text


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("changing", "changing now: aaaaaaa Picks"),
        ("interrupted", "half: aaaaaaa Picks was interrupted; `recover` restores it"),
        ("frozen", "frozen: a rollback failed, a person is needed"),
        ("failed", "left as it is after a failure: aaaaaaa Picks"),
        ("drifted", "whole, but somebody has changed it since"),
        ("damaged", "a record cannot be read, a person is needed"),
        ("whole", "whole"),
    ],
)
def test_what_an_environment_needs_is_said_in_words(condition: str, words: str) -> None:
    assert condition_text(status(condition=condition, newest=version(subject="Picks"))) == words
