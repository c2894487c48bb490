"""Jobs that run beside the flow runs while pipelines are served.

They start one recovery of each application, end approvals that have expired, restore forms that a killed run could not
save, and check that recovery stays scheduled.

A suspended run has no process that could end it when its approval expires. Prefect ends it as well, but later, and
without our outcome.
"""

import contextvars
import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
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
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from typing_extensions import Self

from prefect_cd.deployments.recovery_schedule import RecoverySchedule
from prefect_cd.tasks.approval import GRACE, form_copy
from prefect_cd.tasks.runs import end_waiting

_INTERVAL_SECONDS = 2.0
_FORM_PATIENCE = timedelta(seconds=15)
"""For the process of a run that has just been suspended: it saves the form itself."""
_NOT_FOUND = 404
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
        run = contextvars.copy_context().run  # with the caller's Prefect settings
        self._thread = threading.Thread(target=run, args=[self._run], name="background-jobs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        jobs = (self._start_recoveries, self._recovery_schedule.check, self._check_approvals)
        with get_client(sync_client=True) as client:
            while not self._stop.wait(_INTERVAL_SECONDS):
                for job in jobs:
                    try:
                        job(client)
                    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                        _log.warning("the Prefect server does not answer: %s; trying again", error)
                    except Exception:  # noqa: BLE001  the other jobs go on, and so does this one in the next round
                        _log.exception("a background job failed; trying again")

    def _check_approvals(self, client: SyncPrefectClient) -> None:
        for run in self._suspended_runs(client):
            now = datetime.now(timezone.utc)
            expire(client, run, now)
            restore_form(client, run, now)

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
    message = "there was no decision in time; nothing was changed. Start the release again."
    end_waiting(client, run, StateType.FAILED, "Expired", message)
    _log.info("%s: %s", run.name, message)


def restore_form(client: SyncPrefectClient, run: FlowRun, now: datetime) -> None:
    """Save the form of a suspended run from its copy, where the run's process was killed before it could do that."""
    details = run.state.state_details if run.state else None
    keys = details.run_input_keyset if details else None
    if run.state is None or details is None or not keys or now - run.state.timestamp < _FORM_PATIENCE:
        return
    copy = form_copy(details.pause_key or "")
    for missing, saved in ((keys["schema"], copy["schema"]), (keys["description"], copy["description"])):
        value = _input(client, run, saved) if _input(client, run, missing) is None else None
        if value is not None:
            client.create_flow_run_input(run.id, missing, value)
            _log.info("%s: %s was missing, and is there now", run.name, missing)


def _input(client: SyncPrefectClient, run: FlowRun, key: str) -> str | None:
    try:
        return client.read_flow_run_input(run.id, key)
    except PrefectHTTPStatusError as error:
        if error.response.status_code == _NOT_FOUND:
            return None
        raise
