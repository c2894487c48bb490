"""The pipeline file: every mistake with its line, in words that say the edit."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefect_cd.errors import InvalidPipeline
from prefect_cd.pipeline.describe import describe
from prefect_cd.pipeline.load import load, parse, schema
from prefect_cd.pipeline.models import ClusterAccess, Environment, Gate, ImageSettings, Pipeline, SourceSettings
from prefect_cd.pipeline.types import Duration, duration_text

GOOD = """\
application: shop
source:
  repository: https://git.example.com/acme/shop.git
  branch: main
image:
  name: registry.example.com/acme/shop
  context: app
checks:
  - name: unit tests
    run: [pytest, -q]
    report: unit.xml
    timeout: 90s
environments:
  - name: staging
    namespace: shop-staging
    manifests: k8s/staging
    url: service/shop:80
    gates:
      - name: answers
        http: {path: /health}
      - name: clicks
        browser: e2e
  - name: production
    namespace: shop
    manifests: k8s/production
    url: https://shop.example.com
    approval: {expires: 4h, approvers: [ann, bob]}
"""


def mistakes(text: str) -> list[str]:
    pipeline, complaints = parse(text, Path("p.yaml"))
    assert pipeline is None
    return [str(complaint) for complaint in complaints]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} is there {GOOD.count(old)} times"
    return GOOD.replace(old, new)


def test_a_good_file_has_no_mistakes() -> None:
    pipeline, complaints = parse(GOOD)
    assert complaints == []
    assert pipeline is not None
    assert [environment.name for environment in pipeline.environments] == ["staging", "production"]
    assert pipeline.checks[0].timeout == timedelta(seconds=90)
    assert pipeline.environment("production").approval.expires == timedelta(hours=4)  # type: ignore[union-attr]


NAME = "a DNS label: lowercase letters, digits and -, at most 63, for example shop-staging"
DURATION = "is not a duration: write a number with a unit, for example 90s, 10m, 24h or 1h30m"
IMAGE = (
    "repository in a registry, without tag; manifests name it, the digest is filled in, "
    "for example registry.example.com/acme/shop"
)
URL = "https://… or service/NAME[:PORT]; gates are run against it, for example service/shop:80"


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        # wrong keys, and where they belong
        ("  branch: main", "  brnch: main", 4, "unknown key 'source.brnch'; did you mean 'branch'?"),
        ("image:\n", "images:\n", 5, "unknown key 'images'; did you mean 'image'?"),
        (
            "checks:\n",
            "approval: {}\nchecks:\n",
            8,
            "unknown key 'approval'; it belongs in 'environments', one level lower",
        ),
        (
            "    manifests: k8s/staging\n",
            "    manifests: k8s/staging\n    context: prod\n",
            17,
            "unknown key 'environments[0].context'; it belongs in 'environments.cluster', one level lower",
        ),
        (
            "    manifests: k8s/staging\n",
            "    manifests: k8s/staging\n    image: shop\n",
            17,
            "unknown key 'environments[0].image'; it belongs at the top level, one level higher",
        ),
        (
            "        browser: e2e\n",
            "        browser: e2e\n        status: 200\n",
            23,
            "unknown key 'environments[0].gates[1].status'; it belongs in 'environments.gates.http', one level lower",
        ),
        (
            "  context: app\n",
            "  context: app\n  namespace: x\n",
            8,
            "unknown key 'image.namespace'; it belongs in 'environments'",
        ),
        (
            "  context: app\n",
            "  context: app\n  approvals: x\n",
            8,
            "unknown key 'image.approvals'; did you mean 'approval'? It belongs in 'environments'",
        ),
        (
            "    timeout: 90s\n",
            "    zzz: 90s\n",
            12,
            "unknown key 'checks[0].zzz'; possible: directory, environment, name, report, run, timeout",
        ),
        ("    namespace: shop-staging\n", "", 14, "'environments[0].namespace' is missing"),
        ("application: shop\n", "", 1, "'application' is missing"),
        # names that YAML takes for something else
        (
            "application: shop",
            "application: on",
            1,
            'application: must be text, not on (a truth value in YAML); write it in quotes: "on"',
        ),
        (
            "  branch: main",
            "  branch: 1.10",
            4,
            'source.branch: must be text, not 1.10 (a number in YAML); write it in quotes: "1.10"',
        ),
        (
            "    namespace: shop\n",
            "    namespace: 007\n",
            24,
            'environments[1].namespace: must be text, not 007 (a number in YAML); write it in quotes: "007"',
        ),
        (
            "approvers: [ann, bob]",
            "approvers: [ann, 2024-05-06]",
            27,
            (
                "environments[1].approval.approvers[1]: must be text, not 2024-05-06 (a date in YAML); "
                'write it in quotes: "2024-05-06"'
            ),
        ),
        (
            "    timeout: 90s\n",
            "    environment: {DEBUG: 1}\n",
            12,
            'checks[0].environment.DEBUG: must be text, not 1 (a number in YAML); write it in quotes: "1"',
        ),
        # wrong kinds of values
        (
            "[pytest, -q]",
            'pytest -q "a b"',
            10,
            """checks[0].run: must be a list, not 'pytest -q "a b"'; write [pytest, -q, a b]""",
        ),
        ("[pytest, -q]", "[]", 10, "checks[0].run: must not be empty"),
        ("[pytest, -q]", "", 10, "checks[0].run: has no value; write one or leave the key out"),
        ("[pytest, -q]", "{a: b}", 10, "checks[0].run: must be a list, not a mapping; begin each entry with `- `"),
        ("timeout: 90s", "timeout: 90", 12, f"checks[0].timeout: 90 {DURATION}"),
        ("timeout: 90s", "timeout: 90 s", 12, f"checks[0].timeout: '90 s' {DURATION}"),
        ("timeout: 90s", "timeout: ٣s", 12, f"checks[0].timeout: '٣s' {DURATION}"),
        ("timeout: 90s", "timeout: 0s", 12, "checks[0].timeout: must be longer than 0s"),
        (
            "timeout: 90s",
            "timeout: 999999999999999d",
            12,
            "checks[0].timeout: '999999999999999d' is longer than a year",
        ),
        (
            "source:\n  repository: https://git.example.com/acme/shop.git\n  branch: main\n",
            "source: here\n",
            2,
            (
                "source: must be a mapping (key: value), not 'here'; "
                "possible: branch, credentials, repository, submodules, timeout"
            ),
        ),
        ("  branch: main", "  submodules: maybe", 4, "source.submodules: must be true or false, not 'maybe'"),
        (
            "    url: service/shop:80",
            "    url: service/shop:80\n    rollout: {crashes: many}",
            18,
            "environments[0].rollout.crashes: must be a whole number, not 'many'",
        ),
        (
            "    url: service/shop:80",
            "    url: service/shop:80\n    rollout: {crashes: 0}",
            18,
            "environments[0].rollout.crashes: must be at least 1, not 0",
        ),
        (
            "    url: service/shop:80",
            "    url: service/shop:80\n    rollout: {crashes: 21}",
            18,
            "environments[0].rollout.crashes: must be at most 20, not 21",
        ),
        (
            "    url: service/shop:80",
            "    url: service/shop:80\n    rollback: automatc",
            18,
            "environments[0].rollback: must be 'automatic' or 'never', not 'automatc'; did you mean 'automatic'?",
        ),
        (
            "name: unit tests",
            f"name: {'x' * 61}",
            9,
            "checks[0].name: must have at most 60 characters",
        ),
        ("name: unit tests", "name: ''", 9, "checks[0].name: must not be empty"),
        # forms
        ("application: shop", "application: My Shop", 1, f"application: 'My Shop' does not fit: {NAME}"),
        ("acme/shop\n", "Acme/shop\n", 6, f"image.name: 'registry.example.com/Acme/shop' does not fit: {IMAGE}"),
        ("acme/shop\n", "acme/shop:1\n", 6, f"image.name: 'registry.example.com/acme/shop:1' does not fit: {IMAGE}"),
        ("service/shop:80", "shop:80", 17, f"environments[0].url: 'shop:80' does not fit: {URL}"),
        (
            "{path: /health}",
            "{path: health}",
            20,
            "environments[0].gates[0].http.path: 'health' does not fit: from the first slash on, for example /health",
        ),
        (
            "manifests: k8s/staging",
            "manifests: ../k8s",
            16,
            "environments[0].manifests: '../k8s' leaves the commit: write a path below its top, without ..",
        ),
        (
            "browser: e2e",
            "browser: /e2e",
            22,
            "environments[0].gates[1].browser: '/e2e' leaves the commit: write a path below its top, without ..",
        ),
        # what only whole parts can be wrong about
        (
            "        browser: e2e\n",
            "        browser: e2e\n        run: [x]\n",
            21,
            "environments[0].gates[1]: a gate is exactly one of browser, http or run, not browser and run",
        ),
        (
            "        browser: e2e\n",
            "",
            21,
            "environments[0].gates[1]: a gate is exactly one of browser, http or run, not none",
        ),
        (
            "        browser: e2e\n",
            "        browser: e2e\n        report: x.xml\n",
            21,
            "environments[0].gates[1]: report belongs to a gate with run; a browser gate reports by itself",
        ),
        (
            "    url: service/shop:80\n",
            "",
            14,
            "environments[0]: gates need the environment's url (https://… or service/NAME)",
        ),
        (
            "    url: https://shop.example.com\n",
            "    cluster: {context: a, in_cluster: true}\n",
            26,
            "environments[1].cluster: choose one of kubeconfig (and context), in_cluster or credentials",
        ),
        # twice
        ("name: clicks", "name: answers", 21, "a second gate called 'answers'; the first is in line 19"),
        ("name: production", "name: staging", 23, "a second environment called 'staging'; the first is in line 14"),
        (
            "checks:\n",
            "checks:\n  - {name: unit tests, run: [x]}\n",
            10,
            "a second check called 'unit tests'; the first is in line 9",
        ),
        (
            "namespace: shop\n",
            "namespace: shop-staging\n",
            24,
            "the same namespace of the same cluster as in line 15; environments are kept apart",
        ),
        (
            "  branch: main\n",
            "  branch: main\n  branch: dev\n",
            5,
            "the key 'branch' is there twice; the second would win",
        ),
        (
            "checks:\n",
            "on: 1\nchecks:\n",
            8,
            'the key on is a truth value in YAML, not text; write it in quotes: "on"',
        ),
    ],
)
def test_a_mistake_is_told_with_its_line_and_alone(old: str, new: str, line: int, said: str) -> None:
    assert mistakes(changed(old, new)) == [f"p.yaml:{line}: {said}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.yaml:1: the file is empty"),
        ("# nothing but a remark\n", "p.yaml:1: the file is empty"),
        ("~\n", "p.yaml:1: the file is empty"),
        (
            "- a\n",
            (
                "p.yaml:1: must be a mapping (key: value), not a list; "
                "possible: application, checks, environments, image, source"
            ),
        ),
        (
            "a: 1\n---\nb: 2\n",
            "p.yaml:2: a second document begins here; a pipeline file is one document, without `---` inside",
        ),
        ("a: [1\nb: 2\n", "p.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("a:\n\tb: 1\n", "p.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x07\n", "p.yaml:2: not YAML: unacceptable character #x0007: special characters are not allowed"),
        ("a: 1\nb: 2020-13-01\n", "p.yaml:2: not YAML: cannot read this value: month must be in 1..12"),
        ("a: *nobody\n", "p.yaml:1: not YAML: found undefined alias 'nobody'"),
        ("a: !secret x\n", "p.yaml:1: not YAML: could not determine a constructor for the tag '!secret'"),
        ("[" * 5000, "p.yaml:1: nested too deeply for a pipeline file"),
    ],
)
def test_what_is_no_pipeline_at_all_is_told_in_one_line(text: str, said: str) -> None:
    assert mistakes(text) == [said]


def test_all_mistakes_are_told_at_once_and_in_the_order_of_the_file() -> None:
    text = changed("application: shop", "application: on").replace("timeout: 90s", "timout: 90s")
    text = text.replace("name: production", "name: staging").replace("namespace: shop\n", "namespace: A\n")
    assert [re.sub(r"^p.yaml:(\d+): (.{20}).*", r"\1 \2", line) for line in mistakes(text)] == [
        "1 application: must be",
        "12 unknown key 'checks[",
        "23 a second environment",
        "24 environments[1].name",
    ]


def test_an_invalid_entry_does_not_make_its_list_empty() -> None:
    told = mistakes(changed("    namespace: shop-staging\n", "").replace("    namespace: shop\n", ""))
    assert [line.partition(": ")[2] for line in told] == [
        "'environments[0].namespace' is missing",
        "'environments[1].namespace' is missing",
    ]


def test_a_list_that_is_really_empty_is_told() -> None:
    text = GOOD[: GOOD.index("environments:")] + "environments: []\n"
    assert mistakes(text) == ["p.yaml:13: environments: must not be empty"]


ANCHORED = changed("  - name: staging\n", "  - &base\n    name: staging\n")
MERGED = (
    ANCHORED[: ANCHORED.index("  - name: production")]
    + """\
  - <<: *base
    name: production
    namespace: shop
"""
)


def test_anchors_and_merge_keys_work() -> None:
    pipeline, complaints = parse(MERGED)
    assert complaints == []
    assert pipeline is not None
    assert pipeline.environment("production").gates == pipeline.environment("staging").gates


def test_what_is_merged_in_is_complained_about_where_it_is_merged() -> None:
    assert mistakes(MERGED.replace("    name: production\n", "")) == [
        "p.yaml:24: a second environment called 'staging'; the first is in line 15"
    ]


def test_an_alias_is_complained_about_in_its_own_line() -> None:
    text = MERGED[: MERGED.index("  - <<")] + "  - *base\n"
    assert mistakes(text) == [
        "p.yaml:24: a second environment called 'staging'; the first is in line 15",
        "p.yaml:24: the same namespace of the same cluster as in line 16; environments are kept apart",
    ]


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert len(mistakes("\n".join(lines))) == 64  # 60 unknown keys, 4 missing ones


def test_the_same_namespace_in_two_clusters_is_fine() -> None:
    text = changed("namespace: shop\n", "namespace: shop-staging\n    cluster: {context: prod}\n")
    assert parse(text)[1] == []


def test_a_model_refuses_duplicates_without_a_file_too() -> None:
    pipeline, _ = parse(GOOD)
    assert pipeline is not None
    twice = {**pipeline.model_dump(), "environments": [pipeline.environments[0]] * 2}
    with pytest.raises(ValidationError, match="two entries with the same environment: staging"):
        Pipeline.model_validate(twice)
    gate = {"name": "g", "browser": "e2e"}
    with pytest.raises(ValidationError, match="two entries with the same gate: g"):
        Environment.model_validate(
            {"name": "a", "namespace": "a", "manifests": "k8s", "url": "service/a", "gates": [gate, gate]}
        )


def test_loading_makes_paths_absolute_as_seen_from_the_file(tmp_path: Path) -> None:
    text = changed("https://git.example.com/acme/shop.git", "../shop")
    text = text.replace("    namespace: shop\n", "    namespace: shop\n    cluster: {kubeconfig: kube/config}\n")
    (tmp_path / "p.yaml").write_text(text)
    pipeline = load(tmp_path / "p.yaml")
    assert pipeline.source.repository == str(tmp_path.parent / "shop")
    assert pipeline.environments[1].cluster.kubeconfig == str(tmp_path / "kube/config")
    assert pipeline.environments[0].cluster == ClusterAccess()


@pytest.mark.parametrize(
    "address", ["https://git.example.com/a.git", "ssh://git@example.com/a.git", "git@example.com:acme/shop.git"]
)
def test_loading_leaves_addresses_alone(address: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(changed("https://git.example.com/acme/shop.git", address))
    assert load(tmp_path / "p.yaml").source.repository == address


def test_loading_a_bad_file_tells_all_mistakes_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(changed("timeout: 90s", "timeout: 90").replace("  branch:", "  brnch:"))
    with pytest.raises(InvalidPipeline) as caught:
        load(path)
    assert caught.value.reason == f"2 mistakes in {path}"
    assert [line.partition(": ")[0] for line in caught.value.detail.splitlines()] == [f"{path}:4", f"{path}:12"]
    assert "prefect-cd schema" in caught.value.hint


def test_loading_one_mistake_counts_one(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    with pytest.raises(InvalidPipeline, match="] 1 mistake in"):
        load(tmp_path / "p.yaml")


def test_loading_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"application: caf\xe9\n")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "latin"):
        with pytest.raises(InvalidPipeline, match="cannot read"):
            load(path)


def test_the_schema_knows_every_field_and_forbids_others() -> None:
    described = schema()
    models = [described, *described["$defs"].values()]
    assert all(model["additionalProperties"] is False for model in models)
    assert set(described["properties"]) == set(Pipeline.model_fields)


def test_the_schema_takes_the_defaults_that_it_names() -> None:
    described = schema()["$defs"]
    timeout = described["Check"]["properties"]["timeout"]
    assert re.fullmatch(timeout["pattern"], "1h30m")
    assert timeout["default"] == "15m"
    assert described["Environment"]["properties"]["rollout"]["default"]["patience"]["registry"] == "1m30s"


def test_the_plan_says_every_step_in_order() -> None:
    pipeline, _ = parse(GOOD)
    assert pipeline is not None
    assert (
        describe(pipeline)
        == """\
A release of shop:
1. check out one commit of https://git.example.com/acme/shop.git (branch main unless told otherwise)
2. build registry.example.com/acme/shop once from app/Dockerfile with the first of docker, podman and buildah \
that works, within 30m
3. unit tests: run `pytest -q`, within 1m30s
4. staging: namespace shop-staging in the cluster that this runs in, or else of the current context
   - apply k8s/staging and watch the rollout for at most 10m (doomed after 3 crashes; \
30s to 1m30s for what may heal), then see it stay up for 30s
   - gate answers: GET service/shop:80/health answers 200, within 10m
   - gate clicks: a browser runs the suite e2e against service/shop:80, within 10m
   - if the rollout or a gate fails: go back to known-good
5. production: namespace shop in the cluster that this runs in, or else of the current context
   - first, ann or bob approves exactly this release within 4h
   - apply k8s/production and watch the rollout for at most 10m (doomed after 3 crashes; \
30s to 1m30s for what may heal), then see it stay up for 30s
   - if the rollout fails: go back to known-good
6. record what passed as each environment's known-good, which a later release goes back to"""
    )


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"in_cluster": True}, "the cluster that this runs in\n"),
        ({"credentials": "prod"}, "the cluster of the Prefect block prod\n"),
        ({"context": "c"}, "the cluster of context c\n"),
        ({"kubeconfig": "/k"}, "the current context of /k\n"),
        ({"kubeconfig": "/k", "context": "c"}, "context c of /k\n"),
    ],
)
def test_the_plan_names_the_cluster(cluster: dict[str, Any], said: str) -> None:
    assert said in describe(small(cluster=ClusterAccess(**cluster)))


def test_the_plan_says_what_is_unusual() -> None:
    plan = describe(
        small(
            rollback="never",
            take_over=True,
            cluster_scoped=("ClusterRole", "Namespace"),
            url="https://x.example.com/",
            gates=(
                Gate(name="g", run=("k6", "run", "a b.js"), directory="load"),
                Gate.model_validate({"name": "h", "http": {"contains": "ok"}}),
            ),
        )
    )
    assert "   - cluster-scoped objects it may contain: ClusterRole and Namespace\n" in plan
    assert "   - take over what other managers own\n" in plan
    assert "   - gate g: run `k6 run 'a b.js'` in load against https://x.example.com/, within 10m\n" in plan
    assert "   - gate h: GET https://x.example.com/ answers 200 and contains 'ok', within 10m\n" in plan
    assert "   - if the rollout or a gate fails: stop and leave it as it is\n" in plan


def test_the_plan_does_not_print_a_password_of_the_repository() -> None:
    assert "https://git.example.com/shop" in describe(small(repository="https://ann:secret@git.example.com/shop"))
    assert "secret" not in describe(small(repository="https://ann:secret@git.example.com/shop"))


def small(repository: str = "https://git.example.com/shop", **environment: Any) -> Pipeline:  # noqa: ANN401 - any field of it
    return Pipeline(
        application="shop",
        source=SourceSettings(repository=repository),
        image=ImageSettings(name="registry.example.com/shop"),
        environments=(Environment(name="one", namespace="one", manifests="k8s", **environment),),
    )


def test_an_environment_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(KeyError, match="no environment 'two'; there are: one"):
        small().environment("two")


durations = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("250ms", timedelta(milliseconds=250)),
        ("0s", timedelta()),
        ("1s1s", timedelta(seconds=2)),
    ],
)
def test_a_duration_is_read(text: str, value: timedelta) -> None:
    assert durations.validate_python(text) == value


@pytest.mark.parametrize("text", ["", "s", "10", "-1s", "1.5h", "1 h", "1w", "1h30", 90, 1.5, None, True, [], "1S"])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="is not a duration"):
        durations.validate_python(text)


@settings(deadline=None)
@given(st.integers(0, 366 * 86_400_000))
def test_a_duration_survives_writing_and_reading(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert durations.validate_python(duration_text(value)) == value
    assert durations.validate_json(durations.dump_json(value)) == value


TAGS = ["!!int ", "!!set ", "!!timestamp ", "!!bool ", "!!float ", "!!null ", "!!binary ", "!!omap "]
ODD = [*TAGS, *["<<: *a", "&a ", "*a", "---", "? ", "=", "~", "\t", "'"], '"\\ud800"', "0x" + "f" * 5000]
TOKENS = st.sampled_from([*re.findall(r"\w+|[^\w\s]|\n| +", GOOD), "\n", "\n  - ", ": ", *ODD])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(TOKENS, max_size=60).map("".join)))
@pytest.mark.timeout(60)
def test_parsing_never_raises(text: str) -> None:
    pipeline, complaints = parse(text)
    assert (pipeline is None) == bool(complaints)
    assert all(1 <= complaint.line <= text.count("\n") + 2 for complaint in complaints)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates())


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.timeout(60)
def test_parsing_never_raises_when_any_value_is_replaced(data: st.DataObject) -> None:
    whole = yaml.safe_load(GOOD)
    place: Any = whole
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            place[key] = data.draw(
                st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner), max_leaves=4)
            )
            break
        place = place[key]
    pipeline, complaints = parse(yaml.safe_dump(whole))
    assert (pipeline is None) == bool(complaints)
