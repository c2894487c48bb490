"""The loop around the verdict, against a small API server: what wakes it, what ends it, and what it asks for."""

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


async def until(true: Callable[[], object]) -> None:
    while not true():
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
    api.put(
        "replicasets",
        f"{name}-1",
        metadata={
            "labels": {**labels, "pod-template-hash": "1"},
            "ownerReferences": [{"uid": f"uid-{name}"}],
            "creationTimestamp": ago(600),
        },
        spec={"replicas": 1, "template": template},
    )
    return api.put("deployments", name, metadata=metadata, spec=spec, status=status)


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
    """Settings with so much patience for each of these troubles."""
    given = {name: timedelta(seconds=each) for name, each in seconds.items()}
    return RolloutSettings(settle=timedelta(), patience=PatienceSettings(**given))


def run(
    act: Act,
    *,
    settings: RolloutSettings = AT_ONCE,
    prepare: Callable[[FakeApi], list[Object]] = lambda api: [deployment(api)],
    told: list[Report] | None = None,
    **given: Any,  # noqa: ANN401
) -> tuple[Report, FakeApi]:
    """Watch what `prepare` made while `act` goes on."""

    async def play() -> tuple[Report, FakeApi]:
        api = FakeApi()
        objects = prepare(api)
        async with api.running(patience=30) as cluster:
            acting = asyncio.create_task(act(api))
            try:
                since = datetime.now(timezone.utc) - timedelta(seconds=2)
                told_to = told.append if told is not None else lambda _: None
                return await watch(cluster, objects, settings, since=since, on_change=told_to, **given), api
            finally:
                acting.cancel()
                await asyncio.gather(acting, return_exceptions=True)

    return asyncio.run(play())


async def nothing(_: FakeApi) -> None:
    pass


async def later(api: FakeApi) -> None:
    """The pods come up a little later."""
    await api.watched("pods")
    pod(api)
    deployment(api, 1)


def up(api: FakeApi) -> list[Object]:
    pod(api)
    return [deployment(api, 1)]


def just_up(api: FakeApi) -> list[Object]:
    pod(api, up_for=1)
    return [deployment(api, 1)]


def test_a_change_is_judged_when_it_comes() -> None:
    told: list[Report] = []
    report, api = run(later, told=told)
    assert report.complete
    assert report.completed_at
    assert told[-1].summary == report.summary
    assert len(told) > 1
    assert len(api.lists("pods")) == 2  # at first, and before the last word


def test_an_api_server_that_is_away_is_told_of_and_waited_for() -> None:
    async def outage(api: FakeApi) -> None:
        await api.watched("pods")
        await api.stop()
        await until(lambda: any(each.lost for each in told))
        await api.start()
        await later(api)

    told: list[Report] = []
    report, _ = run(outage, told=told)
    assert report.complete
    assert [told[0].lost, report.lost] == ["", ""]
    assert any(each.lost for each in told)


def test_what_has_been_complete_for_the_settle_time_is_told_at_once() -> None:
    told: list[Report] = []
    report, _ = run(nothing, prepare=up, settings=RolloutSettings(), told=told)
    assert report.complete
    assert told == [report]
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


def test_pods_that_die_after_complete_are_doom() -> None:
    async def die(api: FakeApi) -> None:
        await until(lambda: told and told[-1].complete)
        for times in range(4):
            crash(api, times)
            await asyncio.sleep(0.1)

    told: list[Report] = []
    with pytest.raises(RolloutFailed) as caught:
        run(die, prepare=just_up, settings=RolloutSettings(), told=told)
    assert caught.value.reason.startswith("it was complete, but pod/shop-1-a")
    assert caught.value.report.troubles[0].category == "crash"


def test_doom_that_a_fresh_look_does_not_confirm_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Informers.look

    async def healed_meanwhile(sight: Informers) -> None:
        pod(apis[0])
        deployment(apis[0], 1)
        await real(sight)

    apis: list[FakeApi] = []
    monkeypatch.setattr(Informers, "look", healed_meanwhile)

    async def die(api: FakeApi) -> None:
        apis.append(api)
        crash(api, 3)

    report, api = run(die)
    assert report.complete
    assert len(api.lists("pods")) > 1


def test_a_workload_that_is_not_there_or_goes_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_ABSENCE_SECONDS", 0.5)

    async def remove(api: FakeApi) -> None:
        await api.watched("deployments")
        api.remove("deployments", "shop")

    with pytest.raises(RolloutFailed, match="it is gone") as caught:
        run(remove)
    assert caught.value.where == "deployment/shop in shop"

    def nobody(api: FakeApi) -> list[Object]:
        return [{**deployment(api), "metadata": {"name": "nobody", "namespace": "shop"}}]

    with pytest.raises(RolloutFailed, match="it is gone"):
        run(nothing, prepare=nobody)


def test_a_workload_that_is_deleted_and_made_anew_is_watched_on() -> None:
    told: list[Report] = []

    async def replace(api: FakeApi) -> None:
        await api.watched("deployments")
        api.remove("deployments", "shop")
        await until(lambda: any("it was deleted; does it come back?" in each.summary for each in told))
        await later(api)

    report, _ = run(replace, told=told)
    assert report.complete
    assert any("it was deleted; does it come back?" in each.summary for each in told)


def test_a_rollout_that_is_late_has_failed() -> None:
    with pytest.raises(RolloutFailed, match="not up after 2s500ms: "):
        run(nothing, settings=RolloutSettings(timeout=timedelta(seconds=2.5)))


def test_the_time_without_a_server_is_not_counted() -> None:
    async def restart(api: FakeApi) -> None:
        await api.watched("pods")
        await api.stop()
        await asyncio.sleep(6)  # at the end of it the timeout is over
        await api.start()
        await until(lambda: not told[-1].lost)
        await asyncio.sleep(1)
        await later(api)

    told: list[Report] = []
    settings = RolloutSettings(timeout=timedelta(seconds=7.3), settle=timedelta())
    report, _ = run(restart, settings=settings, told=told)
    assert report.complete
    assert report.seconds > 7.3


def test_neighbours_are_not_asked_for() -> None:
    _, api = run(later)
    assert {query["labelSelector"] for query in api.watches("pods") + api.watches("replicasets")} == {"app=shop"}
    assert {query["fieldSelector"] for query in api.watches("deployments")} == {"metadata.name=shop"}
    assert "reason!=Scheduled" in api.watches("events")[0]["fieldSelector"]
    assert api.lists("services") == []


def test_two_hundred_workloads_are_a_handful_of_watches() -> None:
    def many(api: FakeApi) -> list[Object]:
        names = [f"shop{n}" for n in range(200)]
        for name in names:
            pod(api, name=name)
        return [deployment(api, 1, name) for name in names]

    report, api = run(nothing, prepare=many)
    assert [len(each.pods) for each in report.workloads] == [1] * 200
    assert sum("watch" in query for _, query in api.asked) <= 4
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


def test_services_and_their_endpoints_are_looked_at_with_the_workload_in_front_of_which_they_stand() -> None:
    report, api = run(nothing, prepare=lambda api: [*up(api), front(api)])
    assert report.complete
    assert api.lists("endpointslices")[0]["labelSelector"] == "kubernetes.io/service-name in (shop)"


def test_only_services_that_were_handed_over_are_judged() -> None:
    def five_and_a_neighbour(api: FakeApi) -> list[Object]:
        front(api, "old")
        return [*up(api), *(front(api, f"shop-{n}") for n in range(5))]

    assert run(nothing, prepare=five_and_a_neighbour, settings=RolloutSettings())[0].complete


Answers = Callable[[int, set[str]], tuple[PortResult, ...]]


def listening(monkeypatch: pytest.MonkeyPatch, answers: Answers) -> list[set[str]]:
    """Let `answers` tell what a knock finds; gives the pods that were knocked at."""
    asked: list[set[str]] = []

    async def knock(_: object, __: object, ___: object, pods: list[Object], ____: object) -> tuple[PortResult, ...]:
        asked.append({each["metadata"]["name"] for each in pods})
        return answers(len(asked), asked[-1])

    monkeypatch.setattr(live_checks, "check_ports", knock)
    monkeypatch.setattr(live_checks, "_KNOCK_SECONDS", 0.3)
    return asked


def port(name: str = "shop", said: str = "", before: float = 0) -> tuple[PortResult, ...]:
    return (PortResult(name, 80, not said, said, datetime.now(timezone.utc) - timedelta(seconds=before)),)


def test_a_port_that_closes_while_the_rollout_settles_is_found_by_the_last_knock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = listening(monkeypatch, lambda times, _: port() if times == 1 else port(said="refused", before=60))
    settings = RolloutSettings(settle=timedelta(seconds=4), patience=PatienceSettings(service=timedelta(seconds=1)))
    with pytest.raises(RolloutFailed) as caught:
        run(later, prepare=lambda api: [deployment(api), front(api)], settings=settings)
    assert caught.value.report.troubles[0].category == "port"
    assert len(asked) == 2


def test_where_all_listens_the_last_knock_is_the_only_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = listening(monkeypatch, lambda *_: port())
    settings = RolloutSettings(settle=timedelta(seconds=4))
    assert run(later, prepare=lambda api: [deployment(api), front(api)], settings=settings)[0].complete
    assert asked == [{"shop-1-a"}] * 2


def test_each_workload_is_judged_by_what_its_own_pods_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def stable_and_canary(api: FakeApi) -> list[Object]:
        objects = []
        for name in ("canary", "stable"):
            pod(api, name=name)
            workload = deployment(api, 1, name)
            workload["spec"]["template"]["metadata"]["labels"] = {"app": name, "part": "web"}
            objects.append(workload)
        return [*objects, front(api, part="web")]

    def refused_by_the_canary(_: int, pods: set[str]) -> tuple[PortResult, ...]:
        return port(said="refused", before=60) if pods == {"canary-1-a"} else port()

    listening(monkeypatch, refused_by_the_canary)
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=stable_and_canary, settings=patient(service=1))
    assert {each.workload for each in caught.value.report.troubles} == {"deployment/canary"}


def test_what_a_hung_watch_does_not_tell_is_found_before_the_last_word() -> None:
    async def die_in_silence(api: FakeApi) -> None:
        await later(api)
        await until(lambda: told and told[-1].complete)
        api.hangs = True
        crash(api, 3)

    told: list[Report] = []
    with pytest.raises(RolloutFailed) as caught:
        run(die_in_silence, settings=RolloutSettings(settle=timedelta(seconds=2)), told=told)
    assert caught.value.report.troubles[0].category == "crash"


def test_a_fresh_look_that_is_refused_leaves_what_is_known() -> None:
    async def refuse(api: FakeApi) -> None:
        await api.watched("pods")
        api.lists_refused = True
        await later(api)

    assert run(refuse)[0].complete


def test_the_reason_is_the_trouble_that_dooms() -> None:
    def one_of_two(api: FakeApi) -> list[Object]:
        shop = deployment(api)
        crash(api, 1)
        pod(api, name="zoo", ready=False, **crashed(5))
        return [shop, deployment(api, name="zoo")]

    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=one_of_two)
    assert [each.workload for each in caught.value.report.troubles] == ["deployment/zoo"]
    assert "zoo-1-a" in caught.value.reason


def with_a_slow_database(api: FakeApi) -> list[Object]:
    crash(api, 3)
    pod(api, name="database", ready=False)
    return [deployment(api), deployment(api, name="database")]


async def database_up(api: FakeApi) -> None:
    await api.watched("pods")
    pod(api, name="database", up_for=0)
    deployment(api, 1, name="database")


def test_a_program_that_ends_while_its_database_comes_up_is_run_again() -> None:
    async def heal(api: FakeApi) -> None:
        await until(lambda: any("others are still coming up" in each.summary for each in told))
        await database_up(api)
        await asyncio.sleep(1)
        await later(api)

    told: list[Report] = []
    assert run(heal, prepare=with_a_slow_database, told=told)[0].complete
    assert any("others are still coming up: given up at 5" in each.summary for each in told)


def test_a_program_that_ends_also_when_its_database_is_up_is_doomed() -> None:
    async def again(api: FakeApi) -> None:
        await database_up(api)
        await asyncio.sleep(2.5)  # times are whole seconds
        crash(api, 4)

    with pytest.raises(RolloutFailed) as caught:
        run(again, prepare=with_a_slow_database)
    assert "5 times" in caught.value.reason
    assert caught.value.report.workloads[1].phase == "complete"


def test_a_row_that_changed_is_told_though_the_sentence_did_not_and_so_is_the_last_report() -> None:
    async def begin_to_leave(api: FakeApi) -> None:
        await later(api)
        await until(lambda: told and told[-1].complete)
        labels = {**LABELS, "pod-template-hash": "0"}
        times = {"creationTimestamp": ago(600), "deletionTimestamp": ago(0)}
        api.put("pods", "shop-0-b", metadata={"labels": labels, **times}, spec={"containers": []}, status={})

    told: list[Report] = []
    settings = RolloutSettings(settle=timedelta(seconds=4))
    report, _ = run(begin_to_leave, settings=settings, told=told)
    assert [len(each.workloads[0].pods) for each in told][-2:] == [2, 2]
    assert told[-1] == report


def without_configuration(api: FakeApi) -> list[Object]:
    said = 'configmap "shop-config" not found'
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": said}}
    pod(api, ready=False, started=False, restartCount=0, state=waiting)
    return [deployment(api)]


def test_what_was_missing_and_is_there_now_dooms_nobody() -> None:
    async def write_it(api: FakeApi) -> None:
        api.put("configmaps", "shop-config")
        await until(lambda: any("is there now" in each.summary for each in told))
        await asyncio.sleep(1)
        await later(api)

    told: list[Report] = []
    report, api = run(write_it, prepare=without_configuration, settings=patient(configuration=5), told=told)
    assert report.complete
    assert sum(path.endswith("configmaps/shop-config") for path, _ in api.asked) == 1


def test_what_is_missing_still_is_doom() -> None:
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=without_configuration, settings=patient(configuration=1))
    assert caught.value.report.troubles[0].category == "missing-config"


def short_of_quota(api: FakeApi) -> list[Object]:
    made = deployment(api)
    api.refuses = (
        'pods "shop-1-a" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'
    )
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "lastTransitionTime": ago(0)}
    owner = api.objects["replicasets"]["shop-1"]
    parts = {each: owner[each] for each in ("metadata", "spec")}
    api.put("replicasets", "shop-1", **parts, status={"conditions": [{**condition, "message": api.refuses}]})
    return [made]


def test_a_quota_that_was_raised_dooms_nobody_before_the_controller_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_checks, "_ANSWER_SECONDS", 10.0)

    async def raise_it(api: FakeApi) -> None:
        api.refuses = ""
        await until(lambda: any("would be let in now" in each.summary for each in told))
        await asyncio.sleep(1)
        owner = api.objects["replicasets"]["shop-1"]
        api.put("replicasets", "shop-1", metadata=owner["metadata"], spec=owner["spec"])
        await later(api)

    told: list[Report] = []
    report, api = run(raise_it, prepare=short_of_quota, settings=patient(quota=5), told=told)
    assert report.complete
    assert any("would be let in now" in each.summary for each in told)
    [asked] = [query for path, query in api.asked if query.get("method") == "POST"]
    assert asked["dryRun"] == "All"


def test_a_quota_that_is_used_up_still_is_doom() -> None:
    with pytest.raises(RolloutFailed) as caught:
        run(nothing, prepare=short_of_quota, settings=patient(quota=3))
    assert caught.value.report.troubles[0].category == "quota"


def test_nothing_to_wait_for_is_complete_and_asks_for_nothing() -> None:
    report, api = run(nothing, prepare=lambda _: [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}])
    assert report.complete
    assert report.workloads == ()
    assert api.asked == []


def test_logs_are_read_of_what_failed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []

    async def logs(_: Cluster, namespace: str, pod: str, container: str, **__: object) -> str:
        read.append((pod, container))
        return f"the last words of {pod} in {namespace}"

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
    assert caught.value.report.troubles[0].logs == "the last words of shop-1-a in shop"
