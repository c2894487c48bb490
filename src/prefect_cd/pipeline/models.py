"""The pipeline: what its file may say, as frozen models with descriptions and bounds.

This file is the operator's. It decides about environments, approvals and credentials, so it is read from
the operator's disk only, never from the commit that is being released. The models know nothing of
clusters, git or YAML: `pipeline_file` reads the file and complains by line.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from prefect_cd.pipeline.types import (
    DURATION,
    Command,
    Duration,
    Label,
    Name,
    RelativePath,
    Timeout,
    duration_text,
    parse_duration,
)

_MINUTE = timedelta(minutes=1)
_MOST_IN_FLIGHT = 500  # connections at once; a process may usually have 1024 files open


class Settings(BaseModel):
    """A part of the pipeline file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(Settings):
    """Where commits come from."""

    repository: Annotated[str, Field(min_length=1, description="https or ssh URL, or a path (seen from this file)")]
    branch: Annotated[str, Field(description="what a run without a revision releases")] = "main"
    credentials: Annotated[
        str | None,
        Field(description="Prefect block for a private repository, for example github-credentials/acme"),
    ] = None
    submodules: Annotated[bool, Field(description="check submodules out, too")] = False
    timeout: Annotated[Timeout, Field(description="for resolving and for checking out, each")] = 5 * _MINUTE


class ImageSettings(Settings):
    """How the commit becomes an image."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$",
            description="repository in a registry, without tag; manifests name it, the digest is filled in",
            examples=["registry.example.com/acme/shop"],
        ),
    ]
    context: Annotated[RelativePath, Field(description="build context")] = "."
    dockerfile: Annotated[RelativePath, Field(description="seen from the context")] = "Dockerfile"
    args: Annotated[dict[str, str], Field(description="build arguments; VERSION is the commit unless given")] = {}
    builder: Annotated[
        Literal["docker", "podman", "buildah", "embedded"] | None,
        Field(
            description="default: the first of docker, podman, buildah that works; where none is installed and the "
            "registry is on this machine, embedded, whose images only the embedded cluster runs"
        ),
    ] = None
    options: Annotated[tuple[str, ...], Field(description="further flags for the builder's build command")] = ()
    insecure: Annotated[
        bool | None, Field(description="plain HTTP registry; default: only for localhost and loopback")
    ] = None
    timeout: Annotated[Timeout, Field(description="for build and push together")] = 30 * _MINUTE


class Check(Settings):
    """A command that must pass before anything is deployed."""

    name: Label
    run: Annotated[Command, Field(description="program and arguments; no shell; starts in the checkout")]
    report: Annotated[
        RelativePath | None, Field(description="the JUnit XML that the command writes, seen from directory")
    ] = None
    directory: Annotated[RelativePath, Field(description="where it starts, seen from the commit")] = "."
    environment: Annotated[
        dict[str, str], Field(description="variables for the command; it sees no others of ours")
    ] = {}
    timeout: Annotated[Timeout, Field(description="after this the check has not answered")] = 15 * _MINUTE


class HttpCheck(Settings):
    """A request and what its answer must be."""

    path: Annotated[str, Field(pattern="^/", description="from the first slash on", examples=["/health"])] = "/"
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: Annotated[str | None, Field(description="text that the body must contain")] = None


class Gate(Settings):
    """A test of a running environment: one of browser, http or run."""

    name: Label
    browser: Annotated[RelativePath | None, Field(description="folder of a pytest + Playwright suite")] = None
    http: HttpCheck | None = None
    run: Annotated[Command | None, Field(description="command; BASE_URL is set")] = None
    report: Annotated[
        RelativePath | None, Field(description="the JUnit XML that `run` writes, seen from directory")
    ] = None
    directory: Annotated[RelativePath, Field(description="where it starts, seen from the commit")] = "."
    environment: Annotated[dict[str, str], Field(description="further variables")] = {}
    timeout: Annotated[Timeout, Field(description="after this the gate has not answered")] = 10 * _MINUTE

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

    expires: Annotated[Timeout, Field(description="after this the release has to be started again")] = timedelta(days=1)
    approvers: Annotated[
        tuple[str, ...],
        Field(description="names that may approve; empty: any name. Prefect does not prove a name"),
    ] = ()


class PatienceSettings(Settings):
    """How long a trouble that may heal is given before it is doom: one duration for all, or each its own."""

    configuration: Annotated[
        Duration, Field(description="a ConfigMap, Secret, key or service account that is missing")
    ] = _MINUTE
    registry: Annotated[
        Duration, Field(description="a registry that does not answer; nodes try again after 10, 30 and 70 s")
    ] = timedelta(seconds=90)
    volume: Annotated[Duration, Field(description="a volume that is missing or cannot be mounted")] = _MINUTE
    quota: Annotated[Duration, Field(description="a quota that is used up")] = _MINUTE
    node: Annotated[Duration, Field(description="no node with room, or one that cannot set the pod up")] = _MINUTE
    admission: Annotated[Duration, Field(description="a webhook that does not answer, and other refusals")] = _MINUTE
    readiness: Annotated[
        Duration, Field(description="a pod that does not become ready, after the time that its own probes allow")
    ] = _MINUTE
    service: Annotated[
        Duration,
        Field(
            description="a Service that selects no pod, or whose port is closed, once the pods are up; "
            "a minute more where only its controller is behind"
        ),
    ] = timedelta(seconds=30)
    other: Annotated[Duration, Field(description="every other trouble that may heal")] = _MINUTE
    stall: Annotated[
        Timeout, Field(description="no progress at all; a longer progressDeadlineSeconds is respected")
    ] = 10 * _MINUTE

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, given: object) -> object:
        if not isinstance(given, (str, timedelta)):
            return given
        duration = parse_duration(given)
        return {name: duration for name in cls.model_fields if name != "stall"}

    @property
    def text(self) -> str:
        """For people: the one duration, or the shortest and the longest."""
        durations = {getattr(self, name) for name in type(self).model_fields if name != "stall"}
        shortest, longest = duration_text(min(durations)), duration_text(max(durations))
        return shortest if shortest == longest else f"{shortest} to {longest}"


def _or_one_for_all(schema: JsonDict) -> None:
    """In the schema, too, a duration may stand where the patience is."""
    one_for_all: JsonDict = {"type": "string", "pattern": f"^{DURATION.pattern}$", "examples": ["60s"]}
    schema["anyOf"] = [one_for_all, {"$ref": schema.pop("$ref")}]


class RolloutSettings(Settings):
    """How long to watch, and how patient to be."""

    timeout: Annotated[Timeout, Field(description="after this an unfinished rollout has failed")] = 10 * _MINUTE
    settle: Annotated[
        Duration, Field(description="a complete rollout is watched on for this long: pods may die under the first load")
    ] = timedelta(seconds=30)
    crashes: Annotated[
        int, Field(ge=1, le=20, description="failed starts of one container that are doom; 2 more while others come up")
    ] = 3
    patience: Annotated[
        PatienceSettings,
        Field(
            description="for what may heal; one duration for all of it, or one for each trouble",
            json_schema_extra=_or_one_for_all,
        ),
    ] = PatienceSettings()


class ProbeLimits(Settings):
    """What users may notice of a rollout; more than this, and it has failed."""

    failed: Annotated[int, Field(ge=0, description="requests that may get no good answer")] = 0
    slow: Annotated[int | None, Field(ge=0, description="requests that may be slow; default: any number")] = None
    gap: Annotated[
        Timeout | None, Field(description="the longest time that may pass without a good answer; default: any")
    ] = None


class Probe(Settings):
    """Requests by the clock through the environment's url during the whole rollout: what do users see?

    Without this key nothing is sent: traffic on somebody's URL, and what a good answer to it is, are not ours to
    guess. `probe: {}` asks GET / ten times a second and allows no failed request.
    """

    path: Annotated[
        str, Field(pattern="^/", description="must be safe to ask for again and again", examples=["/api/products"])
    ] = "/"
    rate: Annotated[float, Field(ge=1, le=100, description="requests per second, however late the answers are")] = 10
    timeout: Annotated[Timeout, Field(description="after this a request has failed")] = timedelta(seconds=5)
    slow: Annotated[Timeout, Field(description="a good answer that takes longer is a slow one")] = timedelta(seconds=1)
    status: Annotated[int | None, Field(ge=100, le=599, description="the good status; default: any 2xx or 3xx")] = None
    after: Annotated[
        Duration, Field(description="goes on after the rollout is complete: the last old pods end only then")
    ] = timedelta(seconds=5)
    keep_alive: Annotated[
        bool, Field(description="use connections again, as browsers do; default: a new one each time, as new users do")
    ] = False
    version_header: Annotated[str, Field(min_length=1, description="response header that names the version")] = (
        "X-Version"
    )
    version_pattern: Annotated[
        str | None,
        Field(
            description="regular expression whose first group (or whole match) in the body is the version; "
            "default: the header",
            examples=['"version": "([^"]+)"'],
        ),
    ] = None
    limits: ProbeLimits = ProbeLimits()

    @model_validator(mode="after")
    def _bounded_in_flight(self) -> Self:
        if self.rate * self.timeout.total_seconds() > _MOST_IN_FLIGHT:
            raise ValueError(f"rate times timeout is how many may be in flight: at most {_MOST_IN_FLIGHT}")
        if self.slow >= self.timeout and self.limits.slow is not None:
            raise ValueError("nothing can be slow: write a timeout that is longer than slow")
        try:
            re.compile(self.version_pattern or "")
        except re.error as error:
            raise ValueError(f"version_pattern is no regular expression: {error}") from error
        return self


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
            examples=["service/shop:80"],
        ),
    ] = None
    approval: Approval | None = None
    gates: tuple[Gate, ...] = ()
    rollout: RolloutSettings = RolloutSettings()
    probe: Annotated[
        Probe | None, Field(description="measure what users see of a rollout; default: nothing is sent")
    ] = None
    rollback: Annotated[Literal["automatic", "never"], Field(description="what follows a failed rollout or gate")] = (
        "automatic"
    )
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
        if self.probe and not self.url:
            raise ValueError("a probe needs the environment's url (https://… or service/NAME)")
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
        places = [f"{environment.namespace} in {environment.cluster!r}" for environment in self.environments]
        _unique(places, "cluster and namespace")
        return self

    def environment(self, name: str) -> Environment:
        """The environment called `name`; KeyError with the known names otherwise."""
        for environment in self.environments:
            if environment.name == name:
                return environment
        raise KeyError(f"no environment {name!r}; there are: {', '.join(e.name for e in self.environments)}")


def _unique(values: Sequence[str], what: str) -> None:
    """Refuse a second entry; of a type of its own, for `pipeline_file` says it first, with its line."""
    for value in sorted(set(values)):
        if values.count(value) > 1:
            raise PydanticCustomError(
                "duplicate", "two entries with the same {what}: {value}", {"what": what, "value": value}
            )


__all__ = [
    "Approval",
    "Check",
    "ClusterAccess",
    "Environment",
    "Gate",
    "HttpCheck",
    "ImageSettings",
    "PatienceSettings",
    "Pipeline",
    "Probe",
    "ProbeLimits",
    "RolloutSettings",
    "Settings",
    "SourceSettings",
]
