"""The `rollout` command: how it reads its arguments, its JSON document, and how little it loads."""

import argparse
import asyncio
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from io import StringIO

import pytest

from prefect_cd.deployments import rollout_command
from prefect_cd.deployments.rollout_command import changed_at, is_related, ref_of, services_of, settings_of
from prefect_cd.deployments.rollout_view import document, drawn, view
from prefect_cd.errors import ClusterUnreachable, Invalid, RolloutFailed
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import PodRow, Problem, Report, WorkloadRow
from tests.unit.fake_api import FakeApi


@pytest.mark.parametrize(
    "text", ["deployment/app", "deploy/app", "deployments/app", "Deployment/app", "deployments.apps/app"]
)
def test_a_workload_is_named_as_kubectl_takes_it(text: str) -> None:
    assert ref_of(text, "shop") == Ref("apps/v1", "Deployment", "shop", "app")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app", "'app' is not KIND/NAME"),
        ("deployment/", "is not KIND/NAME"),
        ("deployment/App", "is not KIND/NAME"),
        ("deployment/../x", "is not KIND/NAME"),
        ("widget/app", "'widget' is not a kind with a rollout"),
        ("pod/app", "'pod' is not a kind with a rollout"),
    ],
)
def test_an_argument_that_names_no_workload_is_refused(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        ref_of(text, "shop")
    assert caught.value.hint


def test_options_are_durations_as_in_the_pipeline_file() -> None:
    assert settings_of(timeout="90s", settle=None).timeout == timedelta(seconds=90)
    assert settings_of(timeout=None, settle="0s").settle == timedelta()
    with pytest.raises(Invalid, match="'soon' is not a duration") as caught:
        settings_of(timeout="soon")
    assert caught.value.where == "--timeout"


@pytest.mark.parametrize(
    ("name", "selector", "labels", "meant"),
    [
        ("app", {"app": "x"}, {}, True),
        ("web", {"app": "app", "tier": "typo"}, {}, True),
        ("web", {"app": "x"}, {"app.kubernetes.io/instance": "release"}, True),
        ("db", {"app": "db"}, {"app.kubernetes.io/instance": "other"}, False),
        ("db", {"app": "db"}, {}, False),  # though written in the same minute
    ],
)
def test_a_service_that_selects_none_of_its_pods_was_meant_for_the_workload_that_shares_a_name_or_a_label(
    name: str, selector: dict[str, str], labels: dict[str, str], *, meant: bool
) -> None:
    times = {"creationTimestamp": "2026-01-01T00:05:00Z"}
    service = {"metadata": {"name": name, "labels": labels, **times}, "spec": {"selector": selector}}
    template = {"metadata": {"labels": {"app": "app", "tier": "web"}}}
    mine = {"app.kubernetes.io/instance": "release"}
    assert (
        is_related(service, {"metadata": {"name": "app", "labels": mine, **times}, "spec": {"template": template}})
        == meant
    )


def test_services_of_a_workload_are_those_that_lead_to_it_or_led_to_a_version_of_it() -> None:
    def template(version: str) -> dict[str, object]:
        return {"metadata": {"labels": {"app": "web", "version": version}}}

    async def related_services() -> list[str]:
        api = FakeApi()
        spec = {"selector": {"matchLabels": {"app": "web"}}, "template": template("2")}
        workload = api.put("deployments", "web", spec=spec)
        owner = {"ownerReferences": [{"uid": "uid-web"}], "labels": {"app": "web"}}
        api.put("replicasets", "web-1", metadata=owner, spec={"template": template("1")})
        for name, selector in {"now": {"version": "2"}, "before": {"version": "1"}, "other": {"app": "db"}}.items():
            api.put("services", name, spec={"selector": selector})
        async with api.running() as cluster:
            return [service["metadata"]["name"] for service in await services_of(cluster, "shop", [workload])]

    assert sorted(asyncio.run(related_services())) == ["before", "now"]


def test_a_rollout_began_when_somebody_last_wrote_what_the_workload_should_be() -> None:
    def written(minute: int, part: str, subresource: str = "") -> dict[str, object]:
        return {
            "time": f"2026-01-01T00:{minute:02}:00Z",
            "fieldsV1": {part: {}},
            **({"subresource": subresource} if subresource else {}),
        }

    fields = [written(5, "f:spec"), written(7, "f:spec", "scale"), written(9, "f:status"), written(3, "f:spec")]
    metadata = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    assert changed_at({"metadata": {**metadata, "managedFields": fields}}).minute == 5
    assert changed_at({"metadata": metadata}) == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert changed_at({"metadata": {}}) <= datetime.now(timezone.utc)


POD = PodRow(name="app-1", ready=False, state="Pending", since=None)
WATCHED = WorkloadRow(workload="deployment/app", phase=Phase.PROGRESSING, summary="0 of 1 ready (fails in 9 s)",
                  summary_without_seconds="0 of 1 ready (fails in … s)", ready=0, wanted=1, pods=(POD,))  # fmt: skip
REPORT = Report(workloads=(WATCHED,), seconds=3.5)
TROUBLE = Problem(workload="deployment/app", category="crash", summary="s", evidence="e", hint="h", where="w", logs="l")
KEYS = ["verdict", "summary", "seconds", "workloads", "troubles", "error"]


def test_a_program_gets_the_same_keys_whatever_the_answer() -> None:
    error = RolloutFailed(
        "it crashes", report=REPORT.model_copy(update={"problems": (TROUBLE,)}), hint="h", where="w", detail=""
    )
    answers = [
        document(REPORT, None),
        document(error.report, error),
        document(None, ClusterUnreachable("no answer", hint="is it up?")),
    ]
    assert [list(answer) for answer in answers] == [KEYS] * 3
    assert [answer["verdict"] for answer in answers] == ["complete", "doomed", "unknown"]
    assert answers[1]["troubles"][0]["category"] == "crash"
    assert answers[2]["error"] == {
        "code": "cluster-unreachable",
        "reason": "no answer",
        "where": "",
        "hint": "is it up?",
    }
    assert list(answers[0]["workloads"][0]) == ["workload", "phase", "summary", "ready", "wanted", "pods"]
    assert answers[0]["workloads"][0]["pods"] == [{"name": "app-1", "ready": False, "state": "Pending", "since": None}]


def test_a_program_gets_its_document_even_when_we_made_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr(rollout_command, "default_namespace", broken)
    asked = argparse.Namespace(kubeconfig=None, context=None, namespace=None, output="json", workloads=["deploy/app"])
    assert rollout_command.run(asked) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "unknown"
    assert "nobody thought of it" in json.loads(out)["error"]["reason"]
    assert "Traceback" in err


def test_without_a_terminal_a_line_is_written_when_there_is_news(capsys: pytest.CaptureFixture[str]) -> None:
    later = WATCHED.model_copy(update={"summary": "0 of 1 ready (fails in 8 s)"})
    up = WATCHED.model_copy(update={"summary": "1 of 1 ready", "summary_without_seconds": ""})
    with view(live=False, silent=False) as lines:
        for row in (WATCHED, later, up):
            lines.show(REPORT.model_copy(update={"workloads": (row,)}))
    assert capsys.readouterr().out.splitlines() == [
        "   3.5 s  deployment/app: 0 of 1 ready (fails in 9 s)",
        "   3.5 s  deployment/app: 1 of 1 ready",
    ]
    with view(live=False, silent=True) as lines:
        lines.show(REPORT)
    assert capsys.readouterr().out == ""


def test_a_table_shows_workloads_and_pods_as_they_are_named() -> None:
    from rich.console import Console  # noqa: PLC0415

    out = StringIO()
    odd = WATCHED.model_copy(update={"summary": "pod[red]s [/nothing]"})
    Console(file=out, width=100).print(drawn(REPORT.model_copy(update={"workloads": (odd,)}), 4.2))
    assert "… deployment/app" in out.getvalue()
    assert "pod[red]s [/nothing]" in out.getvalue()
    assert "app-1" in out.getvalue()
    assert "4 s" in out.getvalue()
    lost = REPORT.model_copy(update={"lost_since": datetime(2026, 1, 1, 12, tzinfo=timezone.utc)})
    Console(file=out, width=100).print(drawn(lost, 1))
    assert "has not answered since 12:00:00 UTC: this is the last known state" in out.getvalue()
    Console(file=out, width=100).print(drawn(None, 1))
    assert "waiting for the cluster" in out.getvalue()


def test_the_command_loads_neither_prefect_nor_rich() -> None:
    code = (
        "import sys; from prefect_cd.deployments import cli\n"
        "assert cli.main(['rollout', 'deployment/app', '--kubeconfig', '/nowhere']) == 2\n"
        "print('prefect' in sys.modules, 'rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
    assert "no cluster to talk to" in done.stderr
