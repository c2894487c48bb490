"""The pipeline file that a run uses: the operator's; neither the commit nor a parameter chooses it.

Whoever starts a run chooses its parameters. So the files that decide about approvals and credentials are named by an
environment variable of the process that serves the flow.
"""

import os
from pathlib import Path
from typing import NamedTuple

from prefect.runtime import deployment

from prefect_cd.errors import InvalidPipeline
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Pipeline

PIPELINES = "PREFECT_CD_PIPELINES"
"""Variable with the paths of the served pipeline files, separated by `os.pathsep`."""


class Served(NamedTuple):
    """A pipeline, and the file that it was read from."""

    pipeline: Pipeline
    file: Path


def pipeline() -> Served:
    """The pipeline that belongs to the running deployment, which has the application's name.

    Raises:
        InvalidPipeline: none is served under this name, or the file has become invalid.
    """
    paths = [Path(path) for path in os.environ.get(PIPELINES, "").split(os.pathsep) if path]
    application = deployment.name
    broken: list[InvalidPipeline] = []
    for path in paths:
        try:
            loaded = load(path)
        except InvalidPipeline as error:  # it may be another application's file
            broken.append(error)
            continue
        if loaded.application == application or (not application and len(paths) == 1):
            return Served(loaded, path)
    if broken:
        raise broken[0]
    raise InvalidPipeline(
        f"no pipeline file for {application or 'a run without a deployment'}",
        where=f"${PIPELINES}",
        hint="start it with `prefect-cd serve FILE`, or set the variable to the file's path",
    )
