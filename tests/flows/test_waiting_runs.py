"""Which runs wait for an approval, as a Prefect server says; without a server, nobody knows."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateDetails
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Paused, State

from prefect_cd.deployments import waiting_runs as module
from prefect_cd.deployments.waiting_runs import waiting_runs


@flow
def release() -> None:
    pass


def run_in(state: "State[None]", *tags: str) -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(release, name="release main", tags=tags, state=state).id


def paused(key: str) -> "State[None]":
    state: State[None] = Paused(pause_key=key, timeout_seconds=60)
    return state.model_copy(update={"state_details": StateDetails(pause_key=key)})


@pytest.mark.usefixtures("prefect_server")
def test_runs_that_wait_for_an_approval_are_listed_with_their_environment() -> None:
    expected = run_in(paused("approve-my-production-0123456789abcdef-0"), "application:waits")
    run_in(paused("approve-staging-0123456789abcdef-0"), "application:another")
    run_in(paused("somebody-asks"), "application:waits")
    run_in(Completed(), "application:waits")
    waiting = waiting_runs("waits")
    assert waiting is not None
    assert [(run.run, run.environment, run.name) for run in waiting] == [
        (str(expected), "my-production", "release main")
    ]


@pytest.fixture
def closed() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        yield


@pytest.mark.usefixtures("closed")
def test_a_server_that_does_not_answer_is_no_error() -> None:
    assert waiting_runs("waits") is None


def test_without_a_server_none_is_started() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert waiting_runs("waits") is None


def test_prefect_is_not_imported_where_it_is_not_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "modules", {})
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for variable in module._VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert not module._is_configured()
    (tmp_path / "profiles.toml").touch()
    assert module._is_configured()
