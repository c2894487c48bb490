"""The command `prefect-cd`: check a pipeline file, serve it, print the schema.

Releases are started by Prefect's own means: its UI, `prefect deployment run`, schedules, automations.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect_cd.errors import DeliveryError, Errored
from prefect_cd.pipeline_file import load, schema
from prefect_cd.plan import describe

_OK, _NO, _UNKNOWN = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for yes, 1 for no, 2 for could not find out."""
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except DeliveryError as error:
        sys.stderr.write(f"{error}\n")
        return _UNKNOWN if isinstance(error, Errored) else _NO
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefect-cd", description="Continuous deployment to Kubernetes as Prefect flows."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="complaints about a pipeline file by line, or the plan in words")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=_check)
    serve = commands.add_parser("serve", help="register release, rollback and recover, and run what is started")
    serve.add_argument("files", type=Path, nargs="+", metavar="FILE")
    serve.set_defaults(run=_serve)
    printed = commands.add_parser("schema", help="print the JSON schema of pipeline files, for editors")
    printed.set_defaults(run=_schema)
    return parser


def _check(asked: argparse.Namespace) -> int:
    sys.stdout.write(f"{describe(load(asked.file))}\n")
    return _OK


def _serve(asked: argparse.Namespace) -> int:
    for path in asked.files:  # complaints come before the seconds that Prefect takes to load
        load(path)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect_cd.deployments.serve import serve  # noqa: PLC0415  see above

    serve(asked.files)
    return _OK


def _schema(_: argparse.Namespace) -> int:
    sys.stdout.write(f"{json.dumps(schema(), indent=2)}\n")
    return _OK


if __name__ == "__main__":
    sys.exit(main())
