"""The way back is checked with the plan of a release, on a fake API server and a small registry."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.record import Record, State
from prefect_cd.environment.way_back import Obstacle, WayBackFinding
from prefect_cd.errors import NoWayBack
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import BuiltImage, Release
from prefect_cd.tasks.changes import Plan, plan, refuse_blocked
from prefect_cd.tasks.objects import apply
from prefect_cd.tasks.record import record_outcome, record_start
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import commit, config_map, deployment, pipeline, plan_of, record, verified
from tests.unit.fake_api import FakeApi

GOOD, NEW = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


class Registry(BaseHTTPRequestHandler):
    """Has the manifests of these digests."""

    digests: set[str]
    requests: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        self.requests.append(self.path)
        self.send_response(200 if digest in self.digests else 404)
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Shop:
    """An environment in which a first version is known-good, and plans of a second one."""

    def __init__(self, target: Target, lock: Any, registry: str) -> None:  # noqa: ANN401
        self.target, self._lock, self._name = target, lock, f"{registry}/shop"

    def release(self, digest: str, *objects: Object, sha: str) -> Release:
        image = BuiltImage(name=self._name, digest=digest, built=True)
        manifests = {"staging": objects or (deployment(reference=image.reference),)}
        return Release(application="shop", commit=commit(sha * 40), image=image, manifests=manifests)

    def runs(self, *objects: Object, digest: str = GOOD) -> None:
        planned = plan.fn(self.target, self.release(digest, *objects, sha="a"))
        started = record_start.fn(planned, self._lock)
        apply.fn(planned, self._lock)
        record_outcome.fn(self.target, verified(self.target, started.record, self._lock), State.KNOWN_GOOD, self._lock)

    def plan(self, *objects: Object, digest: str = NEW) -> Plan:
        return plan.fn(self.target, self.release(digest, *objects, sha="b"))


@pytest.fixture
def registry() -> Iterator[type[Registry]]:
    class Fresh(Registry):
        digests, requests = {GOOD, NEW}, []

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        Fresh.address = f"127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        yield Fresh
        server.shutdown()
        thread.join()


@pytest.fixture
def shop(target: Target, lock: Any, registry: Any) -> Shop:  # noqa: ANN401
    return Shop(target, lock, registry.address)


def obstacles(planned: Plan) -> list[tuple[Obstacle, str]]:
    return [(finding.obstacle, finding.where) for finding in planned.way_back]


def test_a_way_back_that_is_open_is_no_finding(shop: Shop, registry: type[Registry], api: FakeApi) -> None:
    shop.runs()
    api.requests.clear()
    registry.requests.clear()
    assert shop.plan().way_back == ()
    assert sorted(registry.requests) == [f"/v2/shop/manifests/{GOOD}", f"/v2/shop/manifests/{NEW}"]
    assert api.writes == []


def test_a_first_release_has_no_way_back_and_one_that_changes_nothing_asks_nothing(
    shop: Shop, registry: type[Registry], api: FakeApi
) -> None:
    assert shop.plan().way_back == ()
    shop.runs()
    registry.requests.clear()
    api.requests.clear()
    same = plan.fn(shop.target, shop.release(GOOD, sha="a"))
    assert (same.already_runs, same.way_back, registry.requests) == (True, (), [])
    assert api.lists("resourcequotas") == []
    assert sum("dryRun" in query for _, query in api.requests) == 1  # of the plan itself


def test_where_no_pod_changes_neither_registry_nor_quotas_are_asked(
    shop: Shop, registry: type[Registry], api: FakeApi
) -> None:
    shop.runs(config_map(greeting="hello"))
    assert shop.plan(config_map(greeting="good day")).way_back == ()
    assert (registry.requests, api.lists("resourcequotas")) == ([], [])


def test_an_image_that_is_gone_is_named_by_digest(shop: Shop, registry: type[Registry]) -> None:
    shop.runs()
    registry.digests = {NEW}
    planned = shop.plan()
    ((obstacle, where),) = obstacles(planned)
    assert obstacle is Obstacle.IMAGE
    assert where.endswith(f"/shop@{GOOD}")


def test_a_registry_that_does_not_answer_leaves_it_open(shop: Shop, target: Target, lock: Any) -> None:  # noqa: ANN401
    closed = Shop(target, lock, "127.0.0.1:1")
    closed.runs()
    planned = closed.plan()
    assert [finding.obstacle for finding in planned.way_back] == [Obstacle.UNKNOWN]
    assert "does not answer" in planned.way_back[0].summary
    assert shop.target is target


def with_settings(name: str, reference: str) -> Object:
    item = deployment(reference=reference)
    item["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": name}}]
    return item


def test_a_config_map_of_somebody_else_that_is_gone_is_named(shop: Shop, api: FakeApi) -> None:
    api.put("configmaps", "outside", data={"a": "1"})
    shop.runs(with_settings("outside", "example.org/old"))
    assert shop.plan(with_settings("outside", "example.org/new")).way_back == ()
    api.remove("configmaps", "outside")
    planned = shop.plan(deployment(reference="example.org/new"))
    assert obstacles(planned) == [(Obstacle.REFERENCE, "deployment/shop")]
    assert "configmap/outside does not exist" in planned.way_back[0].summary


def test_what_the_server_would_refuse_by_now_is_named(shop: Shop, api: FakeApi) -> None:
    shop.runs(config_map(greeting="hello"), config_map("old", a="1"))
    api.other_managers = {"old": "somebody"}  # an apply with force still works
    assert shop.plan(config_map(greeting="hello")).way_back == ()
    api.refused_names = {"old": "admission webhook denied the request: no old settings"}
    planned = shop.plan(config_map(greeting="hello"))
    assert obstacles(planned) == [(Obstacle.REFUSED, "configmap/old")]
    assert "no old settings" in planned.way_back[0].summary


def test_a_quota_without_room_is_named(shop: Shop, api: FakeApi) -> None:
    api.put("resourcequotas", "team", status={"hard": {"pods": "1"}, "used": {"pods": "1"}})
    shop.runs()
    assert obstacles(shop.plan()) == [(Obstacle.QUOTA, "resourcequota/team")]
    api.put("resourcequotas", "team", status={"hard": {"pods": "2"}, "used": {"pods": "1"}})
    assert shop.plan().way_back == ()


def test_a_rollback_and_an_environment_without_rollbacks_check_nothing(
    shop: Shop, registry: type[Registry], target: Target
) -> None:
    shop.runs()
    registry.digests = set()
    assert plan.fn(target, shop.plan().running or record(1)).way_back == ()
    never = target.environment.model_copy(update={"rollback": "never"})
    shop.target = target.model_copy(update={"environment": never})
    assert shop.plan().way_back == ()


# --- what follows from it --------------------------------------------------------------------------------------------

FINDING = WayBackFinding(obstacle=Obstacle.IMAGE, where="shop@sha256:1", summary="it is gone", fix="push it")


def refused(target: Target, check: str, *findings: WayBackFinding, base: Record | None = None) -> NoWayBack | None:
    environment = target.environment.model_copy(update={"rollback_check": check})
    known_good = base or record(1)
    ready = plan_of(
        target.model_copy(update={"environment": environment}),
        Release(application="shop", commit=commit(), image=BuiltImage(name="s", digest=GOOD, built=True), manifests={}),
        state=EnvironmentState(newest=known_good, known_good=known_good),
        way_back=findings,
    )
    try:
        refuse_blocked(pipeline(), ready.version, ready)  # type: ignore[arg-type]
    except NoWayBack as error:
        return error
    return None


def test_a_release_without_a_way_back_is_stopped_only_where_the_pipeline_file_says_so(target: Target) -> None:
    assert refused(target, "warn", FINDING) is None
    assert refused(target, "stop") is None
    error = refused(target, "stop", FINDING)
    assert error is not None
    assert error.reason == "a rollback of staging to release-1 would not work, so nothing was written"
    assert error.detail == "shop@sha256:1: it is gone. Fix: push it"
    assert "rollback_check: warn" in error.hint


def test_the_plan_of_a_run_shows_it(
    shop: Shop, registry: type[Registry], run: Callable[[Callable[[], Any]], Run]
) -> None:
    shop.runs()
    registry.digests = {NEW}
    candidate = shop.release(NEW, sha="b")
    played = run(lambda: plan(shop.target, candidate))
    assert played.descriptions == {"shop-staging-plan": "staging: 1 changed; a rollback would not work"}
    assert "## Why a rollback would not work" in played.artifacts[0].data
