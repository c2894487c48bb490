"""The page that says what runs where: one for each application, with a fixed key, written by every run.

A version of the page is added only where it says something else than the one before, so that the list of its versions
is the history of the environments.
"""

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from pydantic import TypeAdapter, ValidationError

from prefect_cd.environment.status import EnvironmentStatus, read_status
from prefect_cd.errors import DeliveryError
from prefect_cd.kube.client import Cluster
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks import choices, markdown_summary
from prefect_cd.tasks.markdown_summary import EnvironmentRow, environment_row, environments_line
from prefect_cd.tasks.markdown_text import inline
from prefect_cd.tasks.pages import data_of, deciding_nothing, key_of, metadata_of, prefect_client
from prefect_cd.tasks.target import Target

_PATIENCE = timedelta(seconds=5)
"""A page is not worth waiting for a cluster."""
_ROWS = TypeAdapter(tuple[EnvironmentRow, ...])


def read(pipeline: Pipeline, *, compare: bool = False, history: bool = True) -> list[EnvironmentStatus | DeliveryError]:
    """The status of each environment, or why it could not be read, in the order of the pipeline file.

    Args:
        pipeline: has the environments.
        compare: whether to compare their objects with the known-good, which costs a dry run of all of them.
        history: whether to read their last releases, too.
    """
    targets = [Target.of(pipeline, environment.name) for environment in pipeline.environments]
    return [_read(target, compare=compare, history=history) for target in targets]


def _read(target: Target, *, compare: bool, history: bool) -> EnvironmentStatus | DeliveryError:
    async def run(cluster: Cluster) -> EnvironmentStatus:
        return await read_status(cluster, target.ownership, compare=compare, history=history)

    try:
        return target.run(run, patience=_PATIENCE)
    except DeliveryError as error:
        return error


def rows(pipeline: Pipeline) -> tuple[EnvironmentRow, ...]:
    """What runs in each environment now, in a line each."""
    return tuple(
        environment_row(environment.name, answer)
        for environment, answer in zip(pipeline.environments, read(pipeline, history=False), strict=True)
    )


@deciding_nothing
def publish(pipeline: Pipeline, *, compare: bool = False) -> tuple[EnvironmentRow, ...]:
    """Write the page, where it says something new, and the choices of rollbacks; returns the environments' rows.

    Args:
        pipeline: its environments are read.
        compare: as in `read`.
    """
    answers = read(pipeline, compare=compare)
    shown = tuple(environment_row(one.name, answer) for one, answer in zip(pipeline.environments, answers, strict=True))
    page = markdown_summary.environments(pipeline, answers)
    client = prefect_client()
    if _latest_page(client, pipeline.application) != page:
        artifact = ArtifactCreate(
            key=_key(pipeline.application),
            type="markdown",
            description=inline(environments_line(shown)),
            data=page,
            metadata_=metadata_of(_ROWS.dump_json(shown).decode()),
            flow_run_id=UUID(flow_run.id) if flow_run.id else None,
        )
        client.create_artifact(artifact)
    choices.refresh(client, pipeline, answers)
    return shown


def latest(client: SyncPrefectClient, application: str) -> tuple[EnvironmentRow, ...]:
    """What the page says now; empty where there is none."""
    for artifact in client.read_latest_artifacts(artifact_filter=_of(application)):
        try:
            return _ROWS.validate_json(data_of(artifact.metadata_))
        except ValidationError:  # another version of prefect-cd wrote it
            return ()
    return ()


def _latest_page(client: SyncPrefectClient, application: str) -> object:
    return next((one.data for one in client.read_latest_artifacts(artifact_filter=_of(application))), None)


def address(application: str) -> str:
    """Where the page is; empty where Prefect has no UI."""
    ui = PREFECT_UI_URL.value()
    return f"{ui}/artifacts/key/{_key(application)}" if ui else ""


def _of(application: str) -> ArtifactCollectionFilter:
    return ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[_key(application)]))


def _key(application: str) -> str:
    return key_of([application, "environments"])
