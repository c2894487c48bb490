"""Approvals: the answers of approvers, and a form that nobody answers."""

import re
from collections.abc import Iterator

import pytest

from tests.cluster.harness import (
    Application,
    Repository,
    Server,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    kubectl,
    records,
    states,
    untouched,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PRODUCTION = "k8s/production/hello.yaml"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("answers") / "repository")


@pytest.fixture(scope="module")
def applications(server: Server, repository: Repository) -> Iterator[dict[str, Application]]:
    repository.commit(hello_files(), "Say hello")
    approvals = {
        "answers": {"expires": "10m", "approvers": ["approver one", "approver two"]},
        "expiring": {"expires": "3s"},
        "hands": {"expires": "10m"},
    }
    pipelines = [
        hello_pipeline(name, repository.path, production={"approval": approval, "take_over": name == "hands"})
        for name, approval in approvals.items()
    ]
    with server.serving(*pipelines) as served:
        yield {application.name: application for application in served}


def test_a_rejected_release_ends_as_rejected_and_changes_nothing(applications: dict[str, Application]) -> None:
    application = applications["answers"]
    run = application.release("main").wait("Suspended")
    assert re.fullmatch(r"[0-9a-f]{7} Say hello → production: approve until .* UTC \(Resume\)", run.title)
    run.answer("reject", comment="not on a Friday").wait("Rejected")
    assert "rejected for production by approver one: not on a Friday" in run.message
    assert run.title.endswith("Say hello → production: rejected")
    assert "outcome:rejected" in run.tags
    assert untouched(application.production)
    assert states(application.staging) == ["known-good"]


def test_an_answer_without_a_name_or_from_somebody_else_is_asked_again(applications: dict[str, Application]) -> None:
    run = applications["answers"].release("main").wait("Suspended")
    run.answer(name="  ").wait("Suspended")
    assert "a decision needs the approver's name" in run.form()
    run.answer(name="a stranger").wait("Suspended")
    assert "a stranger is not an approver here; approvers are: approver one, approver two" in run.form()
    assert untouched(applications["answers"].production)
    run.answer(name="approver two", comment="fine").wait("Completed")
    assert run.title.endswith("Say hello → production")
    assert "outcome:completed" in run.tags
    (record,) = records(applications["answers"].production)
    assert (record["decision"]["name"], record["decision"]["comment"]) == ("approver two", "fine")


def test_a_question_that_nobody_answers_expires(applications: dict[str, Application]) -> None:
    application = applications["expiring"]
    run = application.release("main").wait("Suspended", "Expired").wait("Expired")
    assert "no decision in time" in run.message
    wait_for(lambda: run.title.endswith("Say hello → production: expired"), run.title)
    assert untouched(application.production)


def test_i5_an_approval_does_not_count_for_what_somebody_changed_by_hand_since(
    applications: dict[str, Application], repository: Repository
) -> None:
    application = applications["hands"]
    application.release("main").wait("Suspended").answer().wait("Completed")
    second = repository.commit({PRODUCTION: hello_manifests(greeting="hello again")}, "Say it again")
    run = application.release(second).wait("Suspended")
    config = '{"data": {"GREETING": "by hand"}}'
    kubectl("-n", application.production, "patch", "configmap", "hello-config", "--type=merge", "-p", config)
    run.answer().wait("Suspended")
    assert "no longer what an earlier answer was given for" in run.form()
    assert "by hand" in run.form()
    assert states(application.production) == ["known-good"]
    run.answer().wait("Completed")
    config_map = get(application.production, "configmap/hello-config")
    assert config_map is not None
    assert config_map["data"] == {"GREETING": "hello again"}
    assert [record["decision"]["name"] for record in records(application.production)] == [
        "approver one",
        "approver one",
    ]
