"""Which runs wait for an approval: what Prefect's server says, where there is one.

Prefect is imported only where it is configured, since its import takes longer than all the rest of a command.
"""

import os
import sys
from datetime import datetime
from pathlib import Path

from prefect_cd.release.model import Result

_TIMEOUT_SECONDS = 3.0
_PREFIX = "approve-"  # of the keys of questions, see `tasks.approval`
_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE")


class WaitingRun(Result):
    """A flow run that waits for an approval."""

    environment: str
    run: str
    name: str
    since: datetime
    url: str


def waiting_runs(application: str) -> list[WaitingRun] | None:
    """The runs of an application that wait, oldest first; None where no Prefect server answers."""
    if not _is_configured():
        return None
    try:
        return _read(application)
    except Exception:  # noqa: BLE001  whatever Prefect's client may raise: the status is there without it
        return None


def _is_configured() -> bool:
    """Whether there may be an address of a server; without one, Prefect's client would start a server."""
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    files = (home / "profiles.toml", Path("prefect.toml"))
    return "prefect" in sys.modules or any(map(os.environ.get, _VARIABLES)) or any(file.is_file() for file in files)


def _read(application: str) -> list[WaitingRun] | None:
    from prefect.client.orchestration import get_client  # noqa: PLC0415  see above
    from prefect.client.schemas.filters import (  # noqa: PLC0415
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        FlowRunFilterTags,
    )
    from prefect.client.schemas.objects import StateType  # noqa: PLC0415
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415
    from prefect.utilities.urls import url_for  # noqa: PLC0415

    if not PREFECT_API_URL.value():
        return None
    paused = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])),
        tags=FlowRunFilterTags(all_=[f"application:{application}"]),
    )
    with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_SECONDS}) as client:
        runs = client.read_flow_runs(flow_run_filter=paused)
    waiting = [
        WaitingRun(
            environment=environment,
            run=str(run.id),
            name=run.name,
            since=run.state.timestamp,
            url=url_for("flow-run", obj_id=run.id) or "",
        )
        for run in runs
        if run.state and (environment := _environment_of(run.state.state_details.pause_key))
    ]
    return sorted(waiting, key=lambda run: run.since)


def _environment_of(key: str | None) -> str:
    """The environment that a question is about: its key is `approve-ENVIRONMENT-CONTENT-NUMBER`."""
    return key.removeprefix(_PREFIX).rsplit("-", 2)[0] if key and key.startswith(_PREFIX) else ""
