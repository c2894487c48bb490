"""A record with as little in it as possible, for tests that say the rest."""

from datetime import datetime, timezone
from typing import Any

from prefect_cd.environment.record import Record, State
from prefect_cd.kube.objects import Object

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def record(number: int, state: State, *objects: Object, **changes: Any) -> Record:  # noqa: ANN401
    """A record of shop's environment staging; `changes` are its other fields."""
    fields: dict[str, Any] = {
        "number": number,
        "application": "shop",
        "environment": "staging",
        "state": state,
        "release_id": f"release-{number}",
        "release_hash": str(number) * 64,
        "commit": None,
        "image": None,
        "objects": objects,
        "started_at": NOW,
    }
    return Record(**{**fields, **changes})
