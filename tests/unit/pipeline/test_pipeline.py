"""The pipeline file: every mistake is reported with its line and how to correct it."""

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
    pipeline, found_mistakes = parse(text, Path("p.yaml"))
    assert pipeline is None
    return [str(mistake) for mistake in found_mistakes]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} is there {GOOD.count(old)} times"
    return GOOD.replace(old, new)


def test_a_good_file_has_no_mistakes() -> None:
    pipeline, found_mistakes = parse(GOOD)
    assert found_mistakes == []
    assert pipeline is not None
    assert [environment.name for environment in pipeline.environments] == ["staging", "production"]
    assert pipeline.checks[0].timeout == timedelta(seconds=90)
    assert pipeline.environment("production").approval.expires == timedelta(hours=4)  # type: ignore[union-attr]


NAME = "a DNS label: at most 63 lowercase letters, digits and hyphens, for example shop-staging"
DURATION = "is not a duration: write a number with a unit, for example 90s, 10m, 24h or 1h30m"
IMAGE = (
    "image repository without tag; the digest is filled in where the manifests use this name, "
    "for example registry.example.com/acme/shop"
)
URL = "https://… or service/NAME[:PORT]; gates test this URL, for example service/shop:80"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
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
            "unknown key 'checks[0].zzz'; possible keys: directory, environment, isolation, name, report, run, timeout",
        ),
        ("    namespace: shop-staging\n", "", 14, "'environments[0].namespace' is missing"),
        ("application: shop\n", "", 1, "'application' is missing"),
        # text that YAML reads as another type
        (
            "application: shop",
            "application: on",
            1,
            'application: must be text, not on (a boolean in YAML); write it in quotes: "on"',
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
        # values of a wrong type
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
                "possible keys: branch, credentials, credentials_for, repository, submodules, timeout"
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
        # values that do not match their pattern
        ("application: shop", "application: My Shop", 1, f"application: 'My Shop' is not valid; expected: {NAME}"),
        (
            "acme/shop\n",
            "Acme/shop\n",
            6,
            f"image.name: 'registry.example.com/Acme/shop' is not valid; expected: {IMAGE}",
        ),
        (
            "acme/shop\n",
            "acme/shop:1\n",
            6,
            f"image.name: 'registry.example.com/acme/shop:1' is not valid; expected: {IMAGE}",
        ),
        ("service/shop:80", "shop:80", 17, f"environments[0].url: 'shop:80' is not valid; expected: {URL}"),
        (
            "{path: /health}",
            "{path: health}",
            20,
            (
                "environments[0].gates[0].http.path: 'health' is not valid; "
                "expected: the path of the request, beginning with a slash, for example /health"
            ),
        ),
        (
            "manifests: k8s/staging",
            "manifests: ../k8s",
            16,
            "environments[0].manifests: '../k8s' is not inside the repository: write a relative path without ..",
        ),
        (
            "browser: e2e",
            "browser: /e2e",
            22,
            "environments[0].gates[1].browser: '/e2e' is not inside the repository: write a relative path without ..",
        ),
        # keys that are wrong in combination
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
            "environments[0].gates[1]: report is only for a gate with run; a browser gate always writes a report",
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
        # duplicates
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
            "the same namespace of the same cluster as in line 15; each environment needs its own",
        ),
        (
            "  branch: main\n",
            "  branch: main\n  branch: dev\n",
            5,
            "duplicate key 'branch'; YAML would use the last one only",
        ),
        (
            "checks:\n",
            "on: 1\nchecks:\n",
            8,
            'the key on is a boolean in YAML, not text; write it in quotes: "on"',
        ),
    ],
)
def test_a_mistake_is_reported_once_and_with_its_line(old: str, new: str, line: int, message: str) -> None:
    assert mistakes(changed(old, new)) == [f"p.yaml:{line}: {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.yaml:1: the file is empty"),
        ("# only a comment\n", "p.yaml:1: the file is empty"),
        ("~\n", "p.yaml:1: the file is empty"),
        (
            "- a\n",
            (
                "p.yaml:1: must be a mapping (key: value), not a list; "
                "possible keys: application, checks, environments, image, security, source"
            ),
        ),
        (
            "a: 1\n---\nb: 2\n",
            "p.yaml:2: a second YAML document starts here; a pipeline file is one document, without `---` in between",
        ),
        ("a: [1\nb: 2\n", "p.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("a:\n\tb: 1\n", "p.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x07\n", "p.yaml:2: not YAML: unacceptable character #x0007: special characters are not allowed"),
        ("a: 1\nb: 2020-13-01\n", "p.yaml:2: not YAML: cannot read this value: month must be in 1..12"),
        ("a: *missing\n", "p.yaml:1: not YAML: found undefined alias 'missing'"),
        ("a: !secret x\n", "p.yaml:1: not YAML: could not determine a constructor for the tag '!secret'"),
        ("[" * 5000, "p.yaml:1: nested too deeply for a pipeline file"),
    ],
)
def test_a_file_that_is_no_pipeline_is_reported_in_one_line(text: str, message: str) -> None:
    assert mistakes(text) == [message]


def test_all_mistakes_are_reported_at_once_and_in_the_order_of_the_file() -> None:
    text = changed("application: shop", "application: on").replace("timeout: 90s", "timout: 90s")
    text = text.replace("name: production", "name: staging").replace("namespace: shop\n", "namespace: A\n")
    assert [re.sub(r"^p.yaml:(\d+): (.{20}).*", r"\1 \2", line) for line in mistakes(text)] == [
        "1 application: must be",
        "12 unknown key 'checks[",
        "23 a second environment",
        "24 environments[1].name",
    ]


def test_an_invalid_entry_does_not_make_its_list_empty() -> None:
    messages = mistakes(changed("    namespace: shop-staging\n", "").replace("    namespace: shop\n", ""))
    assert [line.partition(": ")[2] for line in messages] == [
        "'environments[0].namespace' is missing",
        "'environments[1].namespace' is missing",
    ]


def test_an_empty_list_is_reported() -> None:
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
    pipeline, found_mistakes = parse(MERGED)
    assert found_mistakes == []
    assert pipeline is not None
    assert pipeline.environment("production").gates == pipeline.environment("staging").gates


def test_a_mistake_in_merged_keys_is_reported_at_the_merge() -> None:
    assert mistakes(MERGED.replace("    name: production\n", "")) == [
        "p.yaml:24: a second environment called 'staging'; the first is in line 15"
    ]


def test_a_mistake_in_an_alias_is_reported_at_the_line_of_the_alias() -> None:
    text = MERGED[: MERGED.index("  - <<")] + "  - *base\n"
    assert mistakes(text) == [
        "p.yaml:24: a second environment called 'staging'; the first is in line 15",
        "p.yaml:24: the same namespace of the same cluster as in line 16; each environment needs its own",
    ]


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert len(mistakes("\n".join(lines))) == 64  # 60 unknown keys, 4 missing ones


def test_the_same_namespace_in_two_clusters_is_no_mistake() -> None:
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


def test_loading_resolves_paths_relative_to_the_file(tmp_path: Path) -> None:
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
def test_loading_leaves_urls_unchanged(address: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(changed("https://git.example.com/acme/shop.git", address))
    assert load(tmp_path / "p.yaml").source.repository == address


def test_loading_a_bad_file_reports_all_mistakes_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(changed("timeout: 90s", "timeout: 90").replace("  branch:", "  brnch:"))
    with pytest.raises(InvalidPipeline) as caught:
        load(path)
    assert caught.value.reason == f"2 mistakes in {path}"
    assert [line.partition(": ")[0] for line in caught.value.detail.splitlines()] == [f"{path}:4", f"{path}:12"]
    assert "prefect-cd schema" in caught.value.hint


def test_loading_a_file_with_one_mistake_uses_the_singular(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    with pytest.raises(InvalidPipeline, match="] 1 mistake in"):
        load(tmp_path / "p.yaml")


def test_loading_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"application: caf\xe9\n")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "latin"):
        with pytest.raises(InvalidPipeline, match="cannot read"):
            load(path)


def test_the_schema_contains_every_key_and_forbids_others() -> None:
    json_schema = schema()
    models = [json_schema, *json_schema["$defs"].values()]
    assert all(model["additionalProperties"] is False for model in models)
    assert set(json_schema["properties"]) == set(Pipeline.model_fields)


def test_the_defaults_in_the_schema_match_its_patterns() -> None:
    definitions = schema()["$defs"]
    timeout = definitions["Check"]["properties"]["timeout"]
    assert re.fullmatch(timeout["pattern"], "1h30m")
    assert timeout["default"] == "15m"
    assert definitions["Environment"]["properties"]["rollout"]["default"]["patience"]["registry"] == "1m30s"


def test_the_description_lists_every_step_in_order() -> None:
    pipeline, _ = parse(GOOD)
    assert pipeline is not None
    assert (
        describe(pipeline)
        == """\
A release of shop:
1. check out one commit of https://git.example.com/acme/shop.git (branch main by default)
2. build registry.example.com/acme/shop once from app/Dockerfile with the first of docker, podman and buildah \
that works, within 30m
3. unit tests: run `pytest -q`, within 1m30s
4. staging: namespace shop-staging in the cluster that the worker runs in, \
or else the cluster of the current context
   - apply k8s/staging and watch the rollout for at most 10m (failed after 3 crashes; \
recoverable problems may last 30s to 1m30s), then check that it stays healthy for 30s
   - gate answers: GET service/shop:80/health returns 200, within 10m
   - gate clicks: a browser runs the suite e2e against service/shop:80, within 10m
   - if the rollout or a gate fails: roll back to the known-good version
5. production: namespace shop in the cluster that the worker runs in, \
or else the cluster of the current context
   - wait until ann or bob approves exactly this release, for at most 4h
   - apply k8s/production and watch the rollout for at most 10m (failed after 3 crashes; \
recoverable problems may last 30s to 1m30s), then check that it stays healthy for 30s
   - if the rollout fails: roll back to the known-good version
6. record the release as the known-good version of each environment, for later rollbacks"""
    )


@pytest.mark.parametrize(
    ("cluster", "text"),
    [
        ({"in_cluster": True}, "the cluster that the worker runs in\n"),
        ({"credentials": "prod"}, "the cluster of the Prefect block prod\n"),
        ({"context": "c"}, "the cluster of context c\n"),
        ({"kubeconfig": "/k"}, "the current context of /k\n"),
        ({"kubeconfig": "/k", "context": "c"}, "context c of /k\n"),
    ],
)
def test_the_description_names_the_cluster(cluster: dict[str, Any], text: str) -> None:
    assert text in describe(small(cluster=ClusterAccess(**cluster)))


def test_the_description_lists_settings_that_differ_from_the_defaults() -> None:
    description = describe(
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
    assert "   - allowed cluster-scoped objects: ClusterRole and Namespace\n" in description
    assert "   - take over objects and fields of other field managers\n" in description
    assert "   - gate g: run `k6 run 'a b.js'` in load against https://x.example.com/, within 10m\n" in description
    assert "   - gate h: GET https://x.example.com/ returns 200 and contains 'ok', within 10m\n" in description
    assert "   - if the rollout or a gate fails: stop and leave the environment as it is\n" in description


def test_a_gate_of_a_kind_without_a_description_is_not_described_as_another_one() -> None:
    pipeline = small(url="https://x.example.com/")
    environment = pipeline.environments[0].model_copy(update={"gates": (Gate.model_construct(name="load"),)})
    with pytest.raises(AssertionError, match="gate load"):
        describe(pipeline.model_copy(update={"environments": (environment,)}))


def test_the_description_contains_no_password_of_the_repository() -> None:
    assert "https://git.example.com/shop" in describe(small(repository="https://ann:secret@git.example.com/shop"))
    assert "secret" not in describe(small(repository="https://ann:secret@git.example.com/shop"))


def small(repository: str = "https://git.example.com/shop", **environment: Any) -> Pipeline:  # noqa: ANN401 - any field of the model
    return Pipeline(
        application="shop",
        source=SourceSettings(repository=repository),
        image=ImageSettings(name="registry.example.com/shop"),
        environments=(Environment(name="one", namespace="one", manifests="k8s", **environment),),
    )


def test_an_unknown_environment_is_an_error_that_lists_the_known_ones() -> None:
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
def test_an_invalid_duration_is_refused(text: object) -> None:
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
    pipeline, found_mistakes = parse(text)
    assert (pipeline is None) == bool(found_mistakes)
    assert all(1 <= mistake.line <= text.count("\n") + 2 for mistake in found_mistakes)


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
    pipeline, found_mistakes = parse(yaml.safe_dump(whole))
    assert (pipeline is None) == bool(found_mistakes)
