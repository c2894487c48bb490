"""The commands about a pipeline file: check it, serve it, print the schema of all."""

import argparse
import json
import os
import sys

from prefect_cd.pipeline import load
from prefect_cd.pipeline.describe import describe


def check(asked: argparse.Namespace) -> int:
    """Print the plan in words; complaints are raised."""
    sys.stdout.write(f"{describe(load.load(asked.file))}\n")
    return 0


def serve(asked: argparse.Namespace) -> int:
    """Register the deployments of these files, and run what is started, until interrupted."""
    for path in asked.files:  # complaints come before the seconds that Prefect takes to load
        load.load(path)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect_cd.deployments.serve import serve as run  # noqa: PLC0415  see above

    run(asked.files)
    return 0


def schema(_: argparse.Namespace) -> int:
    """Print the JSON schema of pipeline files."""
    sys.stdout.write(f"{json.dumps(load.schema(), indent=2)}\n")
    return 0


__all__ = ["check", "schema", "serve"]
