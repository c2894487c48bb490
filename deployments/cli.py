"""The command `prefect-cd`: check and serve a pipeline file, show and recover its environments; Roles; verdicts.

Releases are started by Prefect's own means: its UI, `prefect deployment run`, schedules, automations.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from prefect_cd.deployments import terminal
from prefect_cd.errors import DeliveryError, Errored

_NO, _UNKNOWN = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for yes, 1 for no, 2 for could not find out."""
    logging.lastResort = terminal.LastResort(logging.WARNING)
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except DeliveryError as error:
        terminal.write_error(f"{error}\n")
        return _UNKNOWN if isinstance(error, Errored) else _NO
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefect-cd", description="Continuous deployment to Kubernetes as Prefect flows."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check", help="every mistake of a pipeline file by line, or the steps of a release in words"
    )
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument(
        "--deep",
        action="store_true",
        help="also do the preflight of a release: permissions, manifests, and everything that its environments lack, "
        "such as a namespace or a Secret, with the command that creates it; writes nothing to a cluster",
    )
    check.add_argument("--revision", metavar="REV", help="branch, tag or commit for --deep; default: source.branch")
    check.set_defaults(run=_load_later("pipeline_commands", "check"))
    serve = commands.add_parser("serve", help="register release, rollback and recover, and execute their runs")
    serve.add_argument("files", type=Path, nargs="+", metavar="FILE")
    serve.set_defaults(run=_load_later("pipeline_commands", "serve"))
    status = commands.add_parser("status", help="what each environment runs, what is half done, and who is at work")
    status.description = "Exit code: 0 every environment is whole, 1 one needs work, 2 one could not be read."
    status.add_argument("file", type=Path, metavar="FILE")
    _add_output(status)
    status.set_defaults(run=_load_later("status_command", "run"))
    recover = commands.add_parser(
        "recover", help="bring back what an interrupted rollout left, without Prefect's server"
    )
    recover.description = "Exit code: 0 every environment is whole, 1 one is not, 2 one could not be reached in time."
    recover.add_argument("file", type=Path, metavar="FILE")
    recover.add_argument("environment", nargs="?", metavar="ENVIRONMENT", help="default: all of the file")
    recover.add_argument(
        "--sign-records",
        action="store_true",
        help="first sign the records of ENVIRONMENT that have no signature: those from before its record_key was set, "
        "only if you are sure that prefect-cd wrote them; `prefect-cd status` lists them",
    )
    _add_output(recover)
    recover.set_defaults(run=_load_later("recover_command", "run"))
    _add_rollout(
        commands.add_parser("rollout", help="the verdict on rollouts in seconds; replaces `kubectl rollout status`")
    )
    _add_rbac(commands.add_parser("rbac", help="print the Role of each environment: exactly the verbs that are used"))
    schema = commands.add_parser("schema", help="print the JSON schema of pipeline files, for editors")
    schema.set_defaults(run=_load_later("pipeline_commands", "schema"))
    return parser


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.description = "Watch rollouts to their verdict. Exit code: 0 complete, 1 failed, 2 could not find out."
    parser.add_argument("workloads", nargs="+", metavar="KIND/NAME", help="for example deployment/shop")
    parser.add_argument("-n", "--namespace", help="default: that of the kubeconfig's context")
    parser.add_argument("--context", help="default: the kubeconfig's current one")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
    parser.add_argument("--timeout", metavar="TIME", help="a rollout that takes longer has failed; default 10m")
    parser.add_argument(
        "--settle",
        metavar="TIME",
        help="how long a complete rollout is watched, since its pods may crash under the first load; default 30s, "
        "counted from when it became complete",
    )
    _add_output(parser)
    parser.set_defaults(run=_load_later("rollout_command", "run"))


def _add_rbac(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print Roles and RoleBindings as YAML: `prefect-cd rbac pipeline.yaml | kubectl apply -f -`."
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--checkout",
        type=Path,
        metavar="FOLDER",
        help="with the manifests; default: a local repository, or FILE's folder",
    )
    parser.add_argument("--environment", metavar="NAME", help="default: all of them")
    parser.add_argument(
        "--service-account", metavar="NAMESPACE/NAME", default="prefect-cd/prefect-cd", help="default: %(default)s"
    )
    parser.add_argument(
        "--cluster-wide", action="store_true", help="print the ClusterRole with what no Role can grant, instead"
    )
    parser.set_defaults(run=_load_later("rbac_command", "run"))


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="json: one document at the end"
    )


def _load_later(module: str, command: str) -> Callable[[argparse.Namespace], int]:
    """A command whose module is imported when it runs: imports take seconds that other commands need not spend."""

    def run(parsed: argparse.Namespace) -> int:
        return int(getattr(import_module(f"prefect_cd.deployments.{module}"), command)(parsed))

    return run


if __name__ == "__main__":
    sys.exit(main())
