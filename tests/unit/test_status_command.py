"""`prefect-cd status`: what it prints, and its exit code."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml

from prefect_cd.deployments.cli import main
from prefect_cd.deployments.status_command import document, text
from prefect_cd.deployments.waiting_runs import WaitingRun
from prefect_cd.environment.journal import Damage, Entry
from prefect_cd.environment.record import Decision, State
from prefect_cd.environment.status import EnvironmentStatus, Holder, Version
from prefect_cd.errors import ClusterUnreachable
from prefect_cd.pipeline.load import load
from prefect_cd.release.model import Commit
from tests.unit.fake_api import FakeApi

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
PIPELINE = """\
application: shop
source: {{repository: https://example.org/shop.git}}
image: {{name: registry.example.org/shop}}
environments:
  - {{name: staging, namespace: shop-staging, manifests: k8s/staging, cluster: {{kubeconfig: {kubeconfig}}}}}
  - {{name: production, namespace: shop, manifests: k8s/production, cluster: {{kubeconfig: {other}}}}}
"""


def pipeline_file(folder: Path, kubeconfig: object = "one", other: object = "two") -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(PIPELINE.format(kubeconfig=kubeconfig, other=other))
    return file


def kubeconfig_of(api: FakeApi, folder: Path) -> Path:
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(api.kubeconfig))
    return file


def version(release_id: str, state: State, *, minutes: int, reason: str = "") -> Version:
    commit = Commit(repository="r", sha="a" * 40, revision="main", subject="Sell more", author="x", committed_at=NOW)
    decision = Decision(approved=True, name="approver one", comment="", decided_at=NOW, content="c")
    return Version(
        release_id=release_id,
        record=7,
        commit=commit,
        image="registry.example.org/shop@sha256:1",
        state=state,
        since=NOW - timedelta(minutes=minutes),
        run="",
        decision=decision,
        reason=reason,
    )


def status(**fields: object) -> EnvironmentStatus:
    defaults = {"environment": "staging", "namespace": "shop-staging", "condition": "whole"}
    return EnvironmentStatus.model_validate(
        {**defaults, "runs": version("good-1", State.KNOWN_GOOD, minutes=200), "newest": None, "holder": None, **fields}
    )


def test_it_says_what_runs_what_failed_who_holds_the_lock_and_what_to_do_next(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path))
    frozen = status(
        environment="production",
        condition="frozen",
        newest=version("bad-2", State.ROLLBACK_FAILED, minutes=3, reason="[gate_failed] E2E failed\nmore"),
        holder=Holder(name="rollback/9", since=NOW, renewed=NOW - timedelta(seconds=2), alive=True),
    )
    assert text(pipeline, [status(), frozen], NOW) == (
        "staging: whole\n"
        "  runs    good-1 (aaaaaaa Sell more), record 7, started 3 h ago, approved by approver one\n"
        "production: frozen\n"
        "  runs    good-1 (aaaaaaa Sell more), record 7, started 3 h ago, approved by approver one\n"
        "  newest  bad-2 (aaaaaaa Sell more), record 7, started 3 min ago, approved by approver one, rollback-failed\n"
        "  why     [gate_failed] E2E failed\n"
        "  lock    rollback/9, renewed 2 s ago\n"
        "  next    repair the cause, then: prefect deployment run 'rollback/shop' -p environment=production\n"
    )


def test_it_says_where_an_environment_is_and_how_its_last_releases_ended(tmp_path: Path) -> None:
    file = pipeline_file(tmp_path)
    file.write_text(file.read_text().replace("manifests: k8s/staging", "manifests: k8s/staging, url: service/shop"))
    releases = (version("bad-2", State.ROLLED_BACK, minutes=3), version("good-1", State.KNOWN_GOOD, minutes=200))
    printed = text(load(file), [status(releases=releases), status(environment="production")], NOW)
    assert (
        "  url     service/shop\n"
        "  last    aaaaaaa Sell more: rolled-back, started 3 min ago\n"
        "  last    aaaaaaa Sell more: known-good, started 3 h ago\n"
        "production: "
    ) in printed


def test_a_damaged_record_is_named_with_what_to_do(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path))
    damage = Damage(number=8, where="secret/prefect-cd.shop.8", problem="its content was changed", hint="restore it")
    answers = [status(condition="damaged", damaged=(damage,)), status(environment="production")]
    assert text(pipeline, answers, NOW).startswith(
        "staging: damaged\n"
        "  runs    good-1 (aaaaaaa Sell more), record 7, started 3 h ago, approved by approver one\n"
        "  record  secret/prefect-cd.shop.8: its content was changed\n"
        "  repair  restore it\n"
        "production: whole\n"
    )
    assert not answers[0].is_whole
    staging, _ = document(pipeline, answers)["environments"]  # type: ignore[misc]
    assert staging["damaged"][0]["where"] == "secret/prefect-cd.shop.8"  # type: ignore[has-type]


def waiting(environment: str) -> WaitingRun:
    url = "http://127.0.0.1:4200/runs/flow-run/7"
    return WaitingRun(environment=environment, run="7", name="release main", since=NOW - timedelta(hours=3), url=url)


def test_it_says_which_releases_are_vetoed_and_which_runs_wait(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path))
    vetoed = (
        Entry(number=9, state=State.ROLLED_BACK, release_id="bad-2"),
        Entry(number=6, state=State.WITHDRAWN, release_id="bad-1"),
    )
    printed = text(pipeline, [status(vetoed=vetoed), status(environment="production")], NOW, [waiting("production")])
    staging, _, production = printed.partition("production: whole\n")
    assert "  vetoed  bad-2 (record 9, rolled-back), bad-1 (record 6, withdrawn)\n" in staging
    assert (
        "  waiting release main, for an approval since 3 h ago: http://127.0.0.1:4200/runs/flow-run/7\n" in production
    )
    assert "waiting" not in staging
    assert "vetoed" not in production


def test_programs_see_whether_prefect_was_asked(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path))
    answers = [status(), status(environment="production")]
    unknown = document(pipeline, answers)["environments"]
    assert [one["waiting"] for one in unknown] == [None, None]  # type: ignore[attr-defined]
    asked = document(pipeline, answers, [waiting("production")])["environments"]
    assert [[run["name"] for run in one["waiting"]] for one in asked] == [[], ["release main"]]  # type: ignore[attr-defined]


def test_an_environment_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path))
    answers = [status(), ClusterUnreachable("nobody answers", where="https://10.0.0.1")]
    assert "production: unknown\n" in text(pipeline, answers, NOW)
    staging, production = document(pipeline, answers)["environments"]  # type: ignore[misc]
    assert (staging["condition"], staging["error"]) == ("whole", None)  # type: ignore[has-type]
    assert "nobody answers" in production["error"]  # type: ignore[has-type]


def test_the_command_reads_every_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    with api.serving():
        kubeconfig = kubeconfig_of(api, tmp_path)
        code = main(["status", str(pipeline_file(tmp_path, kubeconfig, kubeconfig)), "-o", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["application"] == "shop"
    assert [(one["environment"], one["condition"]) for one in answer["environments"]] == [
        ("staging", "empty"),
        ("production", "empty"),
    ]
    assert code == 0


def test_the_exit_code_is_2_when_a_cluster_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    with api.serving():
        file = pipeline_file(tmp_path, kubeconfig_of(api, tmp_path), tmp_path / "missing")
        assert main(["status", str(file)]) == 2
    printed = capsys.readouterr().out
    assert "staging: empty\n" in printed
    assert "production: unknown\n" in printed


def test_a_pipeline_file_with_mistakes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pipeline.yaml").write_text("application: [\n")
    assert main(["status", str(tmp_path / "pipeline.yaml")]) == 1
    assert "pipeline.yaml:" in capsys.readouterr().err
