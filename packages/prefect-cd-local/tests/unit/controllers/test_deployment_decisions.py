from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd_local.controllers import planning, progress, revisions, scaling

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc)
Object = dict[str, Any]


def deployment(replicas: int, surge: int | str = "25%", unavailable: int | str = "25%", /, **status: object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
            },
            "template": template("2"),
        },
        "status": status,
    }


def template(version: str) -> Object:
    return {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": version}]}}


def rs(name: str, wanted: int, available: int = 0, age: int = 0, **notes: str) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": name,
            "generation": 1,
            "creationTimestamp": progress.time_text(NOW - timedelta(seconds=age)),
            "annotations": {f"deployment.kubernetes.io/{key.replace('_', '-')}": text for key, text in notes.items()},
        },
        "spec": {"replicas": wanted, "template": template(name)},
        "status": {
            "replicas": wanted,
            "availableReplicas": available,
            "readyReplicas": available,
            "observedGeneration": 1,
        },
    }


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (4, "25%", "25%", (1, 1)),
        (3, "25%", "25%", (1, 0)),  # surge up, unavailable down
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (3, "0%", "25%", (0, 1)),  # both zero: nothing could move
        (3, 0, 0, (0, 1)),
        (3, "100%", 0, (3, 0)),
        (0, "25%", "25%", (0, 0)),
    ],
)
def test_percentages_become_numbers_that_let_something_move(
    replicas: int, surge: int | str, unavailable: int | str, expected: tuple[int, int]
) -> None:
    assert scaling.slack(deployment(replicas, surge, unavailable)) == expected


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "new", "old", "expected"),
    [
        pytest.param(4, 1, 1, (0, 0), [(4, 4)], [("new", 1)], id="first new one within the surge"),
        pytest.param(4, 1, 1, (1, 0), [(4, 4)], [("old0", 3)], id="as many old ones go as may be missing"),
        pytest.param(4, 1, 1, (1, 0), [(3, 3)], [("new", 2)], id="their places are taken"),
        pytest.param(4, 1, 1, (2, 0), [(3, 3)], [], id="then it waits"),
        pytest.param(4, 1, 1, (2, 1), [(3, 3)], [("old0", 2)], id="one for one"),
        pytest.param(3, 1, 0, (1, 0), [(3, 3)], [], id="none may be missing"),
        pytest.param(3, 0, 1, (0, 0), [(3, 3)], [("old0", 2)], id="no surge: the old one goes first"),
        pytest.param(4, 1, 1, (1, 0), [(4, 2)], [("old0", 3)], id="broken old pods go before available ones"),
        pytest.param(10, 3, 2, (5, 0), [(8, 8), (0, 0)], [], id="nothing below the least"),
        pytest.param(3, 3, 0, (3, 2), [(2, 3)], [("old0", 1)], id="a pod that is going does not count twice"),
        pytest.param(4, 1, 1, (4, 4), [(1, 1)], [("old0", 0)], id="the last old one"),
        pytest.param(4, 1, 1, (4, 4), [(0, 0)], [], id="complete"),
        pytest.param(2, 1, 1, (4, 4), [(0, 0)], [("new", 2)], id="too many of the newest"),
        pytest.param(
            4, 1, 1, (0, 0), [(3, 3), (2, 0)], [("old1", 0)], id="room is made of what is broken, the oldest first"
        ),
    ],
)
def test_a_rolling_update_moves_one_step(
    replicas: int,
    surge: int,
    unavailable: int,
    new: tuple[int, int],
    old: list[tuple[int, int]],
    expected: list[tuple[str, int]],
) -> None:
    wanted = deployment(replicas, surge, unavailable)
    newest = rs("new", *new)
    others = [rs(f"old{index}", *sizes, age=100 - index) for index, sizes in enumerate(old)]
    steps = scaling.rolling(wanted, newest, others)
    assert [(step.rs["metadata"]["name"], step.replicas) for step in steps] == expected


def test_no_order_of_events_breaks_the_limits_of_a_rolling_update() -> None:
    for replicas in range(1, 9):
        for surge, unavailable in [(0, 1), (1, 0), (1, 1), (2, 1), ("25%", "25%"), ("100%", "50%")]:
            wanted = deployment(replicas, surge, unavailable)
            most, least = scaling.slack(wanted)
            new, old = rs("new", 0), rs("old", replicas, replicas, age=9)
            for _ in range(100):
                steps = scaling.rolling(wanted, new, [old])
                for step in steps:
                    step.rs["spec"]["replicas"] = step.replicas
                old["status"]["availableReplicas"] = min(old["status"]["availableReplicas"], old["spec"]["replicas"])
                assert new["spec"]["replicas"] + old["spec"]["replicas"] <= replicas + most
                assert new["status"]["availableReplicas"] + old["status"]["availableReplicas"] >= replicas - least
                if not steps and new["status"]["availableReplicas"] < new["spec"]["replicas"]:
                    new["status"]["availableReplicas"] += 1
            assert (new["spec"]["replicas"], old["spec"]["replicas"]) == (replicas, 0)


@pytest.mark.parametrize(
    ("replicas", "sizes", "most_before", "expected"),
    [
        (10, {"old": 3, "new": 2}, 5, {"old": 8, "new": 5}),  # as recorded in conformance/rollouts
        (4, {"old": 8, "new": 5}, 13, {"old": 3, "new": 2}),
        (0, {"old": 3, "new": 2}, 5, {"old": 0, "new": 0}),
        (5, {"old": 3, "new": 2}, 5, {"old": 4, "new": 3}),
    ],
)
def test_a_stuck_rollout_is_scaled_in_proportion(
    replicas: int, sizes: dict[str, int], most_before: int, expected: dict[str, int]
) -> None:
    notes = {"max_replicas": str(most_before), "desired_replicas": "1"}
    old, new = rs("old", sizes["old"], sizes["old"], age=9, **notes), rs("new", sizes["new"], **notes)
    assert scaling.is_resized(deployment(replicas), [old, new])
    steps = scaling.proportional(deployment(replicas), new, [old])
    assert {step.rs["metadata"]["name"]: step.replicas for step in steps} == expected


def test_the_rest_of_the_rounding_goes_to_the_first_replica_set() -> None:
    notes = {"max_replicas": "4", "desired_replicas": "3"}
    sets = [rs(name, 1, 1, age=age, **notes) for name, age in (("new", 1), ("older", 5), ("oldest", 9))]
    steps = scaling.proportional(deployment(5), sets[0], sets[1:])  # seven may be wanted: 1.75 for each
    assert {step.rs["metadata"]["name"]: step.replicas for step in steps} == {"new": 3, "older": 2, "oldest": 2}


def test_a_single_replica_set_takes_the_whole_change() -> None:
    old = rs("old", 3, 3)
    assert scaling.proportional(deployment(7), None, [old]) == [scaling.Scale(old, 7)]


def test_equal_templates_are_one_revision_whatever_their_hash_and_nulls() -> None:
    one, other = template("2"), template("2")
    one["metadata"]["labels"][revisions.HASH] = "abc"
    one["metadata"]["creationTimestamp"] = None
    assert revisions.same_template(one, other)
    assert revisions.template_hash(one) == revisions.template_hash(other) != revisions.template_hash(template("3"))
    assert not revisions.same_template(template("2"), template("3"))


def test_a_revision_that_returns_gets_the_next_number_and_keeps_its_history() -> None:
    first = rs("one", 0, revision="1", revision_history="")
    newest = revisions.as_newest(deployment(1), first, [rs("two", 1, revision="2")])
    annotations = newest["metadata"]["annotations"]
    assert (annotations[revisions.REVISION], annotations[revisions.HISTORY]) == ("3", "1")
    again = revisions.as_newest(deployment(1), newest, [rs("four", 1, revision="4")])["metadata"]["annotations"]
    assert (again[revisions.REVISION], again[revisions.HISTORY]) == ("5", "1,3")
    assert revisions.as_newest(deployment(1), first, []) == first


def test_history_beyond_the_limit_goes_oldest_first_and_never_with_pods() -> None:
    wanted = deployment(1)
    wanted["spec"]["revisionHistoryLimit"] = 1
    old = [rs("one", 0, revision="1"), rs("two", 1, revision="2"), rs("ten", 0, revision="10")]
    assert [rs_["metadata"]["name"] for rs_ in revisions.beyond_history_limit(wanted, old)] == ["one"]
    wanted["spec"]["revisionHistoryLimit"] = 0
    assert [rs_["metadata"]["name"] for rs_ in revisions.beyond_history_limit(wanted, old)] == ["one", "ten"]


def progressing(reason: str, seconds_ago: int, truth: str = "True") -> Object:
    then = progress.time_text(NOW - timedelta(seconds=seconds_ago))
    return {
        "type": "Progressing",
        "status": truth,
        "reason": reason,
        "message": "",
        "lastUpdateTime": then,
        "lastTransitionTime": then,
    }


@pytest.mark.parametrize(
    ("before", "new", "old", "expected"),
    [
        pytest.param(("NewReplicaSetCreated", 5), (2, 1), (0, 0), ("True", "ReplicaSetUpdated"), id="a pod came"),
        pytest.param(("ReplicaSetUpdated", 5), (2, 2), (0, 0), ("True", "NewReplicaSetAvailable"), id="all came"),
        pytest.param(
            ("ReplicaSetUpdated", 601), (2, 0), (0, 0), ("True", "ReplicaSetUpdated"), id="late, but two are made"
        ),
        pytest.param(
            ("NewReplicaSetAvailable", 9999), (2, 1), (0, 0), ("True", "NewReplicaSetAvailable"), id="lost one"
        ),
    ],
)
def test_the_condition_progressing_follows_the_counters(
    before: tuple[str, int], new: tuple[int, int], old: tuple[int, int], expected: tuple[str, str]
) -> None:
    wanted = deployment(2, conditions=[progressing(*before)])
    sets = [rs("new", *new), rs("old", *old)]
    status = progress.rollout_status(wanted, wanted["status"], sets, sets[0], NOW)
    condition = progress.condition({"status": status}, "Progressing")
    assert condition
    assert (condition["status"], condition["reason"]) == expected


def test_every_progress_restarts_the_deadline() -> None:
    wanted = deployment(2, conditions=[progressing("ReplicaSetUpdated", 599)])
    new = rs("new", 2, 1)
    status = progress.rollout_status(wanted, wanted["status"], [new], new, NOW)
    assert progress.seconds_to_deadline(wanted, status, NOW) == 600
    condition = progress.condition({"status": status}, "Progressing")
    assert condition
    assert condition["lastTransitionTime"] == progress.time_text(NOW - timedelta(seconds=599))


def test_without_progress_for_the_deadline_the_rollout_has_timed_out_and_stays_so() -> None:
    status = {"replicas": 2, "updatedReplicas": 2, "observedGeneration": 2}
    for age, expected in [(599, "ReplicaSetUpdated"), (601, "ProgressDeadlineExceeded")]:
        wanted = deployment(2, conditions=[progressing("ReplicaSetUpdated", age)], **status)
        new = rs("new", 2)
        condition = progress.condition(
            {"status": progress.rollout_status(wanted, wanted["status"], [new], new, NOW)}, "Progressing"
        )
        assert condition
        assert condition["reason"] == expected
    wanted = deployment(2, conditions=[progressing("ProgressDeadlineExceeded", 5, "False")], **status)
    assert progress.seconds_to_deadline(wanted, wanted["status"], NOW) is None
    wanted["spec"]["paused"] = True
    assert progress.paused_or_resumed(wanted, NOW) == wanted["status"]


def test_pausing_stops_the_deadline_and_resuming_restarts_it() -> None:
    wanted = deployment(2, conditions=[progressing("ReplicaSetUpdated", 5)])
    wanted["spec"]["paused"] = True
    paused = progress.paused_or_resumed(wanted, NOW)
    assert paused["conditions"][-1]["reason"] == "DeploymentPaused"
    wanted["status"] = paused
    assert progress.paused_or_resumed(wanted, NOW) == paused
    wanted["spec"]["paused"] = False
    resumed = progress.paused_or_resumed(wanted, NOW)
    assert resumed["conditions"][-1]["reason"] == "DeploymentResumed"
    assert resumed["conditions"][-1]["lastUpdateTime"] == progress.time_text(NOW)


@pytest.mark.parametrize(("available", "expected"), [(3, "True"), (2, "False")])
def test_available_means_at_most_max_unavailable_pods_are_missing(available: int, expected: str) -> None:
    new = rs("new", 4, available)
    status = progress.counters(deployment(4), {}, [new], new, NOW)
    condition = progress.condition({"status": status}, "Available")
    assert condition
    assert condition["status"] == expected
    assert status["unavailableReplicas"] == 4 - available


def test_a_failure_to_create_pods_shows_on_the_deployment_until_it_is_over() -> None:
    new = rs("new", 2)
    new["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    ]
    wanted = deployment(2)
    wanted["status"] = progress.rollout_status(wanted, wanted["status"], [new], new, NOW)
    failure = progress.condition(wanted, "ReplicaFailure")
    assert failure
    assert failure["message"] == "exceeded quota"
    new["status"]["conditions"] = []
    assert (
        progress.condition(
            {"status": progress.rollout_status(wanted, wanted["status"], [new], new, NOW)}, "ReplicaFailure"
        )
        is None
    )


def sizes(plan: planning.Plan) -> dict[str, int]:
    return {rs_["metadata"]["name"]: rs_["spec"]["replicas"] for rs_ in plan.write}


def test_a_new_template_gets_a_replica_set_and_a_condition() -> None:
    old = rs("1", 4, 4, revision="1", desired_replicas="4", max_replicas="5")
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 4)
    plan = planning.plan(deployment(4, "25%", "25%", **counts), [old], NOW, old_pods_run=True)
    (made,) = plan.write
    assert made["spec"]["replicas"] == 1
    assert made["metadata"]["ownerReferences"][0]["uid"] == "d"
    assert "uid" not in made["metadata"]
    assert (plan.revision, plan.remove) == ("2", [])
    condition = progress.condition({"status": plan.status}, "Progressing")
    assert condition
    assert condition["reason"] == "NewReplicaSetCreated"
    assert plan.look_again == 601


def test_a_recreate_makes_nothing_while_an_old_pod_runs() -> None:
    wanted, old = deployment(3), rs("1", 3, 3, revision="1", desired_replicas="3", max_replicas="3")
    wanted["spec"]["strategy"] = {"type": "Recreate"}
    assert sizes(planning.plan(wanted, [old], NOW, old_pods_run=True)) == {"1": 0}
    old["spec"]["replicas"] = 0
    assert planning.plan(wanted, [old], NOW, old_pods_run=True).write == []
    (made,) = planning.plan(wanted, [old], NOW, old_pods_run=False).write
    assert made["spec"]["replicas"] == 3


def test_a_paused_deployment_is_scaled_without_a_new_revision() -> None:
    wanted, old = deployment(6), rs("1", 4, 4, revision="1", desired_replicas="4", max_replicas="5")
    wanted["spec"]["paused"] = True
    assert sizes(planning.plan(wanted, [old], NOW, old_pods_run=True)) == {"1": 6}
    wanted["spec"]["replicas"] = 4
    assert planning.plan(wanted, [old], NOW, old_pods_run=True).write == []


def test_nothing_is_written_when_nothing_is_to_do() -> None:
    new = rs("2", 2, 2, revision="2", desired_replicas="2", max_replicas="3")
    wanted = deployment(2)
    wanted["metadata"]["annotations"] = {revisions.REVISION: "2"}
    wanted["status"] = planning.plan(wanted, [new], NOW, old_pods_run=False).status
    again = planning.plan(wanted, [new], NOW, old_pods_run=False)
    assert (again.write, again.remove, again.look_again) == ([], [], None)
    assert again.status == wanted["status"]


def test_a_terminating_deployment_only_gets_its_counters() -> None:
    wanted, old = deployment(4), rs("1", 4, 4, revision="1")
    wanted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    plan = planning.plan(wanted, [old], NOW, old_pods_run=True)
    assert (plan.write, plan.remove, plan.status["replicas"]) == ([], [], 4)
