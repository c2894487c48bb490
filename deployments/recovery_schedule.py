"""Warns when the Prefect server schedules no run of a recovery deployment.

Nothing else shows it: a server whose scheduler fails logs an error of its own each minute, answers every request, and
simply never starts `recover`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

PATIENCE_SECONDS = 120.0
"""Two rounds of the server's scheduler, which looks at all deployments once a minute and at new ones every 5 s
(`PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS` and `…_RECENT_DEPLOYMENTS_LOOP_SECONDS`)."""
_CHECK_EVERY_SECONDS = 15.0

_log = logging.getLogger("prefect.prefect_cd")  # Prefect writes it to stderr


class RecoverySchedule:
    """Checks that each application's recovery has a next run; one warning per outage of the schedule."""

    def __init__(self, applications: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._applications = list(applications)
        self._clock = clock
        self._next_check = clock()
        self._missing_since: dict[str, float] = {}
        self._warned: set[str] = set()

    def check(self, client: SyncPrefectClient) -> None:
        """Warn about each recovery that has had no next run for `PATIENCE_SECONDS`; cheap to call often."""
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + min(_CHECK_EVERY_SECONDS, PATIENCE_SECONDS)
        for application in self._applications:
            try:
                deployment = client.read_deployment_by_name(f"recover/{application}")
            except ObjectNotFound:  # `serve` has not registered it yet
                continue
            self._report(application, now, scheduled=_has_next_run(client, deployment.id))

    def _report(self, application: str, now: float, *, scheduled: bool) -> None:
        if scheduled:
            self._missing_since.pop(application, None)
            if application in self._warned:
                self._warned.remove(application)
                _log.info("recover/%s: the Prefect server schedules runs again", application)
            return
        since = self._missing_since.setdefault(application, now)
        if now - since >= PATIENCE_SECONDS and application not in self._warned:
            self._warned.add(application)
            _log.warning(
                "recover/%s: the Prefect server has scheduled no next run for %.0f s. An interrupted release is now "
                "recovered only by the next release or the next start of `prefect-cd serve`. Check that the "
                "deployment's schedule is active, and search the Prefect server's log for errors of its scheduler.",
                application,
                now - since,
            )


def _has_next_run(client: SyncPrefectClient, deployment: UUID) -> bool:
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
    )
    return any(run.auto_scheduled for run in runs)
