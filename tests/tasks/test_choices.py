"""The choices in the form of a rollback: what they say, what they stand for, and that every run refreshes them."""

from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_cd.environment.record import State
from prefect_cd.errors import ClusterUnreachable, Invalid
from prefect_cd.flows.rollback import rollback
from prefect_cd.tasks import choices
from prefect_cd.tasks.choices import PREVIOUS, choice_of, release_of, releases, with_choices
from tests.tasks import examples
from tests.tasks.test_environments import status, version

CHOICE = "staging: record 1: aaaaaaa Sell more (2026-01-01 09:00 UTC)"


@flow
def other() -> None:
    """Something else."""


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ("Sell more", "aaaaaaa Sell more"),
        ("production: record 9: x", "aaaaaaa production: record 9: x"),
        ("a\nb\x1b[31m", "aaaaaaa a b\\x1b[31m"),
        ("x" * 100, f"aaaaaaa {'x' * 60}… (40 characters more)"),
    ],
)
def test_a_choice_says_which_release_it_is_and_stands_for_its_record(subject: str, shown: str) -> None:
    choice = choice_of("staging", version(subject=subject), runs=False)
    assert choice == f"staging: record 1: {shown} (2026-01-01 09:00 UTC)"
    assert release_of(choice, "staging") == "1"


@pytest.mark.parametrize(
    ("to", "release"), [("", ""), (PREVIOUS, ""), ("7", "7"), (" abc1234-56 ", "abc1234-56"), (CHOICE, "1")]
)
def test_ids_numbers_and_nothing_are_as_good_as_a_choice(to: str, release: str) -> None:
    assert release_of(to, "staging") == release


def test_a_release_of_another_environment_is_refused() -> None:
    with pytest.raises(Invalid, match="is a release of staging, and production is to be rolled back"):
        release_of(CHOICE, "production")


def test_only_releases_that_were_good_are_listed_and_what_runs_is_marked() -> None:
    runs = version(record=3)
    listed = (version(State.ROLLED_BACK, record=4), runs, version(State.WITHDRAWN, record=2), version())
    answers = [status(runs=runs, releases=listed), ClusterUnreachable("away")]
    assert releases(answers) == [
        "staging: record 3: aaaaaaa Sell more (2026-01-01 09:00 UTC, runs now)",
        "staging: record 2: aaaaaaa Sell more (2026-01-01 09:00 UTC)",
        CHOICE,
    ]


def test_the_schema_keeps_what_it_says_otherwise() -> None:
    schema = {"type": "object", "properties": {"to": {"title": "to", "position": 1}, "more": {"type": "string"}}}
    written = with_choices(schema, ["staging", "production"], [CHOICE])
    assert written["properties"] == {
        "to": {"title": "to", "position": 1, "type": "string", "enum": [PREVIOUS, CHOICE], "default": PREVIOUS},
        "more": {"type": "string"},
        "environment": {"type": "string", "enum": ["staging", "production"], "default": "production"},
    }


@pytest.mark.usefixtures("prefect_server")
def test_a_run_writes_the_choices_into_the_deployment_and_any_release_can_still_be_named() -> None:
    shop = examples.pipeline().model_copy(update={"application": f"shop-{uuid4().hex[:8]}"})
    deployment = rollback.to_deployment(shop.application, enforce_parameter_schema=False)
    identity = deployment.apply()
    with get_client(sync_client=True) as client:
        choices.refresh(client, shop, [status(releases=(version(),))])
        schema = client.read_deployment(identity).parameter_openapi_schema
        assert schema
        assert schema["properties"]["environment"]["enum"] == ["staging"]
        assert schema["properties"]["to"]["enum"] == [PREVIOUS, f"{CHOICE[:-1]}, runs now)"]
        assert schema["properties"]["to"]["description"].startswith("a choice of the form")
        named = client.create_flow_run_from_deployment(identity, parameters={"environment": "staging", "to": "abc"})
        assert named.parameters["to"] == "abc"


@pytest.mark.usefixtures("prefect_server")
def test_where_nothing_is_served_there_is_nothing_to_refresh(caplog: pytest.LogCaptureFixture) -> None:
    with get_client(sync_client=True) as client:
        choices.refresh(client, examples.pipeline().model_copy(update={"application": "nobody-serves-it"}), [])
    assert "missing" not in caplog.text
