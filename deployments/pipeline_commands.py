"""The commands that read pipeline files: `check` and `serve`; and `schema`, which prints their schema."""

import argparse
import json
import os

from prefect_cd.deployments import terminal
from prefect_cd.pipeline import load
from prefect_cd.pipeline.describe import describe


def check(options: argparse.Namespace) -> int:
    """Print in words what the pipeline does.

    Raises:
        InvalidPipeline: the file has mistakes.
    """
    terminal.write(f"{describe(load.load(options.file))}\n")
    return 0


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
