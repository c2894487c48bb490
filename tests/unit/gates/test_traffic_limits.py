"""Numbers of users' requests, and what they prove: failed, errored and passed are told apart."""

import base64
import random
from typing import Any
from xml.etree import ElementTree  # noqa: ICN001

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.gates.evidence import Outcome, require_passed
from prefect_cd.gates.traffic import chart
from prefect_cd.gates.traffic.limits import evaluate
from prefect_cd.gates.traffic.metrics import UNSENT, Sample, Traffic, measure
from prefect_cd.kube.resources import Route
from prefect_cd.manifests.lint import Finding, Rule
from prefect_cd.pipeline.models import Probe
from prefect_cd.tasks import markdown

P, F, E = Outcome.PASSED, Outcome.FAILED, Outcome.ERRORED
HOSTILE = '<script>alert("1")</script>|[x](https://evil)'


def seen(**given: Any) -> Traffic:  # noqa: ANN401
    said: dict[str, Any] = {"way": Route.URL, "sent": 100, "sent_before": 10, "seconds": 10, **given}
    return Traffic(**said)


def limits(**given: object) -> Probe:
    return Probe.model_validate({"limits": given})


def shots(*failures: str, before: int = 10) -> list[Sample]:
    """Ten good requests before the rollout, at second 0, and then these, a tenth of a second apart."""
    said = [*[""] * before, *failures]
    return [Sample(due, due, due + 0.02, kind, "v1") for n, kind in enumerate(said) for due in [n / 10 - before / 10]]


def numbers(*failures: str, before: int = 10) -> Traffic:
    return measure(shots(*failures, before=before), since=-1e-9, settings=Probe(), way=Route.URL)


@pytest.mark.parametrize(
    ("traffic", "probe", "outcome", "said"),
    [
        (seen(), limits(), P, "100 requests, none failed"),
        (seen(failures={"refused": 1}), limits(), F, "1 of 100 requests failed (1 refused)"),
        (seen(failures={"refused": 1}), limits(failed=1), P, "1 of 100"),
        (seen(failures={"503": 2, "closed": 1}), limits(failed=2), F, "(2 answered 503, 1 closed)"),
        (seen(slow=3), limits(), P, "3 slow"),
        (seen(slow=3), limits(slow=2), F, "3 slow"),
        (seen(gap=0.6), limits(gap="500ms"), F, "no good answer for 0.60 s"),
        (seen(gap=0.4), limits(gap="500ms"), P, "0.40 s"),
        (seen(before={"503": 4}), limits(), E, "before the rollout 4 of 10 requests failed already (4 answered 503)"),
        (seen(before={"503": 4}, failures={"503": 50}), limits(), E, "failed already"),
        (seen(trouble="no such Service", sent=0), limits(), E, "nothing could be asked: no such Service"),
        (seen(way=Route.PORT_FORWARD), limits(), E, "a port-forward does not show what users see"),
        (seen(way=Route.PORT_FORWARD, failures={"closed": 9}), limits(), E, "9 of 100 requests failed"),
        (seen(sent=0), limits(), E, "too short to tell"),
        (seen(sent_before=0), limits(), E, "how it was before is not known"),
        (seen(unsent=5), limits(), P, "none failed"),
        (seen(unsent=50), limits(), E, "too busy to send 50 of 150"),
        (seen(unsent=50, failures={"refused": 1}), limits(), F, "1 of 100"),
    ],
)
def test_what_was_seen_is_judged_against_the_limits(
    traffic: Traffic, probe: Probe, outcome: Outcome, said: str
) -> None:
    proved = evaluate("zero downtime", traffic, probe)
    assert (proved.outcome, said in proved.summary) == (outcome, True), proved.summary
    assert bool(proved.hint) is (outcome is not P)


def test_a_failed_probe_stops_a_release_with_the_limit_that_was_exceeded() -> None:
    proved = evaluate("zero downtime", seen(failures={"timed out": 2}), limits(slow=0))
    assert [(case.name, case.outcome) for case in proved.cases] == [
        ("at most 0 failed", F),
        ("at most 0 slower than 1s", P),
    ]
    with pytest.raises(Exception, match="zero downtime failed: 2 of 100 requests failed") as caught:
        require_passed(proved)
    assert "at most 0 failed failed\n2 (2 timed out)" in caught.value.detail  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("refused", "preStop"),
        ("closed", "preStop"),
        ("502", "maxUnavailable"),
        ("timed out", "readinessProbe"),
        ("500", "new one"),
    ],
)
def test_the_hint_knows_what_usually_loses_requests_so(kind: str, hint: str) -> None:
    assert hint in evaluate("zero downtime", seen(failures={kind: 1}), Probe()).hint


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_what_was_due_before_the_rollout_is_counted_apart() -> None:
    traffic = numbers("", "refused", "")
    assert (traffic.sent_before, traffic.sent, traffic.failures, traffic.before) == (10, 3, {"refused": 1}, {})
    down = measure(shots("", "", before=2), since=0.05, settings=Probe(), way=Route.URL)
    assert (down.sent_before, down.sent) == (3, 1)


@pytest.mark.parametrize(
    ("failures", "gap"),
    [
        ([""] * 9, 0),
        (["refused", *[""] * 9], 0.1),
        (["", *["refused"] * 3, "", "refused", ""], 0.3),
        (["", *["refused"] * 5], 0.5),
        ([UNSENT] * 9, 0),
    ],
)
def test_a_gap_lasts_from_the_first_request_without_answer_to_the_next_good_one(
    failures: list[str], gap: float
) -> None:
    assert numbers(*failures).gap == pytest.approx(gap, abs=0.025)


def test_failures_are_listed_with_the_most_frequent_first() -> None:
    assert list(numbers("503", "refused", "refused").failures.items()) == [("refused", 2), ("503", 1)]


def test_versions_are_told_with_their_times() -> None:
    given = [Sample(n / 10, n / 10, n / 10 + 0.01, "", "old" if n < 15 else "new") for n in range(30)]
    old, new = measure(given, since=1, settings=Probe(), way=Route.URL).versions
    assert (old.version, old.answers, old.last) == ("old", 5, pytest.approx(0.4))
    assert (new.version, new.answers, new.first) == ("new", 15, pytest.approx(0.5))


def test_percentiles_are_times_of_real_answers() -> None:
    given = [Sample(n, n, n + (n + 1) / 100) for n in range(100)]
    latency = measure(given, since=0, settings=Probe(), way=Route.URL).latency
    assert list(latency.model_dump().values()) == pytest.approx([0.5, 0.95, 0.99, 1.0])


def test_waiting_for_its_turn_is_part_of_a_requests_time() -> None:
    given = [Sample(0, 0, 0.01), Sample(0.1, 0.5, 0.51)]
    traffic = measure(given, since=0, settings=Probe.model_validate({"slow": "300ms"}), way=Route.URL)
    assert (traffic.slow, traffic.latency.worst, traffic.late) == (1, pytest.approx(0.41), pytest.approx(0.4))


_SHOTS = st.lists(st.tuples(st.sampled_from(["", "", "", "refused", "503", UNSENT]), st.floats(0, 4)), max_size=40)


@settings(deadline=None)
@given(_SHOTS, st.randoms(use_true_random=False), st.floats(0, 4))
def test_nothing_is_lost_in_counting_and_the_order_of_requests_does_not_matter(
    said: list[tuple[str, float]],
    chance: random.Random,
    since: float,
) -> None:
    given = [Sample(n / 10, n / 10, n / 10 + took, kind, "v") for n, (kind, took) in enumerate(said)]
    traffic = measure(given, since=since, settings=Probe(), way=Route.URL)
    mixed = list(given)
    chance.shuffle(mixed)
    assert measure(mixed, since=since, settings=Probe(), way=Route.URL) == traffic
    assert traffic.sent + traffic.unsent + traffic.sent_before + sum(
        shot.failure == UNSENT for shot in given if shot.due < since
    ) == len(given)
    assert (
        sum(sum(each.good.values()) + each.failed for each in traffic.stretches) == traffic.sent + traffic.sent_before
    )
    assert traffic.gap >= 0
    assert len(traffic.stretches) <= 61


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_chart_is_a_picture_without_a_strangers_markup() -> None:
    given = [shot._replace(version=HOSTILE) for shot in shots("", "refused", "")]
    traffic = measure(given, since=0, settings=Probe(), way=Route.URL)
    root = ElementTree.fromstring(chart.svg(traffic))  # noqa: S314  our own
    assert {child.tag.rpartition("}")[2] for child in root} == {"rect", "text", "path"}
    assert base64.b64decode(chart.picture(traffic).partition(",")[2]).decode() == chart.svg(traffic)
    assert chart.picture(seen()) == ""


def test_every_request_has_its_place_in_the_chart() -> None:
    drawn = chart.svg(numbers(*[""] * 20, "503", *[""] * 20))
    assert drawn.count('fill="#d62f2f"') == 2  # a bar, and its word in the legend
    assert "rollout begins" in drawn


def test_the_page_says_the_point_the_fix_and_the_numbers() -> None:
    traffic = numbers("", "refused", "")
    page = markdown.requests(evaluate("zero downtime", traffic, Probe()), traffic)
    assert page.startswith("# ✘ zero downtime\n\n1 of 3 requests failed")
    assert "**What to do:** pods ended" in page
    assert "](data:image/svg+xml;base64," in page
    assert "| ✘ | at most 0 failed | 1 (1 refused) |" in page
    assert "| longest time without a good answer | 0.10 s, from second" in page


def test_weaknesses_are_listed_with_their_fix_and_no_strangers_markup() -> None:
    found = Finding(hazard=Rule.RECREATE, where=HOSTILE, summary="it stops", fix="do not")
    page = markdown.weaknesses([found])
    assert "it stops. *Fix:* do not." in page
    assert "<script>" not in page
    assert markdown.weaknesses([]) == ""
