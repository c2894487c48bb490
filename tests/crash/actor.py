"""The process that is killed: one release, rollback or recovery, a fork of a process that has imported everything."""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.crash import mutants

SECONDS = 120
"""No process takes longer: one that does has failed."""
PRELOADED = ["prefect_cd.flows.release", "prefect.flow_engine", "tests.crash.versions", "tests.crash.actor"]


@dataclass(frozen=True)
class Act:
    """What the process does.

    Args:
        name: `release`, `rollback` or `recover`; `flow` for the whole flow `release` of a pipeline file.
        kubeconfig: of the API server that it talks to.
        namespace: of the environment.
        repository: path of the git repository.
        log: where its output goes.
        objects: manifests of the version, for a release.
        commit: SHA of the version, for a release.
        take_over: the environment's key of that name.
        pipeline_file: for a flow.
        prefect: URL of the Prefect API; default: that of the environment.
        quick: a Lease of three seconds, and writes of at most one: the same proportions in less time.
        impatient: a write whose answer does not come is given up after two seconds.
        mutant: a fault in this process only.
    """

    name: str
    kubeconfig: Path
    namespace: str
    repository: str
    log: Path
    objects: tuple[dict[str, Any], ...] = ()
    commit: str = ""
    take_over: bool = False
    pipeline_file: Path | None = None
    prefect: str = ""
    quick: bool = False
    impatient: bool = False
    mutant: str = ""

    def start(self) -> BaseProcess:
        """Start the process."""
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        process = ActProcess(target=perform, args=(self,))
        process.start()
        return process


_asking = threading.Lock()


class ActProcess(ForkServerProcess):
    """A process that several threads may start and wait for at once.

    A start asks all other processes whether they have ended. Of two threads that ask for the same exit code at once,
    one gets it, and the other finds the pipe closed and takes the process for one that was killed: exit code 255.
    """

    def start(self) -> None:
        """Start it."""
        with _asking:
            super().start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for at most `timeout` seconds."""
        connection.wait([self.sentinel], timeout)
        with _asking:
            super().join(0)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        with _asking:
            return super().is_alive()

    @property
    def exitcode(self) -> int | None:
        """As of the base: None while it runs."""
        with _asking:
            return super().exitcode


def perform(act: Act) -> None:
    """In the process: run the flow; exit with 0 when it succeeded, else with 1."""
    with act.log.open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS - 5)  # one that hangs is killed after that
    mutants.mutate(act.mutant)
    _shorten(act)
    if not act.prefect:
        _send_no_events()
    try:
        with _settings(act):
            if not _flow(act)():
                sys.exit(1)
    except Exception:  # noqa: BLE001  it is the log's last line
        traceback.print_exc()
        sys.exit(1)


def _send_no_events() -> None:
    """A server that stores the events of many runs at once refuses new ones for minutes; here, nobody reads them."""
    from prefect.events.clients import NullEventsClient  # noqa: PLC0415
    from prefect.events.worker import EventsWorker  # noqa: PLC0415

    EventsWorker.set_client_override(NullEventsClient)


def _shorten(act: Act) -> None:
    from prefect_cd.environment import lease  # noqa: PLC0415
    from prefect_cd.kube import transport  # noqa: PLC0415

    if act.impatient:
        transport.WRITE_SECONDS = 2
    if act.quick:
        transport.WRITE_SECONDS = lease.WRITE_SECONDS = 1
        lease.DURATION = timedelta(seconds=3)
        lease._RENEW_INTERVAL = timedelta(seconds=0.5)
        lease._ACQUIRE_INTERVAL = timedelta(seconds=0.1)


@contextmanager
def _settings(act: Act) -> Iterator[None]:
    from prefect.settings import (  # noqa: PLC0415  this module is imported by tests, which need no Prefect
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    settings: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    if act.prefect:  # of retries there is one instead of five, which take a minute where nobody answers
        settings |= {PREFECT_API_URL: act.prefect, PREFECT_CLIENT_MAX_RETRIES: 1}
    with temporary_settings(settings):
        yield


def _begun(play: Callable[[], Any]) -> Any:  # noqa: ANN401  a state of Prefect
    """Play a flow; once more where a busy Prefect server did not even take the run."""
    from prefect.exceptions import PrefectHTTPStatusError  # noqa: PLC0415

    for _ in range(10):
        try:
            return play()
        except PrefectHTTPStatusError as error:
            if error.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            time.sleep(1)
    return play()


def _flow(act: Act) -> Callable[[], bool]:
    """What to call; returns whether it succeeded."""
    from prefect import flow  # noqa: PLC0415

    from prefect_cd.flows.release import release  # noqa: PLC0415
    from prefect_cd.tasks import deployment  # noqa: PLC0415
    from prefect_cd.tasks.target import Target  # noqa: PLC0415
    from tests.crash import versions  # noqa: PLC0415

    if act.name == "flow":
        os.environ["PREFECT_CD_PIPELINES"] = str(act.pipeline_file)
        return lambda: _begun(lambda: release(act.commit, return_state=True)).is_completed()

    pipeline = versions.pipeline(str(act.kubeconfig), act.namespace, act.repository, take_over=act.take_over)
    target = Target.of(pipeline, "production")

    @flow(name=act.name, validate_parameters=False)
    def play() -> None:
        if act.name == "release":
            deployment.deploy(pipeline, target, versions.release(list(act.objects), act.commit, act.repository))
        elif act.name == "rollback":
            deployment.rollback(pipeline, target)
        elif error := deployment.recover(pipeline, target):
            sys.stderr.write(f"{error}\n")

    return lambda: play() is None
