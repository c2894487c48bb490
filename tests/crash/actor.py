"""The process that is killed: one release, rollback or recovery, a fork of a process that has imported everything."""

import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["prefect_cd.tasks.deployment", "prefect.flow_engine", "tests.crash.versions", "tests.crash.actor"]


@dataclass(frozen=True)
class Act:
    """What the process does.

    Args:
        name: `release`, `rollback` or `recover`.
        kubeconfig: of the API server that it talks to.
        namespace: of the environment.
        repository: path of the git repository.
        objects: manifests of the version, for a release.
        commit: SHA of the version, for a release.
        log: where its output goes.
    """

    name: str
    kubeconfig: Path
    namespace: str
    repository: Path
    log: Path
    objects: tuple[dict[str, Any], ...] = ()
    commit: str = ""

    def start(self) -> BaseProcess:
        """Start the process."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=perform, args=(self,))
        process.start()
        return process


def perform(act: Act) -> None:
    """In the process: run the flow; exit with 0 when it succeeded, else with 1."""
    with act.log.open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    try:
        _run(act)
    except Exception:  # noqa: BLE001  it is the log's last line
        traceback.print_exc()
        sys.exit(1)


def _run(act: Act) -> None:
    from prefect import flow  # noqa: PLC0415  this module is imported by tests, which need no Prefect
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: PLC0415

    from prefect_cd.tasks import deployment  # noqa: PLC0415
    from prefect_cd.tasks.target import Target  # noqa: PLC0415
    from tests.crash import versions  # noqa: PLC0415

    pipeline = versions.pipeline(str(act.kubeconfig), act.namespace, str(act.repository))
    target = Target.of(pipeline, "production")

    @flow(name=act.name, validate_parameters=False)
    def play() -> None:
        if act.name == "release":
            deployment.deploy(pipeline, target, versions.release(list(act.objects), act.commit, str(act.repository)))
        elif act.name == "rollback":
            deployment.rollback(pipeline, target)
        else:
            deployment.recover(pipeline, target)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        play()
