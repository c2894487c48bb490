"""The background jobs of `serve` and the recovery after a crash, with a real Prefect server."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed, Failed, State, StateDetails

from prefect_cd.deployments import background
from prefect_cd.deployments.background import expire
from prefect_cd.deployments.recovery_schedule import RecoverySchedule
from prefect_cd.deployments.serve import deployments_of
from prefect_cd.errors import ClusterUnreachable, GateFailed, RolledBack
from prefect_cd.flows.outcome import message_of
from prefect_cd.flows.recover import recover, start_recovery
from prefect_cd.flows.release import release
from prefect_cd.flows.rollback import rollback
from prefect_cd.pipeline.load import load
from prefect_cd.tasks.approval import GRACE
from tests.cluster.harness import Server, wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("prefect_server")]
NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def client(prefect_server: Server) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def deployments(pipeline_file: Path) -> dict[str, UUID]:
    """Flow name -> id of the registered deployment."""
    return {deployment.flow_name: deployment.apply() for deployment in deployments_of(load(pipeline_file))}


def suspended(client: SyncPrefectClient, deployment: UUID, until: datetime) -> FlowRun:
    """A run that waits for an approval."""
    run = client.create_flow_run_from_deployment(deployment)
    details = StateDetails(pause_timeout=until, pause_key="approve")
    state: State[None] = State(type=StateType.PAUSED, name="Suspended", state_details=details)
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


@pytest.mark.parametrize(("seconds", "name"), [(-1, "Suspended"), (0, "Expired"), (3600, "Expired")])
def test_an_approval_ends_when_it_expires_and_not_before(
    client: SyncPrefectClient, deployments: dict[str, UUID], seconds: int, name: str
) -> None:
    run = suspended(client, deployments["release"], until=NOW + GRACE)
    expire(client, run, NOW + timedelta(seconds=seconds))
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert name_of(client, run) == name
    assert state.is_failed() == (name == "Expired")


@pytest.mark.parametrize("flow", [release, rollback])
@pytest.mark.parametrize("hooks", ["on_crashed_hooks", "on_cancellation_hooks", "on_failure_hooks"])
def test_a_run_that_writes_to_a_cluster_is_recovered_when_it_does_not_end_by_itself(flow: object, hooks: str) -> None:
    assert start_recovery in getattr(flow, hooks)


def recoveries(client: SyncPrefectClient, deployments: dict[str, UUID]) -> set[UUID]:
    """The recoveries that were started; other tests use the same server."""
    runs = [run for run in client.read_flow_runs() if run.deployment_id == deployments["recover"]]
    return {run.id for run in runs if not run.auto_scheduled}


def test_a_crash_starts_one_recovery(client: SyncPrefectClient, deployments: dict[str, UUID]) -> None:
    before = recoveries(client, deployments)
    run = client.create_flow_run_from_deployment(deployments["release"])
    crashed = Crashed()
    for _ in range(2):  # the run and the runner may both call the hook of a crash
        start_recovery(release, run, crashed)
    assert len(recoveries(client, deployments) - before) == 1


@pytest.mark.parametrize(
    ("state", "count"),
    [
        (Failed(message="Flow run encountered an exception: ZeroDivisionError: division by zero"), 1),
        (Failed(message=message_of(ClusterUnreachable("it does not answer"))), 1),
        (Failed(message=message_of(RolledBack("the gate failed"))), 0),
        (Failed(message=message_of(GateFailed("E2E failed"))), 0),
    ],
    ids=lambda value: str(value.message).partition(":")[0] if isinstance(value, State) else str(value),
)
def test_a_failure_starts_a_recovery_only_where_the_run_did_not_put_things_right(
    client: SyncPrefectClient, deployments: dict[str, UUID], state: State[None], count: int
) -> None:
    before = recoveries(client, deployments)
    start_recovery(release, client.create_flow_run_from_deployment(deployments["release"]), state)
    assert len(recoveries(client, deployments) - before) == count


def name_of(client: SyncPrefectClient, run: FlowRun) -> str:
    """The name of the run's state, or the outcome, where it has ended."""
    state = client.read_flow_run(run.id).state
    return (state.message or "").partition(": ")[0] or str(state.name) if state else ""


def test_a_background_job_that_fails_is_repeated_and_stops_no_other(
    client: SyncPrefectClient, deployments: dict[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = threading.Semaphore(0)

    def fail(*_: object) -> None:
        attempts.release()
        raise RuntimeError("a surprise")

    monkeypatch.setattr(background, "_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(RecoverySchedule, "check", fail)
    run = suspended(client, deployments["release"], until=NOW)
    with background.BackgroundJobs(["shop"]):
        assert attempts.acquire(timeout=50)
        assert attempts.acquire(timeout=50)
        wait_for(lambda: name_of(client, run) == "Expired", lambda: name_of(client, run), 100)


def test_the_crash_of_a_run_without_a_deployment_starts_no_recovery(client: SyncPrefectClient) -> None:
    run = client.create_flow_run(recover)
    before = len(client.read_flow_runs())
    start_recovery(release, run, Crashed())
    assert len(client.read_flow_runs()) == before
