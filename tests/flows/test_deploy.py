"""What a release does when something fails that no real cluster can be made to show in a short time."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NoReturn

import pytest

from prefect_cd import tasks
from prefect_cd.environment.records import Record, State
from prefect_cd.errors import ClusterUnreachable, DeliveryError, GateFailed, RollbackFailed, RolloutFailed
from prefect_cd.flows.deploy import restore_known_good
from prefect_cd.pipeline.models import Environment
from prefect_cd.tasks.target import Target

TARGET = Target(application="shop", environment=Environment(name="production", namespace="shop", manifests="k8s"))
NOTHING: Any = None


def record(number: int, state: State) -> Record:
    return Record(
        number=number,
        application="shop",
        environment="production",
        state=state,
        release_id=f"release-{number}",
        release_hash="0" * 64,
        commit=None,
        image=None,
        objects=(),
        started_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The states that records were given."""
    states: list[State] = []
    monkeypatch.setattr(tasks, "record_outcome", lambda _target, _record, state, _lock, **_: states.append(state))
    return states


@pytest.fixture
def going_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeliveryError], DeliveryError]:
    """What the run ends with when the way back ends with an error."""

    def end(with_: DeliveryError) -> DeliveryError:
        def fail(*_: object) -> NoReturn:
            raise with_

        monkeypatch.setattr(tasks, "plan", fail)
        tried, good = record(2, State.STARTED), record(1, State.KNOWN_GOOD)
        return restore_known_good(NOTHING, TARGET, tried, good, NOTHING, GateFailed("the shop sells nothing"))

    return end


def test_i4_an_environment_that_cannot_be_reached_is_left_to_recovery_and_not_frozen(
    settled: list[State], going_back: Callable[[DeliveryError], DeliveryError]
) -> None:
    ended = going_back(ClusterUnreachable("the API server does not answer"))
    assert isinstance(ended, ClusterUnreachable)
    assert settled == []  # the record says that it was started: that is what recovery looks for
    assert "the shop sells nothing" in ended.detail
    assert "`recover/shop`" in ended.hint


def test_i4_an_environment_that_could_not_be_brought_back_is_frozen(
    settled: list[State], going_back: Callable[[DeliveryError], DeliveryError]
) -> None:
    ended = going_back(RolloutFailed("its image is gone"))
    assert isinstance(ended, RollbackFailed)
    assert settled == [State.ROLLBACK_FAILED]
