"""Measurements of users' requests, and what they prove: passed, failed or errored."""

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


def make_traffic(**fields: Any) -> Traffic:  # noqa: ANN401
    defaults: dict[str, Any] = {"route": Route.URL, "sent": 100, "sent_before": 10, "seconds": 10}
    return Traffic(**{**defaults, **fields})


def limits(**values: object) -> Probe:
    return Probe.model_validate({"limits": values})


def samples(*failures: str, before: int = 10) -> list[Sample]:
    """Good requests before the rollout, which starts at second 0, and then these, a tenth of a second apart."""
    kinds = [*[""] * before, *failures]
    dues = [(number - before) / 10 for number in range(len(kinds))]
    return [Sample(due, due, due + 0.02, kind, "v1") for due, kind in zip(dues, kinds, strict=True)]


def measured(*failures: str, before: int = 10) -> Traffic:
    return measure(samples(*failures, before=before), rollout_start=-1e-9, settings=Probe(), route=Route.URL)


@pytest.mark.parametrize(
    ("traffic", "probe", "outcome", "text"),
    [
        (make_traffic(), limits(), P, "100 requests, none failed"),
        (make_traffic(failures={"refused": 1}), limits(), F, "1 of 100 requests failed (1 refused)"),
        (make_traffic(failures={"refused": 1}), limits(failed=1), P, "1 of 100"),
        (make_traffic(failures={"503": 2, "closed": 1}), limits(failed=2), F, "(2 with status 503, 1 closed)"),
        (make_traffic(slow=3), limits(), P, "3 slow"),
        (make_traffic(slow=3), limits(slow=2), F, "3 slow"),
        (make_traffic(gap=0.6), limits(gap="500ms"), F, "no good response for 0.60 s"),
        (make_traffic(gap=0.4), limits(gap="500ms"), P, "0.40 s"),
        (
            make_traffic(failures_before={"503": 4}),
            limits(),
            E,
            "before the rollout, 4 of 10 requests failed already (4 with status 503)",
        ),
        (make_traffic(failures_before={"503": 4}, failures={"503": 50}), limits(), E, "failed already"),
        (make_traffic(error="no such Service", sent=0), limits(), E, "no requests could be sent: no such Service"),
        (make_traffic(route=Route.PORT_FORWARD), limits(), E, "a port-forward does not show what users see"),
        (make_traffic(route=Route.PORT_FORWARD, failures={"closed": 9}), limits(), E, "9 of 100 requests failed"),
        (make_traffic(route=Route.PORT_FORWARD, failures_before={"closed": 1}), limits(), E, "a port-forward does not"),
        (make_traffic(sent=0), limits(), E, "the rollout was too short to measure"),
        (make_traffic(sent_before=0), limits(), E, "there is no measurement from before the rollout"),
        (make_traffic(unsent=5), limits(), P, "none failed"),
        (make_traffic(unsent=50), limits(), E, "too busy to send 50 of 150"),
        (make_traffic(unsent=50, failures={"refused": 1}), limits(), F, "1 of 100"),
    ],
)
def test_traffic_is_compared_with_the_limits(traffic: Traffic, probe: Probe, outcome: Outcome, text: str) -> None:
    evidence = evaluate("zero downtime", traffic, probe)
    assert (evidence.outcome, text in evidence.summary) == (outcome, True), evidence.summary
    assert bool(evidence.hint) is (outcome is not P)


def test_a_failed_probe_stops_a_release_with_the_limit_that_was_exceeded() -> None:
    evidence = evaluate("zero downtime", make_traffic(failures={"timed out": 2}), limits(slow=0))
    assert [(case.name, case.outcome) for case in evidence.cases] == [
        ("at most 0 failed", F),
        ("at most 0 slower than 1s", P),
    ]
    with pytest.raises(Exception, match="zero downtime failed: 2 of 100 requests failed") as caught:
        require_passed(evidence)
    assert "at most 0 failed failed\n2 (2 timed out)" in caught.value.detail  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("refused", "preStop"),
        ("closed", "preStop"),
        ("502", "maxUnavailable"),
        ("timed out", "readinessProbe"),
        ("500", "new version"),
    ],
)
def test_the_hint_names_the_usual_fix_for_a_kind_of_failure(kind: str, hint: str) -> None:
    assert hint in evaluate("zero downtime", make_traffic(failures={kind: 1}), Probe()).hint


# --- measurements ----------------------------------------------------------------------------------------------------


def test_requests_that_were_due_before_the_rollout_are_counted_separately() -> None:
    traffic = measured("", "refused", "")
    assert (traffic.sent_before, traffic.sent, traffic.failures, traffic.failures_before) == (10, 3, {"refused": 1}, {})
    down = measure(samples("", "", before=2), rollout_start=0.05, settings=Probe(), route=Route.URL)
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
def test_a_gap_lasts_from_the_first_failed_request_to_the_next_good_response(failures: list[str], gap: float) -> None:
    assert measured(*failures).gap == pytest.approx(gap, abs=0.025)


def test_failures_are_listed_with_the_most_frequent_first() -> None:
    assert list(measured("503", "refused", "refused").failures.items()) == [("refused", 2), ("503", 1)]


def test_versions_have_the_times_of_their_responses() -> None:
    requests = [Sample(n / 10, n / 10, n / 10 + 0.01, "", "old" if n < 15 else "new") for n in range(30)]
    old, new = measure(requests, rollout_start=1, settings=Probe(), route=Route.URL).versions
    assert (old.version, old.answers, old.last) == ("old", 5, pytest.approx(0.4))
    assert (new.version, new.answers, new.first) == ("new", 15, pytest.approx(0.5))


def test_percentiles_are_latencies_of_real_responses() -> None:
    requests = [Sample(n, n, n + (n + 1) / 100) for n in range(100)]
    latency = measure(requests, rollout_start=0, settings=Probe(), route=Route.URL).latency
    assert list(latency.model_dump().values()) == pytest.approx([0.5, 0.95, 0.99, 1.0])


def test_the_wait_before_sending_is_part_of_the_latency() -> None:
    requests = [Sample(0, 0, 0.01), Sample(0.1, 0.5, 0.51)]
    traffic = measure(requests, rollout_start=0, settings=Probe.model_validate({"slow": "300ms"}), route=Route.URL)
    assert (traffic.slow, traffic.latency.worst, traffic.late) == (1, pytest.approx(0.41), pytest.approx(0.4))


_REQUESTS = st.lists(st.tuples(st.sampled_from(["", "", "", "refused", "503", UNSENT]), st.floats(0, 4)), max_size=40)


@settings(deadline=None)
@given(_REQUESTS, st.randoms(use_true_random=False), st.floats(0, 4))
def test_every_request_is_counted_and_their_order_does_not_matter(
    results: list[tuple[str, float]],
    chance: random.Random,
    rollout_start: float,
) -> None:
    requests = [Sample(n / 10, n / 10, n / 10 + took, kind, "v") for n, (kind, took) in enumerate(results)]
    traffic = measure(requests, rollout_start=rollout_start, settings=Probe(), route=Route.URL)
    shuffled = list(requests)
    chance.shuffle(shuffled)
    assert measure(shuffled, rollout_start=rollout_start, settings=Probe(), route=Route.URL) == traffic
    assert traffic.sent + traffic.unsent + traffic.sent_before + sum(
        sample.failure == UNSENT for sample in requests if sample.due < rollout_start
    ) == len(requests)
    assert (
        sum(sum(interval.good.values()) + interval.failed for interval in traffic.intervals)
        == traffic.sent + traffic.sent_before
    )
    assert traffic.gap >= 0
    assert len(traffic.intervals) <= 61


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_chart_escapes_the_names_of_versions() -> None:
    requests = [sample._replace(version=HOSTILE) for sample in samples("", "refused", "")]
    traffic = measure(requests, rollout_start=0, settings=Probe(), route=Route.URL)
    root = ElementTree.fromstring(chart.svg(traffic))  # noqa: S314 - our own SVG
    assert {child.tag.rpartition("}")[2] for child in root} == {"rect", "text", "path"}
    assert base64.b64decode(chart.chart_uri(traffic).partition(",")[2]).decode() == chart.svg(traffic)
    assert chart.chart_uri(make_traffic()) == ""


def test_failed_requests_are_drawn_in_the_chart() -> None:
    drawn = chart.svg(measured(*[""] * 20, "503", *[""] * 20))
    assert drawn.count('fill="#d62f2f"') == 2  # a bar, and its entry in the legend
    assert "rollout starts" in drawn


def test_the_page_shows_the_result_the_fix_and_the_numbers() -> None:
    traffic = measured("", "refused", "")
    page = markdown.requests(evaluate("zero downtime", traffic, Probe()), traffic)
    assert page.startswith("# ✘ zero downtime\n\n1 of 3 requests failed")
    assert "**What to do:** pods were sent requests" in page
    assert "](data:image/svg+xml;base64," in page
    assert "| ✘ | at most 0 failed | 1 (1 refused) |" in page
    assert "| longest time without a good answer | 0.10 s, from second" in page


def test_weaknesses_are_listed_with_their_fix_and_escaped() -> None:
    finding = Finding(rule=Rule.RECREATE, where=HOSTILE, summary="it stops", fix="do not")
    page = markdown.may_lose_requests([finding])
    assert page.startswith("## What may lose requests\n\n- ")
    assert "it stops. *Fix:* do not." in page
    assert "<script>" not in page
    assert markdown.may_lose_requests([]) == ""
    moving = finding.model_copy(update={"rule": Rule.MOVING_TAG})
    assert markdown.may_lose_requests([moving]).startswith("## What may run another image\n\n- ")
    both = markdown.may_lose_requests([moving, finding])
    assert both.index("## What may lose requests") < both.index("## What may run another image")
