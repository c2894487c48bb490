"""The form of a suspended run: it can be answered however the run's process ended."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import resume_flow_run
from prefect.settings import get_current_settings

from prefect_cd.deployments.background import restore_form
from prefect_cd.deployments.serve import deployments_of
from prefect_cd.flows.release import release
from prefect_cd.pipeline.load import load

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("prefect_server")]
ASKING = """\
import os, signal, sys
from datetime import timedelta
from uuid import UUID
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect_cd.tasks import approval

with get_client(sync_client=True) as client:
    run = client.read_flow_run(UUID(sys.argv[1]))
    save = approval.ApprovalForm.save.__func__

    def save_or_die(form, *arguments):
        if arguments[0]["schema"].startswith("suspended-"):
            os.kill(os.getpid(), signal.SIGKILL)
        save(form, *arguments)

    approval.ApprovalForm.save = classmethod(save_or_die)

    @flow(name="release", persist_result=True)
    def asking(revision: str = "") -> None:
        approval._ask("approve-production-0", "What is approved", timedelta(hours=1), "production")

    run_flow(asking, flow_run=run)
"""


def test_i5_a_run_that_is_killed_when_it_has_just_been_suspended_can_be_answered(pipeline_file: Path) -> None:
    deployment = next(one for one in deployments_of(load(pipeline_file)) if one.flow_name == release.name)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(UUID(str(deployment.apply())))
        api = get_current_settings().api.url
        environment = {
            **os.environ,
            "PREFECT_API_URL": str(api),
            "PREFECT__RUNTIME__DEPLOYMENT__ID": str(deployment.name),
        }
        died = subprocess.run([sys.executable, "-c", ASKING, str(run.id)], env=environment, check=False)
        assert died.returncode == -signal.SIGKILL
        suspended = client.read_flow_run(run.id)
        assert suspended.state is not None
        assert suspended.state.name == "Suspended"
        keys = suspended.state.state_details.run_input_keyset or {}
        restore_form(client, suspended, suspended.state.timestamp)  # its process may be about to save it
        with pytest.raises(PrefectHTTPStatusError):
            client.read_flow_run_input(run.id, keys["schema"])
        for _ in range(2):
            restore_form(client, suspended, suspended.state.timestamp + timedelta(minutes=1))
        assert "What is approved" in client.read_flow_run_input(run.id, keys["description"])
    resume_flow_run(run.id, run_input={"decision": "approve", "name": "approver one"})
    with get_client(sync_client=True) as client:
        resumed = client.read_flow_run(run.id).state
    assert resumed is not None
    assert resumed.is_scheduled()
