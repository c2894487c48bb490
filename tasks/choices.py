"""The choices in the form that starts a rollback: the environments, and the releases that were good in each of them.

They are the schema of the deployment's parameters, which every run writes anew. They help people in Prefect's UI and
decide nothing: by command, a release id or a record number is as good, and an outdated form is no error.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import timezone

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound

from prefect_cd.environment.record import State
from prefect_cd.environment.status import EnvironmentStatus, Version
from prefect_cd.errors import DeliveryError, Invalid
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks.pages import deciding_nothing
from prefect_cd.untrusted_text import one_line

PREVIOUS = "the known-good before what runs"
"""The choice that stands for no release in particular."""
_LONGEST_SUBJECT = 60
_WERE_GOOD = frozenset({State.KNOWN_GOOD, State.WITHDRAWN})
_CHOICE = re.compile(r"(?P<environment>[^:]+): record (?P<number>\d+): ")

Answer = EnvironmentStatus | DeliveryError


def choice_of(environment: str, version: Version, *, runs: bool) -> str:
    """A release as the form lists it: `production: record 7: 303b6f2 Staff picks (2026-01-01 09:00 UTC)`."""
    subject = one_line(version.commit.subject, _LONGEST_SUBJECT) if version.commit else ""
    title = f"{version.commit.short} {subject}" if version.commit else version.release_id
    since = f"{version.since.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return f"{environment}: record {version.record}: {title} ({since}{', runs now' if runs else ''})"


def release_of(to: str, environment: str) -> str:
    """The release id or record number that a choice stands for; what is no choice stays as it is.

    Args:
        to: what the user chose or wrote.
        environment: that is rolled back.

    Raises:
        Invalid: the chosen release is one of another environment.
    """
    if to == PREVIOUS:
        return ""
    choice = _CHOICE.match(to)
    if choice is None:
        return to.strip()
    if choice["environment"] != environment:
        raise Invalid(
            f"{to!r} is a release of {choice['environment']}, and {environment} is to be rolled back",
            hint=f"choose a release of {environment}, or the other environment",
        )
    return choice["number"]


@deciding_nothing
def refresh(client: SyncPrefectClient, pipeline: Pipeline, answers: Sequence[Answer]) -> None:
    """Write the choices into the deployment `rollback/APPLICATION`, where it exists and has others.

    Args:
        client: of Prefect's server.
        pipeline: the pipeline.
        answers: the status of each of its environments, in their order.
    """
    try:
        deployment = client.read_deployment_by_name(f"rollback/{pipeline.application}")
    except ObjectNotFound:  # the run is no served one
        return
    before = deployment.parameter_openapi_schema or {}
    schema = with_choices(before, [one.name for one in pipeline.environments], releases(answers))
    if schema != before:
        client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))


def releases(answers: Iterable[Answer]) -> list[str]:
    """All choices of releases: the newest of each environment first."""
    return [
        choice_of(answer.environment, version, runs=answer.runs is not None and version.record == answer.runs.record)
        for answer in answers
        if isinstance(answer, EnvironmentStatus)
        for version in answer.releases
        if version.state in _WERE_GOOD
    ]


def with_choices(schema: dict[str, object], environments: Sequence[str], choices: Sequence[str]) -> dict[str, object]:
    """The schema of the parameters with these choices; the last environment is the default. Pure."""
    properties = schema.get("properties")
    fields = dict(properties) if isinstance(properties, dict) else {}
    for name, values, default in (
        ("environment", list(environments), environments[-1]),
        ("to", [PREVIOUS, *choices], PREVIOUS),
    ):
        fields[name] = {**fields.get(name, {}), "type": "string", "enum": values, "default": default}
    return {**schema, "properties": fields}
