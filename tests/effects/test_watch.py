"""The watch of a rollout, with a small API server: what wakes it, what ends it, and what it requests."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import PatienceSettings, RolloutSettings
from prefect_cd.rollout.assess import PortResult
from prefect_cd.rollout.watch import live_checks
from prefect_cd.rollout.watch import loop as watching
from prefect_cd.rollout.watch.informers import Informers
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.report import Report
from tests.unit.fake_api import FakeApi

LABELS = {"app": "shop"}
AT_ONCE = RolloutSettings(settle=timedelta())
Act = Callable[[FakeApi], Awaitable[None]]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def ago(seconds: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def deployment(api: FakeApi, ready: int = 0, name: str = "shop") -> Object:
    labels = {"app": name}
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), ready)
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "readinessProbe": {}}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    metadata = {"generation": 1, "creationTimestamp": ago(600)}
    status = {**counts, "observedGeneration": 1}
    workload = api.put("deployments", name, metadata=metadata, spec=spec, status=status)
    api.put(
        "replicasets",
        f"{name}-1",
        metadata={
            "labels": {**labels, "pod-template-hash": "1"},
            "ownerReferences": [{"uid": workload["metadata"]["uid"]}],
            "creationTimestamp": ago(600),
        },
        spec={"replicas": 1, "template": template},
    )
    return workload


def pod(api: FakeApi, *, ready: bool = True, name: str = "shop", up_for: float = 300, **container: Any) -> Object:  # noqa: ANN401
    status = {"name": "main", "ready": ready, "started": True, "restartCount": 0}
    status |= container or {"state": {"running": {"startedAt": ago(up_for)}}}
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": ago(up_for)}
    return api.put(
        "pods",
        f"{name}-1-a",
        metadata={"labels": {"app": name, "pod-template-hash": "1"}, "creationTimestamp": ago(300)},
        spec={"containers": [{"name": "main", "image": "shop:1", "readinessProbe": {}}]},
        status={"phase": "Running", "conditions": [condition], "containerStatuses": [status]},
    )


def patient(**seconds: float) -> RolloutSettings:
    """Settings with this patience for these problems."""
    patience = {name: timedelta(seconds=value) for name, value in seconds.items()}
    return RolloutSettings(settle=timedelta(), patience=PatienceSettings(**patience))


def run(
    act: Act,
    *,
    settings: RolloutSettings = AT_ONCE,
    prepare: Callable[[FakeApi], list[Object]] = lambda api: [deployment(api)],
    reports: list[Report] | None = None,
) -> tuple[Report, FakeApi]:
    """Watch the objects that `prepare` creates while `act` runs."""

    async def play() -> tuple[Report, FakeApi]:
        api = FakeApi()
        objects = prepare(api)
        async with api.running(patience=30) as cluster:
            acting = asyncio.create_task(act(api))
            try:
                since = datetime.now(timezone.utc) - timedelta(seconds=2)
                on_change = reports.append if reports is not None else lambda _: None
                return await watch(cluster, objects, settings, since=since, on_change=on_change), api
            finally:
                acting.cancel()
                await asyncio.gather(acting, return_exceptions=True)

    return asyncio.run(play())


async def nothing(_: FakeApi) -> None:
    pass


async def later(api: FakeApi) -> None:
    """The pods come up a little later."""
    await api.wait_for_watch("pods")
    pod(api)
    deployment(api, 1)


def up(api: FakeApi) -> list[Object]:
    pod(api)
    return [deployment(api, 1)]


def just_up(api: FakeApi) -> list[Object]:
    pod(api, up_for=1)
    return [deployment(api, 1)]


def test_a_change_is_assessed_at_once() -> None:
    reports: list[Report] = []
    report, api = run(later, reports=reports)
    assert report.complete
    assert report.completed_at
    assert reports[-1].summary == report.summary
    assert len(reports) > 1
    assert len(api.lists("pods")) == 2  # at first, and before the verdict is final


def test_a_run_that_is_cancelled_when_something_changes_ends() -> None:
    async def cancelled() -> bool:
        informers = Informers()
        waiting = asyncio.ensure_future(informers.wait_for_change(600))
        await asyncio.sleep(0.01)
        informers._changed.set()
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    assert asyncio.run(cancelled())


def test_an_outage_of_the_api_server_is_reported_and_waited_for() -> None:
    async def outage(api: FakeApi) -> None:
        await api.wait_for_watch("pods")
        await api.stop()
        await until(lambda: any(report.lost for report in reports))
        await api.start()
        await later(api)

    reports: list[Report] = []
    report, _ = run(outage, reports=reports)
    assert report.complete
    assert [reports[0].lost, report.lost] == ["", ""]
    assert any(report.lost for report in reports)


def test_what_has_been_complete_for_the_settle_time_is_reported_at_once() -> None:
    reports: list[Report] = []
    report, _ = run(nothing, prepare=up, settings=RolloutSettings(), reports=reports)
    assert report.complete
    assert reports == [report]
    assert report.seconds < 20


def test_a_complete_rollout_is_watched_on_and_only_for_the_rest_of_the_settle_time() -> None:
    def nearly_settled(api: FakeApi) -> list[Object]:
        conditions.extend(pod(api, up_for=17)["status"]["conditions"])
        return [deployment(api, 1)]

    conditions: list[Object] = []
    settings = RolloutSettings(settle=timedelta(seconds=20))
    report, _ = run(nothing, prepare=nearly_settled, settings=settings)
    [ready] = conditions
    up_since = datetime.strptime(ready["lastTransitionTime"], "%Y-%m-%dT%H:%M:%S%z")
    assert datetime.now(timezone.utc) >= up_since + settings.settle
    assert report.seconds < 15
    report, _ = run(nothing, prepare=up, settings=settings)
    assert report.seconds < 15


def crashed(times: int) -> Object:
    ended = {"exitCode": 3, "reason": "Error", "startedAt": ago(1), "finishedAt": ago(0)}
    return {"restartCount": times, "state": {"terminated": ended}, "lastState": {"terminated": ended}}


def crash(api: FakeApi, times: int) -> None:
    pod(api, ready=False, **crashed(times))


def test_pods_that_die_after_the_rollout_was_complete_fail_it() -> None:
    async def die(api: FakeApi) -> None:
        await until(lambda: reports and reports[-1].complete)
        for times in range(4):
            crash(api, times)
            await asyncio.sleep(0.1)

    reports: list[Report] = []
    with pytest.raises(RolloutFailed) as caught:
        run(die, prepare=just_up, settings=RolloutSettings(), reports=reports)
    assert caught.value.reason.startswith("it was complete, but pod/shop-1-a")
    assert caught.value.report.problems[0].category == "crash"


def test_a_failure_that_a_refresh_does_not_confirm_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Informers.refresh

    async def healed_meanwhile(informers: Informers) -> None:
        pod(apis[0])
        deployment(apis[0], 1)
        await real(informers)

    apis: list[FakeApi] = []
    monkeypatch.setattr(Informers, "refresh", healed_meanwhile)

    async def die(api: FakeApi) -> None:
        apis.append(api)
        crash(api, 3)

    report, api = run(die)
    assert report.complete
    assert len(api.lists("pods")) > 1


def test_a_workload_that_is_missing_or_deleted_fails_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_DELETED_SECONDS", 0.5)

    async def remove(api: FakeApi) -> None:
        await api.wait_for_watch("deployments")
        api.remove("deployments", "shop")

    with pytest.raises(RolloutFailed, match="it does not exist any more") as caught:
        run(remove)
    assert caught.value.where == "deployment/shop in shop"

    def missing(api: FakeApi) -> list[Object]:
        return [{**deployment(api), "metadata": {"name": "missing", "namespace": "shop"}}]

    with pytest.raises(RolloutFailed, match="it does not exist any more"):
        run(nothing, prepare=missing)


def test_a_workload_that_is_deleted_and_created_again_is_watched_on() -> None:
    reports: list[Report] = []

    async def replace(api: FakeApi) -> None:
        await api.wait_for_watch("deployments")
        api.remove("deployments", "shop")
        await until(
            lambda: any("it was deleted; waiting for it to be created again" in report.summary for report in reports)
        )
        await later(api)

    report, _ = run(replace, reports=reports)
    assert report.complete
    assert any("it was deleted; waiting for it to be created again" in report.summary for report in reports)


def test_a_rollout_that_is_late_has_failed() -> None:
    with pytest.raises(RolloutFailed, match="not complete after 2s500ms: "):
        run(nothing, settings=RolloutSettings(timeout=timedelta(seconds=2.5)))


def test_the_time_without_the_server_does_not_count() -> None:
    async def restart(api: FakeApi) -> None:
        await api.wait_for_watch("pods")
        await api.stop()
        await asyncio.sleep(6)  # after it the timeout is over
        await api.start()
        await until(lambda: not reports[-1].lost)
        await asyncio.sleep(1)
        await later(api)

    reports: list[Report] = []
    settings = RolloutSettings(timeout=timedelta(seconds=7.3), settle=timedelta())
    report, _ = run(restart, settings=settings, reports=reports)
    assert report.complete
    assert report.seconds > 7.3


def test_other_workloads_of_the_namespace_are_not_requested() -> None:
    _, api = run(later)
    assert {query["labelSelector"] for query in api.watches("pods") + api.watches("replicasets")} == {"app=shop"}
    assert {query["fieldSelector"] for query in api.watches("deployments")} == {"metadata.name=shop"}
    assert "reason!=Scheduled" in api.watches("events")[0]["fieldSelector"]
    assert api.lists("services") == []


def test_two_hundred_workloads_need_four_watches() -> None:
    def many(api: FakeApi) -> list[Object]:
        names = [f"shop{n}" for n in range(200)]
        for name in names:
            pod(api, name=name)
        return [deployment(api, 1, name) for name in names]

    report, api = run(nothing, prepare=many)
    assert [len(row.pods) for row in report.workloads] == [1] * 200
    assert sum("watch" in query for _, query in api.requests) <= 4
    assert api.lists("pods")[0]["labelSelector"].startswith("app in (shop0,shop1,")


def front(api: FakeApi, name: str = "shop", **selector: str) -> Object:
    """A Service with an endpoint."""
    api.put(
        "endpointslices",
        f"{name}-x",
        metadata={"labels": {"kubernetes.io/service-name": name}},
        ports=[{"name": "web", "port": 8000}],
        endpoints=[{"conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": "shop-1-a"}}],
    )
    port = {"name": "web", "port": 80, "targetPort": 8000}
    return api.put("services", name, spec={"selector": selector or LABELS, "ports": [port]})


def test_services_are_assessed_with_the_workload_that_they_select() -> None:
    report, api = run(nothing, prepare=lambda api: [*up(api), front(api)])
    assert report.complete
    assert api.lists("endpointslices")[0]["labelSelector"] == "kubernetes.io/service-name in (shop)"


def test_only_services_of_the_applied_set_are_assessed() -> None:
    def five_and_another(api: FakeApi) -> list[Object]:
        front(api, "old")
        return [*up(api), *(front(api, f"shop-{n}") for n in range(5))]

    assert run(nothing, prepare=five_and_another, settings=RolloutSettings())[0].complete


Answers = Callable[[int, set[str]], tuple[PortResult, ...]]


def with_port_results(monkeypatch: pytest.MonkeyPatch, answers: Answers) -> list[set[str]]:
    """Replace the port checks by `answers`; returns the pods of each check."""
    checked: list[set[str]] = []

    async def check(_: object, __: object, ___: object, pods: list[Object], ____: object) -> tuple[PortResult, ...]:
        checked.append({pod["metadata"]["name"] for pod in pods})
        return answers(len(checked), checked[-1])

    monkeypatch.setattr(live_checks, "check_ports", check)
    monkeypatch.setattr(live_checks, "_PORT_CHECK_INTERVAL_SECONDS", 0.3)
    return checked


def port(name: str = "shop", error: str = "", before: float = 0) -> tuple[PortResult, ...]:
    return (PortResult(name, 80, not error, error, datetime.now(timezone.utc) - timedelta(seconds=before)),)


def test_a_port_that_closes_during_the_settle_time_is_found_by_the_last_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = with_port_results(
        monkeypatch, lambda times, _: port() if times == 1 else port(error="refused", before=60)
    )
    settings = RolloutSettings(settle=timedelta(seconds=4), patience=PatienceSettings(service=timedelta(seconds=1)))
    with pytest.raises(RolloutFailed) as caught:
        run(later, prepare=lambda api: [deployment(api), front(api)], settings=settings)
    assert caught.value.report.problems[0].category == "port"
    assert len(checked) == 2


def test_open_ports_are_checked_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = with_port_results(monkeypatch, lambda *_: port())
    settings = RolloutSettings(settle=timedelta(seconds=4))
    assert run(later, prepare=lambda api: [deployment(api), front(api)], settings=settings)[0].complete
    assert checked == [{"shop-1-a"}] * 2


def test_each_workload_is_assessed_by_the_ports_of_its_own_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    def stable_and_canary(api: FakeApi) -> list[Object]:
        objects = []
        for name in ("canary", "stable"):
            pod(api, name=name)
            workload = deployment(api, 1, name)
            workload["spec"]["template"]["metadata"]["labels"] = {"app": name, "part": "web"}
            objects.append(workload)
        return [*objects, front(api, part="web")]

    def refused_by_the_canary(_: int, pods: set[str]) -> tuple[PortResult, ...]:
        return port(error="refused", before=60) if pods == {"canary-1-a"} else port()

    with_port_results(monkeypatch, refused_by_the_canary)
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=stable_and_canary, settings=patient(service=1))
    assert {problem.workload for problem in caught.value.report.problems} == {"deployment/canary"}


def test_changes_that_a_hanging_watch_missed_are_read_before_the_verdict_is_final() -> None:
    async def crash_while_watches_hang(api: FakeApi) -> None:
        await later(api)
        await until(lambda: reports and reports[-1].complete)
        api.watches_hang = True
        crash(api, 3)

    reports: list[Report] = []
    with pytest.raises(RolloutFailed) as caught:
        run(crash_while_watches_hang, settings=RolloutSettings(settle=timedelta(seconds=2)), reports=reports)
    assert caught.value.report.problems[0].category == "crash"


def test_a_refresh_that_is_forbidden_changes_nothing() -> None:
    async def forbid(api: FakeApi) -> None:
        await api.wait_for_watch("pods")
        api.lists_forbidden = True
        await later(api)

    assert run(forbid)[0].complete


def test_the_reason_is_the_problem_that_fails_the_rollout() -> None:
    def one_of_two(api: FakeApi) -> list[Object]:
        shop = deployment(api)
        crash(api, 1)
        pod(api, name="zoo", ready=False, **crashed(5))
        return [shop, deployment(api, name="zoo")]

    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=one_of_two)
    assert [problem.workload for problem in caught.value.report.problems] == ["deployment/zoo"]
    assert "zoo-1-a" in caught.value.reason


def with_a_slow_database(api: FakeApi) -> list[Object]:
    crash(api, 3)
    pod(api, name="database", ready=False)
    return [deployment(api), deployment(api, name="database")]


async def database_up(api: FakeApi) -> None:
    await api.wait_for_watch("pods")
    pod(api, name="database", up_for=0)
    deployment(api, 1, name="database")


def test_a_crash_while_the_database_starts_is_not_a_failure_yet() -> None:
    async def heal(api: FakeApi) -> None:
        await until(lambda: any("other workloads are still starting" in report.summary for report in reports))
        await database_up(api)
        await asyncio.sleep(1)
        await later(api)

    reports: list[Report] = []
    assert run(heal, prepare=with_a_slow_database, reports=reports)[0].complete
    assert any("other workloads are still starting: fails after 5 crashes" in report.summary for report in reports)


def test_a_crash_after_the_database_is_ready_fails_the_rollout() -> None:
    async def again(api: FakeApi) -> None:
        await database_up(api)
        await asyncio.sleep(2.5)  # times are whole seconds
        crash(api, 4)

    with pytest.raises(RolloutFailed) as caught:
        run(again, prepare=with_a_slow_database)
    assert "5 times" in caught.value.reason
    assert caught.value.report.workloads[1].phase == "complete"


def test_a_changed_row_is_reported_with_the_same_sentence_and_so_is_the_last_report() -> None:
    async def begin_to_leave(api: FakeApi) -> None:
        await later(api)
        await until(lambda: reports and reports[-1].complete)
        labels = {**LABELS, "pod-template-hash": "0"}
        times = {"creationTimestamp": ago(600), "deletionTimestamp": ago(0)}
        api.put("pods", "shop-0-b", metadata={"labels": labels, **times}, spec={"containers": []}, status={})

    reports: list[Report] = []
    settings = RolloutSettings(settle=timedelta(seconds=4))
    report, _ = run(begin_to_leave, settings=settings, reports=reports)
    assert [len(report.workloads[0].pods) for report in reports][-2:] == [2, 2]
    assert reports[-1] == report


def without_configuration(api: FakeApi) -> list[Object]:
    message = 'configmap "shop-config" not found'
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
    pod(api, ready=False, started=False, restartCount=0, state=waiting)
    return [deployment(api)]


def test_a_missing_object_that_exists_by_now_does_not_fail_the_rollout() -> None:
    async def create_it(api: FakeApi) -> None:
        api.put("configmaps", "shop-config")
        await until(lambda: any("exists now" in report.summary for report in reports))
        await asyncio.sleep(1)
        await later(api)

    reports: list[Report] = []
    report, api = run(create_it, prepare=without_configuration, settings=patient(configuration=5), reports=reports)
    assert report.complete
    assert sum(path.endswith("configmaps/shop-config") for path, _ in api.requests) == 1


def test_an_object_that_stays_missing_fails_the_rollout() -> None:
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=without_configuration, settings=patient(configuration=1))
    assert caught.value.report.problems[0].category == "missing-config"


def short_of_quota(api: FakeApi) -> list[Object]:
    workload = deployment(api)
    api.admission_error = (
        'pods "shop-1-a" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'
    )
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "lastTransitionTime": ago(0)}
    owner = api.objects["replicasets"]["shop-1"]
    parts = {key: owner[key] for key in ("metadata", "spec")}
    api.put("replicasets", "shop-1", **parts, status={"conditions": [{**condition, "message": api.admission_error}]})
    return [workload]


def test_a_raised_quota_does_not_fail_the_rollout_before_the_controller_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_checks, "_DRY_RUN_SECONDS", 10.0)

    async def raise_it(api: FakeApi) -> None:
        api.admission_error = ""
        await until(lambda: any("would be admitted now" in report.summary for report in reports))
        await asyncio.sleep(1)
        owner = api.objects["replicasets"]["shop-1"]
        api.put("replicasets", "shop-1", metadata=owner["metadata"], spec=owner["spec"])
        await later(api)

    reports: list[Report] = []
    report, api = run(raise_it, prepare=short_of_quota, settings=patient(quota=5), reports=reports)
    assert report.complete
    assert any("would be admitted now" in report.summary for report in reports)
    [created] = [query for path, query in api.requests if query.get("method") == "POST"]
    assert created["dryRun"] == "All"


def test_a_quota_that_stays_exceeded_fails_the_rollout() -> None:
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=short_of_quota, settings=patient(quota=3))
    assert caught.value.report.problems[0].category == "quota"


def test_without_workloads_a_rollout_is_complete_and_requests_nothing() -> None:
    report, api = run(nothing, prepare=lambda _: [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}])
    assert report.complete
    assert report.workloads == ()
    assert api.requests == []


def test_only_logs_of_failed_runs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []

    async def logs(_: Cluster, namespace: str, pod: str, container: str, **__: object) -> str:
        read.append((pod, container))
        return f"the last lines of {pod} in {namespace}"

    monkeypatch.setattr(Cluster, "logs", logs)

    def recovered(api: FakeApi) -> list[Object]:
        running, ended = {"startedAt": ago(300)}, {"exitCode": 1, "startedAt": ago(400), "finishedAt": ago(300)}
        pod(api, restartCount=1, state={"running": running}, lastState={"terminated": ended})
        return [deployment(api, 1)]

    run(nothing, prepare=recovered, settings=RolloutSettings(settle=timedelta(seconds=0.3)))
    assert read == []

    async def die(api: FakeApi) -> None:
        crash(api, 3)

    with pytest.raises(RolloutFailed) as caught:
        run(die)
    assert read == [("shop-1-a", "main")]  # in the background, and not again at the end
    assert caught.value.report.problems[0].logs == "the last lines of shop-1-a in shop"
