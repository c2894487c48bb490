"""What a run does to runs in Prefect: tags, and the end of older ones that still wait for an approval."""

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow, tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.states import Running, Suspended

from prefect_cd.release.model import Commit
from prefect_cd.tasks import runs
from prefect_cd.tasks.runs import end, end_waiting, show, supersede_older, title_of, waiting_title
from tests.cluster.harness import Server
from tests.tasks import examples
from tests.tasks.conftest import Run
from tests.tasks.examples import GitRepository, pipeline


@flow(name="release")
def waiting() -> None:
    """A release that waits."""


@pytest.fixture
def client(prefect_server: Server) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def deployment(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """A deployment that the running flow belongs to."""
    made = client.create_deployment(client.create_flow(waiting), f"shop-{id(monkeypatch)}")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(made))
    return made


def start(client: SyncPrefectClient, deployment: UUID, commit: Commit, state: State[Any] | None = None) -> FlowRun:
    """A run that releases this commit and waits for an approval."""
    started = client.create_flow_run_from_deployment(deployment, tags=[f"commit:{commit.short}"])
    client.set_flow_run_state(started.id, state or Suspended(timeout_seconds=60), force=True)
    return started


def states(client: SyncPrefectClient, *runs: FlowRun) -> list[str | None]:
    return [client.read_flow_run(run.id).state_name for run in runs]


def test_a_run_is_tagged_besides_the_tags_that_it_has(run: Callable[[Callable[[], Any]], Run]) -> None:
    def work() -> None:
        show("", "application:shop")
        show("", "commit:aaaaaaa", "application:shop")

    with tags("night"):
        played = run(work)
    assert sorted(played.tags) == ["application:shop", "commit:aaaaaaa", "night"]


def test_outside_of_a_run_there_is_nothing_to_tag() -> None:
    show("", "application:shop")


def test_a_run_that_prefects_server_does_not_tag_goes_on(
    run: Callable[[Callable[[], Any]], Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(**_: object) -> None:
        raise httpx.ConnectError("connection refused")

    def work() -> None:
        monkeypatch.setattr(runs, "prefect_client", unreachable)
        show("", "application:shop")

    played = run(work)
    assert played.state.is_completed()
    assert played.tags == []
    assert "does not show the name or tags of this run (application:shop): connection refused" in caplog.text


def test_i8_an_older_release_that_waits_is_ended_and_says_by_which_commit(
    client: SyncPrefectClient, deployment: UUID, repository: GitRepository
) -> None:
    older, newer = repository.commit({"app": "1"}), repository.commit({"app": "2"})
    waits = start(client, deployment, older)
    supersede_older(pipeline(repository=repository.path), newer)
    ended = client.read_flow_run(waits.id).state
    assert ended is not None
    assert (ended.type, ended.name) == (StateType.CANCELLED, "Cancelled")
    assert ended.message == f"Superseded: {newer.short} contains {older.short} and asks in its place"


def test_a_newer_release_the_same_commit_and_another_branch_go_on_waiting(
    client: SyncPrefectClient, deployment: UUID, repository: GitRepository
) -> None:
    candidate = repository.commit({"app": "1"})
    newer = repository.commit({"app": "2"})
    repository.git("checkout", "--quiet", "-b", "other", candidate.sha)
    other = repository.commit({"app": "3"})
    repository.git("checkout", "--quiet", "main")
    runs = [start(client, deployment, commit) for commit in (candidate, newer, other)]
    supersede_older(pipeline(repository=repository.path), candidate)
    assert states(client, *runs) == ["Suspended"] * 3


def test_a_release_that_does_not_wait_and_the_run_itself_go_on(
    client: SyncPrefectClient, deployment: UUID, repository: GitRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = repository.commit({"app": "1"}), repository.commit({"app": "2"})
    writes = start(client, deployment, older, Running())
    itself = start(client, deployment, older)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(itself.id))
    supersede_older(pipeline(repository=repository.path), newer)
    assert states(client, writes, itself) == ["Running", "Suspended"]


def test_runs_of_other_deployments_are_left_alone(
    client: SyncPrefectClient, deployment: UUID, repository: GitRepository
) -> None:
    older, newer = repository.commit({"app": "1"}), repository.commit({"app": "2"})
    another = client.create_deployment(client.create_flow(waiting), f"blog-{deployment}")
    waits = start(client, another, older)
    supersede_older(pipeline(repository=repository.path), newer)
    assert states(client, waits) == ["Suspended"]


def test_a_run_without_a_deployment_supersedes_nothing(repository: GitRepository, home: Any) -> None:  # noqa: ANN401
    supersede_older(pipeline(repository=repository.path), repository.commit({"app": "1"}))
    assert not home.exists()


# --- the name of a run, and its outcome ------------------------------------------------------------------------------


def test_a_run_is_named_by_commit_subject_and_environment() -> None:
    commit = examples.commit(subject="Staff picks")
    assert title_of(commit, "production") == f"{commit.short} Staff picks → production"
    hostile = title_of(examples.commit(subject="\x1b[2J" + "x" * 500))
    assert "\x1b" not in hostile
    assert len(hostile) < 45


def test_a_run_that_waits_says_until_when_and_what_to_press() -> None:
    until = datetime(2026, 12, 1, 9, 5, tzinfo=timezone.utc)
    assert (
        waiting_title("abc Picks → production", until)
        == "abc Picks → production: approve until Dec 01 09:05 UTC (Resume)"
    )


def test_the_outcome_is_in_the_name_of_a_run_and_its_only_outcome_tag(run: Callable[[Callable[[], Any]], Run]) -> None:
    def work() -> None:
        for outcome in ("Errored", "Rolled back"):  # the run was retried
            show("abc Picks → production")
            end(outcome)

    with tags("night"):
        played = run(work)
    assert played.name == "abc Picks → production: rolled back"
    assert sorted(played.tags) == ["night", "outcome:rolled-back"]


def test_a_run_that_completed_keeps_its_name_and_waits_no_more(run: Callable[[Callable[[], Any]], Run]) -> None:
    def work() -> None:
        show(waiting_title("abc Picks → production", datetime(2026, 1, 1, tzinfo=timezone.utc)))
        end("Completed")

    played = run(work)
    assert (played.name, played.tags) == ("abc Picks → production", ["outcome:completed"])


@pytest.fixture
def events() -> Iterator[Callable[[str], list[str]]]:
    """What automations would be told: the ids of the resources that are related to the events of this name."""
    AssertingEventsClient.reset()
    EventsWorker.set_client_override(AssertingEventsClient)

    def related(name: str) -> list[str]:
        EventsWorker.drain_all()
        sent = [event for client in AssertingEventsClient.all for event in client.events]
        return [resource.id for event in sent if event.event == name for resource in event.related]

    yield related
    EventsWorker.set_client_override(None)


def test_automations_get_an_event_for_each_outcome(
    run: Callable[[Callable[[], Any]], Run], events: Callable[[str], list[str]]
) -> None:
    played = run(lambda: end("Rolled back"))
    assert f"prefect.flow-run.{played.id}" in events("prefect-cd.tests.rolled-back")


def test_automations_get_an_event_for_a_run_that_ends_while_it_waits(
    client: SyncPrefectClient, deployment: UUID, events: Callable[[str], list[str]]
) -> None:
    waits = start(client, deployment, examples.commit())
    end_waiting(client, waits, StateType.FAILED, "Expired", "there was no decision in time")
    assert events("prefect-cd.release.expired") == [f"prefect.flow-run.{waits.id}"]
