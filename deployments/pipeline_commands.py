"""The commands that read pipeline files: `check` and `serve`; and `schema`, which prints their schema."""

import argparse
import json
import os

from prefect_cd.deployments import terminal
from prefect_cd.errors import Invalid
from prefect_cd.pipeline import load
from prefect_cd.pipeline.describe import describe
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Commit


def check(options: argparse.Namespace) -> int:
    """Print in words what the pipeline does; with `--deep`, do the preflight of a release, too.

    Raises:
        InvalidPipeline: the file has mistakes.
        RequirementMissing: the environments lack what the release needs.
        DeliveryError: any other that preflight raises.
    """
    pipeline = load.load(options.file)
    if options.revision and not options.deep:
        raise Invalid("--revision is for --deep", hint=f"prefect-cd check {options.file} --deep --revision …")
    terminal.write(f"{describe(pipeline)}\n")
    if options.deep:
        commit = _preflight(pipeline, options.revision or pipeline.source.branch)
        names = ", ".join(environment.name for environment in pipeline.environments)
        terminal.write(f"preflight: a release of {commit.short} ({commit.subject}) can start in {names}\n")
    return 0


def _preflight(pipeline: Pipeline, revision: str) -> Commit:
    """What the first stages of a release check, without a run; nothing is written to a cluster."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect_cd.tasks.connection import CONNECTIONS  # noqa: PLC0415  imports Prefect, which takes seconds
    from prefect_cd.tasks.preconditions import preflight  # noqa: PLC0415
    from prefect_cd.tasks.source import resolve  # noqa: PLC0415

    try:
        commit = resolve.fn(pipeline, revision)
        preflight.fn(pipeline, commit)
    finally:
        CONNECTIONS.close()
    return commit


def serve(options: argparse.Namespace) -> int:
    """Register the deployments of the files and execute their runs until interrupted."""
    for path in options.files:  # report mistakes before Prefect is imported, which takes seconds
        load.load(path)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect_cd.deployments.serve import serve as serve_files  # noqa: PLC0415  see above

    serve_files(options.files)
    return 0


def schema(_: argparse.Namespace) -> int:
    """Print the JSON schema of pipeline files."""
    terminal.write(f"{json.dumps(load.schema(), indent=2)}\n")
    return 0


__all__ = ["check", "schema", "serve"]
