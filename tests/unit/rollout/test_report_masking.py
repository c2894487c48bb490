"""Secrets in what pods say are masked in every text of a report, and so in logs, pages, records and the command."""

from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.diagnosis import Category, Cause
from prefect_cd.rollout.watch.report import Report, WorkloadRow, problem_of, rollout_failed

LEAK = "cannot connect to postgres://shop:hunter22@db/shop with correct horse"
WEB = Ref("apps/v1", "Deployment", "shop", "web")


def test_i7_no_text_of_a_failed_rollout_has_a_secret() -> None:
    cause = Cause(category=Category.CRASH, fact=LEAK, evidence=LEAK, hint=LEAK, object="pod/web-1")
    row = WorkloadRow(workload="deployment/web", phase=Phase.FAILED, summary=LEAK, ready=0, wanted=1, pods=())
    problem = problem_of(WEB, cause, LEAK, ["correct horse"])
    error = rollout_failed(Report(workloads=(row,), seconds=1), [problem], LEAK)
    assert "hunter22" not in f"{error} {error.report!r}"
    assert "correct horse" not in f"{problem.summary} {problem.evidence} {problem.hint}"
