"""Stage: requests while a version comes in, and the judgement of what users saw of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import sleep

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.gates.evidence import Evidence, Outcome, require_passed
from prefect_cd.gates.traffic import limits
from prefect_cd.gates.traffic.load import LoadGenerator
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.resources import Route
from prefect_cd.kube.service_url import open_route
from prefect_cd.pipeline.models import Probe
from prefect_cd.release.model import Release
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

GATE = "zero downtime"
_GOING_BACK = "zero downtime while going back"  # of another name, so that it does not hide why we went


@contextmanager
def probe(planned: Plan) -> Iterator[list[Evidence]]:
    """Send requests through the environment's URL while the block brings a version in, and judge them after it.

    Nothing is sent where the pipeline file asks for no probe, and where nothing runs yet: nobody can lose a request
    there. Going back is probed but not judged, and neither is a rollout that failed by itself: both have a reason of
    their own, and there is nothing better to go back to.

    Args:
        planned: what the block brings in.

    Yields:
        What the gate proved, filled at the block's end; empty when nothing was judged.

    Raises:
        GateFailed: users lost more than the limits allow.
    """
    target, settings = planned.target, planned.target.environment.probe
    proved: list[Evidence] = []
    if settings is None or planned.running is None:
        yield proved
        return
    judged = isinstance(planned.version, Release)
    probing = _probing(target, settings, at_once=not judged)  # going back waits for nothing
    try:
        with probing:
            yield proved
            sleep(settings.after.total_seconds() if judged else 0)
    except BaseException:
        _show(target, probing.seen(), settings, GATE if judged else _GOING_BACK)
        raise
    if judged:
        proved.append(_judge(target, probing.seen(), settings))
    else:
        _show(target, probing.seen(), settings, _GOING_BACK)


@task(name="probe", task_run_name="users of {target.name} during the rollout", cache_policy=NO_CACHE)
def _judge(target: Target, seen: Traffic, settings: Probe) -> Evidence:
    """Only an answer stops a release: what could not be measured is told, and the gates after it decide.

    Where the environment was down before, for example, going back would bring the outage back.
    """
    evidence = _show(target, seen, settings, GATE)
    if evidence.outcome is Outcome.FAILED:
        require_passed(evidence)
    if evidence.outcome is Outcome.ERRORED:
        log().warning("%s could not be measured: %s; %s", GATE, evidence.summary, evidence.hint)
    return evidence


def _show(target: Target, seen: Traffic, settings: Probe, gate: str) -> Evidence:
    evidence = limits.evaluate(gate, seen, settings)
    artifacts.requests(target.application, target.name, evidence, seen)
    log().info("%s: %s", gate, evidence.summary)
    return evidence


def _probing(target: Target, settings: Probe, *, at_once: bool) -> LoadGenerator:
    url = target.environment.url or ""

    @asynccontextmanager
    async def reached() -> AsyncIterator[tuple[Route, str]]:
        async with target.connect() as cluster, open_route(cluster, target.environment.namespace, url) as found:
            yield found

    return LoadGenerator(settings, reached, at_once=at_once)
