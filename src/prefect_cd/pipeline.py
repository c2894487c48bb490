"""The pipeline file: what it may say, and what is wrong with one, each complaint with file:line.

This file is the operator's. It decides about environments, approvals and credentials, so it is read from the
operator's disk only, never from the commit that is being released. It knows nothing of clusters or git.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import Self

from prefect_cd.errors import InvalidPipeline

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
_DURATION = re.compile(r"(?:\d+(?:ms|d|h|m|s))+")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and _DURATION.fullmatch(value):
        parts = re.findall(r"(\d+)(ms|d|h|m|s)", value)
        return timedelta(**{_UNITS[unit]: int(number) for number, unit in reversed(parts)})
    raise ValueError(f"{value!r} is not a duration: write a number with a unit, for example 90s, 10m, 24h or 1h30m")


def duration_text(value: timedelta) -> str:
    """A duration as the pipeline file writes it: timedelta(minutes=90) -> '1h30m'."""
    left, parts = round(value.total_seconds() * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, left = divmod(left, milliseconds)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _inside(value: str) -> str:
    if value.startswith("/") or ".." in Path(value).parts:
        raise ValueError(f"{value!r} leaves the commit: write a path below its top, without ..")
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["90s", "10m", "24h"]}),
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="a DNS label")]
Label = Annotated[str, Field(min_length=1, max_length=60)]
RelativePath = Annotated[str, AfterValidator(_inside), Field(min_length=1, description="a path inside the commit")]
Command = Annotated[tuple[str, ...], Field(min_length=1)]
_MINUTE = timedelta(minutes=1)


class Settings(BaseModel):
    """A part of the pipeline file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(Settings):
    """Where commits come from."""

    repository: Annotated[str, Field(min_length=1, description="https or ssh URL, or a path (seen from this file)")]
    branch: Annotated[str, Field(description="what a run without a revision releases")] = "main"
    credentials: Annotated[
        str | None,
        Field(description="Prefect block for a private repository: TYPE/NAME, for example github-credentials/acme"),
    ] = None
    submodules: Annotated[bool, Field(description="check submodules out, too")] = False
    timeout: Annotated[Duration, Field(description="for resolving and for checking out, each")] = 5 * _MINUTE


class ImageSettings(Settings):
    """How the commit becomes an image."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$",
            description="repository in a registry, without tag; manifests name it, the digest is filled in",
        ),
    ]
    context: Annotated[RelativePath, Field(description="build context")] = "."
    dockerfile: Annotated[RelativePath, Field(description="seen from the context")] = "Dockerfile"
    args: Annotated[dict[str, str], Field(description="build arguments; VERSION is the commit unless given")] = {}
    builder: Annotated[
        Literal["docker", "podman", "buildah"] | None,
        Field(description="default: the first of docker, podman, buildah that works"),
    ] = None
    options: Annotated[tuple[str, ...], Field(description="further flags for the builder's build command")] = ()
    insecure: Annotated[
        bool | None, Field(description="plain HTTP registry; default: only for localhost and loopback")
    ] = None
    timeout: Annotated[Duration, Field(description="for build and push together")] = 30 * _MINUTE


class Check(Settings):
    """A command that must pass before anything is deployed."""

    name: Label
    run: Annotated[Command, Field(description="program and arguments; no shell; starts in the checkout")]
    report: Annotated[RelativePath | None, Field(description="the JUnit XML that the command writes")] = None
    directory: Annotated[RelativePath, Field(description="where it starts, seen from the commit")] = "."
    environment: Annotated[dict[str, str], Field(description="variables for the command; it sees no others of ours")] = {}
    timeout: Annotated[Duration, Field(description="after this the check has not answered")] = 15 * _MINUTE


class HttpCheck(Settings):
    """A request and what its answer must be."""

    path: Annotated[str, Field(pattern="^/")] = "/"
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: Annotated[str | None, Field(description="text that the body must contain")] = None


class Gate(Settings):
    """A test of a running environment: one of browser, http or run."""

    name: Label
    browser: Annotated[RelativePath | None, Field(description="folder of a pytest + Playwright suite")] = None
    http: HttpCheck | None = None
    run: Annotated[Command | None, Field(description="command; BASE_URL is set")] = None
    report: Annotated[RelativePath | None, Field(description="the JUnit XML that `run` writes")] = None
    directory: Annotated[RelativePath, Field(description="where it starts, seen from the commit")] = "."
    environment: Annotated[dict[str, str], Field(description="further variables")] = {}
    timeout: Annotated[Duration, Field(description="after this the gate has not answered")] = 10 * _MINUTE

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Self:
        kinds = [kind for kind in ("browser", "http", "run") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a gate is exactly one of browser, http or run, not {' and '.join(kinds) or 'none'}")
        if self.report and not self.run:
            raise ValueError("report belongs to a gate with run; a browser gate reports by itself")
        return self


class Approval(Settings):
    """A person decides before the environment is touched."""

    expires: Annotated[Duration, Field(description="after this the release has to be started again")] = timedelta(days=1)
    approvers: Annotated[
        tuple[str, ...], Field(description="names that may approve; empty: any name. Prefect does not prove a name")
    ] = ()


class RolloutSettings(Settings):
    """How long to watch, and how patient to be."""

    timeout: Annotated[Duration, Field(description="after this an unfinished rollout has failed")] = 10 * _MINUTE
    crashes: Annotated[int, Field(ge=1, le=20, description="failed starts of one container that count as doom")] = 3
    patience: Annotated[
        Duration, Field(description="for what may heal: a missing ConfigMap, quota, no room on a node, a registry that is down")
    ] = _MINUTE


class ClusterAccess(Settings):
    """How the cluster is reached: kubeconfig and context, in-cluster, or a Prefect block.

    Empty: in-cluster when there is a service account, else $KUBECONFIG or ~/.kube/config.
    """

    kubeconfig: Annotated[str | None, Field(description="path, seen from this file")] = None
    context: Annotated[str | None, Field(description="default: the current context")] = None
    in_cluster: Annotated[bool, Field(description="use the pod's service account")] = False
    credentials: Annotated[str | None, Field(description="name of a KubernetesCredentials block")] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [bool(self.kubeconfig or self.context), self.in_cluster, bool(self.credentials)]
        if sum(ways) > 1:
            raise ValueError("choose one of kubeconfig (and context), in_cluster or credentials")
        return self


class Environment(Settings):
    """A namespace in a cluster with a URL, and what happens on the way in."""

    name: Name
    namespace: Name
    manifests: Annotated[RelativePath, Field(description="folder of YAML files, or a kustomize overlay")]
    cluster: ClusterAccess = ClusterAccess()
    url: Annotated[
        str | None,
        Field(
            pattern=r"^(https?://.+|service/[a-z0-9]([-a-z0-9]*[a-z0-9])?(:[a-z0-9-]+)?)$",
            description="https://… or service/NAME[:PORT]; gates are run against it",
        ),
    ] = None
    approval: Approval | None = None
    gates: tuple[Gate, ...] = ()
    rollout: RolloutSettings = RolloutSettings()
    rollback: Annotated[
        Literal["automatic", "never"], Field(description="what follows a failed rollout or gate")
    ] = "automatic"
    cluster_scoped: Annotated[
        tuple[str, ...], Field(description="kinds of cluster-scoped objects that the manifests may contain")
    ] = ()
    take_over: Annotated[
        bool, Field(description="take objects and fields over from other managers instead of refusing")
    ] = False

    @model_validator(mode="after")
    def _gates_need_a_url(self) -> Self:
        if self.gates and not self.url:
            raise ValueError("gates need the environment's url (https://… or service/NAME)")
        _unique([gate.name for gate in self.gates], "gate")
        return self


class Pipeline(Settings):
    """One application, from its repository to its last environment."""

    application: Name
    source: SourceSettings
    image: ImageSettings
    checks: tuple[Check, ...] = ()
    environments: Annotated[tuple[Environment, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _unique([check.name for check in self.checks], "check")
        _unique([environment.name for environment in self.environments], "environment")
        _unique([str((e.cluster, e.namespace)) for e in self.environments], "cluster and namespace", named=False)
        return self

    def environment(self, name: str) -> Environment:
        """The environment called `name`; KeyError with the known names otherwise."""
        for environment in self.environments:
            if environment.name == name:
                return environment
        raise KeyError(f"no environment {name!r}; there are: {', '.join(e.name for e in self.environments)}")


def _unique(values: Sequence[str], what: str, *, named: bool = True) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"two entries with the same {what}{f' {value!r}' if named else ''}")
        seen.add(value)


@dataclass(frozen=True)
class Complaint:
    """One mistake in the pipeline file."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def load(path: Path) -> Pipeline:
    """Read a pipeline file.

    Args:
        path: the file; `repository` and `kubeconfig` paths in it are made absolute, seen from its folder.

    Raises:
        InvalidPipeline: with all complaints, one per line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPipeline(f"cannot read {path}: {error}", hint="give the path of a pipeline file") from error
    pipeline, complaints = parse(text, path)
    if complaints or pipeline is None:
        raise InvalidPipeline(
            f"{len(complaints)} mistake{'s' if len(complaints) != 1 else ''} in {path}",
            detail="\n".join(map(str, complaints)),
            hint="correct the lines above; `prefect-cd schema` prints what a pipeline file may say",
        )
    return _absolute(pipeline, path.resolve().parent)


def parse(text: str, file: Path = Path("pipeline.yaml")) -> tuple[Pipeline | None, list[Complaint]]:
    """The pipeline that `text` describes, or None, and everything that is wrong with it, by line."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, [Complaint(file, 1, "the file is empty")]
        complaints = [Complaint(file, line, said) for line, said in _duplicate_keys(root)]
        data = loader.construct_document(root)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [Complaint(file, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")]
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        complaints += [
            Complaint(file, _line(root, each["loc"]), _say(each["loc"], each["type"], each["msg"], each.get("input")))
            for each in error.errors(include_url=False)
        ]
        pipeline = None
    return (pipeline if not complaints else None), sorted(complaints, key=lambda c: c.line)


def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prefect-cd pipeline file",
        **Pipeline.model_json_schema(by_alias=True),
    }


def _absolute(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Paths in the file mean: seen from the file."""
    repository = pipeline.source.repository
    if "://" not in repository and not re.match(r"^[^/]+@[^/]+:", repository):
        repository = str((folder / repository).resolve())
    environments = [
        environment.model_copy(update={"cluster": environment.cluster.model_copy(
            update={"kubeconfig": str((folder / Path(environment.cluster.kubeconfig).expanduser()).resolve())}
        )}) if environment.cluster.kubeconfig else environment
        for environment in pipeline.environments
    ]  # fmt: skip
    return pipeline.model_copy(
        update={
            "source": pipeline.source.model_copy(update={"repository": repository}),
            "environments": tuple(environments),
        }
    )


def _duplicate_keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, f"the key {key.value!r} is there twice; the second would win"
            seen.add(key.value)
            yield from _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicate_keys(item)


def _line(root: yaml.Node, loc: Sequence[str | int]) -> int:
    """The line of the deepest node of `loc` that the file has."""
    node, line = root, root.start_mark.line
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if not found:
                break
            line, node = found[-1][0].start_mark.line, found[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _say(loc: Sequence[str | int], kind: str, message: str, value: object) -> str:
    where = ".".join(str(step) for step in loc)
    if kind == "extra_forbidden":
        known = _keys_at(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"possible: {', '.join(known)}"
        return f"unknown key {where!r}; {advice}"
    if kind == "missing":
        return f"{where!r} is missing"
    said = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if kind.endswith("_type") and isinstance(value, (bool, int, float, str, list, dict)):
        said += f", not {value!r}" if not isinstance(value, (list, dict)) else f", not a {type(value).__name__}"
    elif kind == "string_pattern_mismatch":
        said = f"{value!r} does not match {message.split('pattern ')[-1]}"
    return f"{where}: {said}" if where else said


def _keys_at(loc: Sequence[str | int]) -> list[str]:
    """The keys that the model at `loc` knows."""
    model: type[BaseModel] = Pipeline
    for step in loc:
        if isinstance(step, str) and step in model.model_fields:
            model = next(_models_in(model.model_fields[step].annotation), model)
    return sorted(model.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


__all__ = [
    "Approval",
    "Check",
    "ClusterAccess",
    "Complaint",
    "Environment",
    "Gate",
    "HttpCheck",
    "ImageSettings",
    "Pipeline",
    "RolloutSettings",
    "SourceSettings",
    "duration_text",
    "load",
    "parse",
    "schema",
]
