"""Rollouts under load: a careless Deployment loses requests, a careful one none, and `lint` predicts both."""

# ruff: noqa: ANN401 - the type of a fixture that is a class cannot be imported
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

# listens a second after it starts, as applications do, and exits at once on SIGTERM
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
    """Makes the manifests of one version of the shop, behind a Service of the given type."""

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


def roll_out_under_load(
    namespace: str, kubectl: Kubectl, first: list[Any], second: list[Any], route: Route
) -> tuple[Traffic, Evidence]:
    """What users see while the second version replaces the first, until the first's last pod has ended."""

    @asynccontextmanager
    async def open_service() -> AsyncIterator[tuple[Route, str]]:
        async with connect(ACCESS) as cluster, open_route(cluster, namespace, "service/shop") as route_and_url:
            yield route_and_url

    async def all_answer() -> bool:
        async with open_service() as (current_route, url), httpx.AsyncClient(trust_env=False, timeout=5) as browser:
            try:
                for _ in range(40):  # each on a new connection, so that both pods get some
                    await browser.get(url, headers={"Connection": "close"})
            except httpx.TransportError:
                return False
            return current_route is route

    def pods() -> set[str]:
        return set(kubectl("-n", namespace, "get", "pods", "-o", "name").split())

    roll_out(namespace, kubectl, first)
    # without a readiness probe, the rollout is complete before the pods listen
    wait_for(lambda: asyncio.run(all_answer()), "the first version does not respond")
    old = pods()
    with LoadGenerator(SETTINGS, open_service) as load_generator:
        roll_out(namespace, kubectl, second)
        wait_for(lambda: not old & pods(), "its pods do not end", 90)
    traffic = load_generator.traffic()
    return traffic, evaluate("probe", traffic, SETTINGS)


def test_a_careless_deployment_loses_requests_as_lint_predicts(
    namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]
) -> None:
    second = manifests("v2", "NodePort")
    assert {finding.rule for finding in lint(second)} == {Rule.NO_READINESS, Rule.NO_PRE_STOP, Rule.NO_BUDGET}
    traffic, evidence = roll_out_under_load(namespace, kubectl, manifests("v1", "NodePort"), second, Route.ADDRESS)
    assert (evidence.outcome, traffic.route) == (Outcome.FAILED, Route.ADDRESS), evidence.summary
    assert traffic.failures.keys() & {"refused", "closed"}
    assert traffic.gap > 0
    assert "readinessProbe" in evidence.hint


@pytest.mark.alone  # a core that is busy for long loses requests, too
def test_a_careful_deployment_loses_no_requests(
    namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]
) -> None:
    second = manifests("v2", "NodePort", **CAREFUL)
    assert {finding.rule for finding in lint(second)} == {Rule.NO_BUDGET}
    traffic, evidence = roll_out_under_load(
        namespace, kubectl, manifests("v1", "NodePort", **CAREFUL), second, Route.ADDRESS
    )
    assert (evidence.outcome, traffic.failures) == (Outcome.PASSED, {}), evidence.summary
    assert [version.version for version in traffic.versions] == ["v1", "v2"]


@pytest.mark.alone  # on a busy machine, TLS connections end later than aiohttp waits for
def test_requests_through_a_port_forward_prove_nothing(
    namespace: str, kubectl: Kubectl, manifests: Callable[..., list[Any]]
) -> None:
    first, second = manifests("v1", "ClusterIP"), manifests("v2", "ClusterIP")
    traffic, evidence = roll_out_under_load(namespace, kubectl, first, second, Route.PORT_FORWARD)
    assert (evidence.outcome, traffic.route) == (Outcome.ERRORED, Route.PORT_FORWARD)
    assert "node port" in evidence.hint
    assert traffic.sent > 0
