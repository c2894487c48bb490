"""What goes on beside the runs while pipelines are served: expiry of unanswered approvals, recovery at the start.

A suspended run has no process that could look at the clock, so somebody else has to end it. Prefect's own limit ends
it, too, but later and under the name Failed.
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

from prefect_cd.tasks.approval import GRACE

_EVERY_SECONDS = 2.0
_log = logging.getLogger("prefect.prefect_cd")


class Housekeeping:
    """A thread beside `serve`; it does nothing that a later look could not do, too."""

    def __init__(self, applications: Sequence[str]) -> None:
        self._applications = list(applications)
        self._to_recover = list(applications)
        self._key = uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            try:
                with get_client(sync_client=True) as client:
                    self._recover(client)
                    for run in self._waiting(client):
                        expire(client, run, datetime.now(timezone.utc))
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                _log.warning("the Prefect server does not answer housekeeping: %s; trying again", error)

    def _recover(self, client: SyncPrefectClient) -> None:
        """Start one recovery of each application, as soon as its deployment is registered."""
        for application in list(self._to_recover):
            try:
                deployment = client.read_deployment_by_name(f"recover/{application}")
            except ObjectNotFound:
                continue
            client.create_flow_run_from_deployment(deployment.id, idempotency_key=f"{self._key}-{application}")
            self._to_recover.remove(application)

    def _waiting(self, client: SyncPrefectClient) -> list[FlowRun]:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"]))),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=self._applications)),
        )


def expire(client: SyncPrefectClient, run: FlowRun, now: datetime) -> None:
    """End a suspended run whose question stood open for as long as the pipeline file allows."""
    limit = run.state.state_details.pause_timeout if run.state else None
    if limit is None or now < limit - GRACE:
        return
    message = "nobody decided in time; nothing was changed. Start the release again."
    state: State[None] = State(type=StateType.FAILED, name="Expired", message=message)
    client.set_flow_run_state(run.id, state, force=True)
    _log.info("%s: %s", run.name, message)
