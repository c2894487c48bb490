"""Pods are rolled out under requests: a careless Deployment loses some, a careful one none, and both are foretold."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.limits import evaluate
from prefect_cd.gates.traffic.load import LoadGenerator
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.client import connect
from prefect_cd.kube.resources import Route
from prefect_cd.kube.service_url import open_route
from prefect_cd.manifests.lint import Rule, lint
from prefect_cd.pipeline.models import ClusterAccess, Probe
from tests.cluster.harness import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ACCESS = ClusterAccess()
IMAGE = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/python:3.11"
SETTINGS = Probe(rate=20, timeout=timedelta(seconds=10))
Kubectl = Callable[..., str]

# listens a second after it starts, as applications do, and ends at once when it is told to
SHOP = """
import http.server, os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Shop(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Version", os.environ["VERSION"])
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
time.sleep(1)
http.server.ThreadingHTTPServer(("", 8000), Shop).serve_forever()
"""
CAREFUL = {
    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    "lifecycle": {"preStop": {"sleep": {"seconds": 12}}},
}


@pytest.fixture
def manifests(namespace: str, objects: Any) -> Callable[..., list[Any]]:
    """The shop in a version, behind a Service of a kind."""

    def make(version: str, kind: str, **container: object) -> list[Any]:
        env = [{"name": "VERSION", "value": version}]
        deployment = objects.deployment(
            namespace, IMAGE, "python3", "-c", SHOP, replicas=2, env=env, ports=[{"containerPort": 8000}], **container
        )
        deployment["spec"]["strategy"] = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30
        return [deployment, objects.service(namespace, kind=kind)]

    return make


def roll_out(namespace: str, kubectl: Kubectl, manifests: list[Any]) -> None:
    for item in manifests:
        kubectl("apply", "-f", "-", stdin=json.dumps(item))
    kubectl("-n", namespace, "rollout", "status", "deployment/shop", "--timeout=90s")


def probed(
    namespace: str, kubectl: Kubectl, first: list[Any], second: list[Any], way: Route
) -> tuple[Traffic, Evidence]:
    """What users see while the second version follows the first, until the first's last pod has ended."""

    @asynccontextmanager
    async def reached() -> AsyncIterator[tuple[Route, str]]:
        async with connect(ACCESS) as cluster, open_route(cluster, namespace, "service/shop") as url:
            yield url

    async def all_answer() -> bool:
        async with reached() as (found, url), httpx.AsyncClient(trust_env=False, timeout=5) as browser:
            try:
                for _ in range(40):  # by new connections, so that both pods are asked
                    await browser.get(url, headers={"Connection": "close"})
            except httpx.TransportError:
                return False
            return found is way

    def pods() -> set[str]:
        return set(kubectl("-n", namespace, "get", "pods", "-o", "name").split())

    roll_out(namespace, kubectl, first)
    # without a readiness probe complete is said before anybody listens
    wait_for(lambda: asyncio.run(all_answer()), "the first version does not answer")
    old = pods()
    with LoadGenerator(SETTINGS, reached) as probing:
        roll_out(namespace, kubectl, second)
        wait_for(lambda: not old & pods(), "its pods do not end", 90)
    seen = probing.seen()
    return seen, evaluate("probe", seen, SETTINGS)


def test_a_careless_deployment_loses_requests_as_foretold(
    namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]
) -> None:
    second = manifests("v2", "NodePort")
    assert {each.hazard for each in lint(second)} == {Rule.NO_READINESS, Rule.NO_PRE_STOP, Rule.NO_BUDGET}
    seen, proved = probed(namespace, kubectl, manifests("v1", "NodePort"), second, Route.ADDRESS)
    assert (proved.outcome, seen.way) == (Outcome.FAILED, Route.ADDRESS), proved.summary
    assert seen.failures.keys() & {"refused", "closed"}
    assert seen.gap > 0
    assert "readinessProbe" in proved.hint


def test_a_careful_one_loses_none(namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]) -> None:
    second = manifests("v2", "NodePort", **CAREFUL)
    assert {each.hazard for each in lint(second)} == {Rule.NO_BUDGET}
    seen, proved = probed(namespace, kubectl, manifests("v1", "NodePort", **CAREFUL), second, Route.ADDRESS)
    assert (proved.outcome, seen.failures) == (Outcome.PASSED, {}), proved.summary
    assert [each.version for each in seen.versions] == ["v1", "v2"]


def test_through_a_port_forward_nothing_is_proved(
    namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]
) -> None:
    first, second = manifests("v1", "ClusterIP"), manifests("v2", "ClusterIP")
    seen, proved = probed(namespace, kubectl, first, second, Route.PORT_FORWARD)
    assert (proved.outcome, seen.way) == (Outcome.ERRORED, Route.PORT_FORWARD)
    assert "node port" in proved.hint
    assert seen.sent > 0
