"""Stage: requests during a rollout, and the gate that judges what became of them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import sleep

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.environment.record import Record
from prefect_cd.gates.evidence import Evidence, Outcome, require_passed
from prefect_cd.gates.traffic import limits
from prefect_cd.gates.traffic.load import LoadGenerator
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.client import connect
from prefect_cd.kube.resources import Route
from prefect_cd.kube.service_url import open_route
from prefect_cd.pipeline.models import Probe
from prefect_cd.release.model import Release
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.summary import listed
from prefect_cd.tasks.target import Target

GATE = "zero downtime"
_DURING_ROLLBACK = "zero downtime during the rollback"
"""A name of its own: the gate that failed the release keeps its artifact."""


@contextmanager
def probe(planned: Plan) -> Iterator[list[Evidence]]:
    """Send requests through the environment's URL while the block rolls a version out, and judge them afterwards.

    Sends nothing where the pipeline file has no probe, and where nothing runs yet, so that there are no users. A
    rollback is measured but not judged: it must go on, and there is no better version to return to. A rollout that
    failed is not judged either: it has failed already.

    Args:
        planned: what the block rolls out.

    Yields:
        What the gate proved, filled at the block's end; empty when nothing was judged.

    Raises:
        GateFailed: more requests were lost than the limits allow.
    """
    judged = isinstance(planned.version, Release)
    with _requests(planned.target, has_users=planned.running is not None, judged=judged) as proved:
        yield proved


@contextmanager
def measure(target: Target, base: Record) -> Iterator[None]:
    """Send requests while the block brings the environment back to `base`, and show what became of them."""
    with _requests(target, has_users=bool(base.objects), judged=False):
        yield


@contextmanager
def _requests(target: Target, *, has_users: bool, judged: bool) -> Iterator[list[Evidence]]:
    settings = target.environment.probe
    proved: list[Evidence] = []
    if settings is None or not has_users:
        yield proved
        return
    load = _load(target, settings, skip_baseline=not judged)  # a rollback does not wait for a measurement before it
    gate = GATE if judged else _DURING_ROLLBACK
    try:
        with load:
            yield proved
            sleep(settings.after.total_seconds() if judged else 0)
    except BaseException:
        _show_undecided(target, load, settings, gate)
        raise
    if judged:
        proved.append(_judge(target, load.traffic(), settings))
    else:
        _show_undecided(target, load, settings, gate)


@task(name="probe", task_run_name="users of {target.name} during the rollout", cache_policy=NO_CACHE)
@listed
def _judge(target: Target, traffic: Traffic, settings: Probe) -> Evidence:
    """Only an answer stops a release: where nothing could be measured, the gates after it decide.

    Where the environment was down before, for example, a rollback would only restore the outage.
    """
    evidence = _show(target, traffic, settings, GATE)
    if evidence.outcome is Outcome.FAILED:
        require_passed(evidence)
    if evidence.outcome is Outcome.ERRORED:
        log().warning("%s could not be measured: %s; %s", GATE, evidence.summary, evidence.hint)
    return evidence


def _show_undecided(target: Target, load: LoadGenerator, settings: Probe, gate: str) -> None:
    """Show the requests of a rollout that they decide nothing about; an error here must not hide its outcome."""
    try:
        _show(target, load.traffic(), settings, gate)
    except Exception as error:  # noqa: BLE001  whatever it is, it is about a page only
        log().warning("%s could not be measured: %s", gate, error)


def _show(target: Target, traffic: Traffic, settings: Probe, gate: str) -> Evidence:
    evidence = limits.evaluate(gate, traffic, settings)
    artifacts.requests(target.application, target.name, evidence, traffic)
    log().info("%s: %s", gate, evidence.summary)
    return evidence


def _load(target: Target, settings: Probe, *, skip_baseline: bool) -> LoadGenerator:
    url = target.environment.url or ""

    @asynccontextmanager
    async def route() -> AsyncIterator[tuple[Route, str]]:
        # a connection of its own: the load generator has a thread and an event loop of its own
        async with connect(target.access()) as cluster, open_route(cluster, target.environment.namespace, url) as found:
            yield found

    return LoadGenerator(settings, route, skip_baseline=skip_baseline)
