"""Jobs that run beside the flow runs while pipelines are served.

They start one recovery of each application, end approvals that have expired, and check that recovery stays scheduled.

A suspended run has no process that could end it when its approval expires. Prefect ends it as well, but later, and with
the state name Failed.
"""

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from types import TracebackType
from uuid import uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from typing_extensions import Self

from prefect_cd.deployments.recovery_schedule import RecoverySchedule
from prefect_cd.tasks.approval import GRACE

_INTERVAL_SECONDS = 2.0
_log = logging.getLogger("prefect.prefect_cd")


class BackgroundJobs:
    """Runs the jobs in a thread for as long as the context is open.

    Each job can be repeated: when the server does not answer, the next round does what this one could not.
    """

    def __init__(self, applications: Sequence[str]) -> None:
        self._applications = list(applications)
        self._to_recover = list(applications)
        self._id = uuid4().hex
        self._recovery_schedule = RecoverySchedule(applications)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="background-jobs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        jobs = (self._start_recoveries, self._recovery_schedule.check, self._expire_approvals)
        with get_client(sync_client=True) as client:
            while not self._stop.wait(_INTERVAL_SECONDS):
                for job in jobs:
                    try:
                        job(client)
                    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                        _log.warning("the Prefect server does not answer: %s; trying again", error)
                    except Exception:  # noqa: BLE001  the other jobs go on, and so does this one in the next round
                        _log.exception("a background job failed; trying again")

    def _expire_approvals(self, client: SyncPrefectClient) -> None:
        for run in self._suspended_runs(client):
            expire(client, run, datetime.now(timezone.utc))

    def _start_recoveries(self, client: SyncPrefectClient) -> None:
        """Start one recovery of each application, as soon as `serve` has registered its deployment."""
        for application in list(self._to_recover):
            try:
                deployment = client.read_deployment_by_name(f"recover/{application}")
            except ObjectNotFound:
                continue
            # the key makes the call safe to repeat when its response was lost
            client.create_flow_run_from_deployment(deployment.id, idempotency_key=f"{self._id}-{application}")
            self._to_recover.remove(application)

    def _suspended_runs(self, client: SyncPrefectClient) -> list[FlowRun]:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"]))),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=self._applications)),
        )


def expire(client: SyncPrefectClient, run: FlowRun, now: datetime) -> None:
    """End a suspended run whose approval has expired."""
    timeout = run.state.state_details.pause_timeout if run.state else None
    # Prefect's own timeout is later by GRACE than what the pipeline file allows
    if timeout is None or now < timeout - GRACE:
        return
    message = "the approval expired without a decision; nothing was changed. Start the release again."
    state: State[None] = State(type=StateType.FAILED, name="Expired", message=message)
    client.set_flow_run_state(run.id, state, force=True)
    _log.info("%s: %s", run.name, message)
