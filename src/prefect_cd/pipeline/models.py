"""The models of the pipeline file: frozen, with a description and bounds for every key.

The file belongs to the operator. It decides about environments, approvals and credentials, so it is read from the
operator's disk only, never from the commit that is being released. The models know nothing of clusters, git or YAML:
`load` reads the file and reports its mistakes by line. The descriptions are published in the JSON schema.
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
    FieldPath,
    Label,
    Name,
    RelativePath,
    Timeout,
    duration_text,
    parse_duration,
)

_MINUTE = timedelta(minutes=1)
_MOST_IN_FLIGHT = 500  # concurrent connections; the usual limit of open files of a process is 1024


class Settings(BaseModel):
    """A section of the pipeline file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(Settings):
    """The repository that commits are released from."""

    repository: Annotated[str, Field(min_length=1, description="https or ssh URL, or a path relative to this file")]
    branch: Annotated[str, Field(description="released when a run names no revision")] = "main"
    credentials: Annotated[
        str | None,
        Field(description="Prefect block for a private repository, for example github-credentials/acme"),
    ] = None
    submodules: Annotated[bool, Field(description="also check out submodules")] = False
    credentials_for: Annotated[
        tuple[str, ...],
        Field(
            description="URLs of submodules that are read with the credentials or the ssh key, too; without this, a "
            "commit could name any repository that they can read"
        ),
    ] = ()
    timeout: Annotated[
        Timeout, Field(description="time limit for resolving the revision, and again for the checkout")
    ] = 5 * _MINUTE


class ImageSettings(Settings):
    """How the image of a commit is built."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$",
            description="image repository without tag; the digest is filled in where the manifests use this name",
            examples=["registry.example.com/acme/shop"],
        ),
    ]
    context: Annotated[RelativePath, Field(description="folder of the build context")] = "."
    dockerfile: Annotated[RelativePath, Field(description="relative to the context")] = "Dockerfile"
    args: Annotated[dict[str, str], Field(description="build arguments; VERSION defaults to the commit")] = {}
    builder: Annotated[
        Literal["docker", "podman", "buildah", "embedded"] | None,
        Field(
            description="default: the first of docker, podman and buildah that works; or embedded, if none of them is "
            "installed and the registry is on this machine (only the embedded cluster can run its images)"
        ),
    ] = None
    options: Annotated[tuple[str, ...], Field(description="additional flags for the builder's build command")] = ()
    fields: Annotated[
        tuple[FieldPath, ...],
        Field(
            description="further fields in which the digest is filled in, besides the images of containers and "
            "volumes: of custom resources, environment variables, annotations; ignored where an object lacks the field"
        ),
    ] = ()
    pin: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+)(:[0-9]+)?(/[a-z0-9._-]+)*$")], ...],
        Field(
            description="registries and repositories, with all below them, of other images whose tags in the "
            "manifests are replaced by digests, so that exactly what was approved runs. Each begins with its host. "
            "Images of all others stay as they are, and the approval form names those with a tag: nothing else is "
            "asked, because a commit could name any host",
            examples=[["docker.io/library", "registry.example.com/base"]],
        ),
    ] = ()
    insecure: Annotated[
        bool | None,
        Field(description="use plain HTTP for the registry; default: only for localhost and loopback addresses"),
    ] = None
    token_service: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9.-]+(:[0-9]+)?$",
            description="host that gives tokens for the registry, if it is not in the registry's domain",
            examples=["auth.example.net"],
        ),
    ] = None
    timeout: Annotated[Timeout, Field(description="time limit for build and push together")] = 30 * _MINUTE


class Security(Settings):
    """What protects the releases of this application from the commits that are released."""

    isolation: Annotated[
        Literal["none", "processes", "network"] | None,
        Field(
            description="required for checks, and gates with browser or run. processes: a program sees no other "
            "processes, none of its own outlives it, all files are read-only to it except its checkout, temporary "
            "folders and package caches, and credentials are hidden. network: also, a check has no network (gates do). "
            "none: only its processes are ended with it. Default: processes where the machine allows it, else none; "
            "the log says which"
        ),
    ] = None
    unauthenticated_server: Annotated[
        Literal["refuse", "allow"],
        Field(
            description="what `serve` does when an environment has an approval and Prefect's server answers without "
            "credentials: everyone who reaches that server, and so every program of a commit, can approve"
        ),
    ] = "refuse"


class Check(Settings):
    """A command that must pass before anything is deployed."""

    name: Label
    run: Annotated[Command, Field(description="program and arguments, run without a shell")]
    report: Annotated[
        RelativePath | None, Field(description="JUnit XML report that the command writes, relative to directory")
    ] = None
    directory: Annotated[RelativePath, Field(description="working directory, relative to the repository")] = "."
    environment: Annotated[
        dict[str, str],
        Field(
            description="environment variables; of the worker's, only a short list is passed on (PATH, HOME, proxies, "
            "package indexes …), and none that usually hold secrets"
        ),
    ] = {}
    timeout: Annotated[Timeout, Field(description="a check that takes longer is errored")] = 15 * _MINUTE
    isolation: Annotated[
        Literal["none", "processes", "network"] | None,
        Field(description="required for this check; default: security.isolation"),
    ] = None


class HttpCheck(Settings):
    """An HTTP GET request and its expected response."""

    path: Annotated[
        str, Field(pattern="^/", description="the path of the request, beginning with a slash", examples=["/health"])
    ] = "/"
    status: Annotated[int, Field(ge=100, le=599, description="expected status code")] = 200
    contains: Annotated[str | None, Field(description="text that the response body must contain")] = None


class Gate(Settings):
    """A test of a running environment: exactly one of browser, http or run."""

    name: Label
    browser: Annotated[RelativePath | None, Field(description="path of a pytest + Playwright suite")] = None
    http: HttpCheck | None = None
    run: Annotated[Command | None, Field(description="command; BASE_URL is the environment's URL")] = None
    report: Annotated[
        RelativePath | None, Field(description="JUnit XML report that `run` writes, relative to directory")
    ] = None
    directory: Annotated[RelativePath, Field(description="working directory, relative to the repository")] = "."
    environment: Annotated[dict[str, str], Field(description="additional environment variables")] = {}
    timeout: Annotated[Timeout, Field(description="a gate that takes longer is errored")] = 10 * _MINUTE
    isolation: Annotated[
        Literal["none", "processes"] | None,
        Field(description="required for the program of this gate; default: security.isolation, but with network"),
    ] = None

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Self:
        kinds = [kind for kind in ("browser", "http", "run") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a gate is exactly one of browser, http or run, not {' and '.join(kinds) or 'none'}")
        if self.isolation and self.http:
            raise ValueError("isolation is only for a gate with browser or run; an http gate runs no program")
        if self.report and not self.run:
            raise ValueError("report is only for a gate with run; a browser gate always writes a report")
        return self


class Approval(Settings):
    """A person must approve the release before it is applied to the environment."""

    expires: Annotated[
        Timeout, Field(description="time limit for the answer; after that the release must be started again")
    ] = timedelta(days=1)
    approvers: Annotated[
        tuple[str, ...],
        Field(description="names that may approve; empty: any name. Prefect does not verify names"),
    ] = ()


class PatienceSettings(Settings):
    """How long recoverable problems may last before the rollout has failed: one duration, or one for each kind."""

    configuration: Annotated[Duration, Field(description="a missing ConfigMap, Secret, key or service account")] = (
        _MINUTE
    )
    registry: Annotated[
        Duration, Field(description="a registry that does not respond; nodes retry after 10, 30 and 70 s")
    ] = timedelta(seconds=90)
    volume: Annotated[Duration, Field(description="a volume that is missing or cannot be mounted")] = _MINUTE
    quota: Annotated[Duration, Field(description="an exhausted quota")] = _MINUTE
    node: Annotated[Duration, Field(description="no node has room for the pod, or the node cannot set it up")] = _MINUTE
    admission: Annotated[
        Duration, Field(description="an admission webhook that does not respond, and other refusals of pods")
    ] = _MINUTE
    readiness: Annotated[
        Duration,
        Field(description="a pod that is not ready, counted from the end of the time that its own probes allow"),
    ] = _MINUTE
    service: Annotated[
        Duration,
        Field(
            description="a Service whose selector matches no pods, or whose port is closed, once the pods are up; "
            "one minute more while only its endpoints controller is behind"
        ),
    ] = timedelta(seconds=30)
    other: Annotated[Duration, Field(description="any other recoverable problem")] = _MINUTE
    stall: Annotated[
        Timeout, Field(description="no progress at all; a longer progressDeadlineSeconds takes precedence")
    ] = 10 * _MINUTE

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: object) -> object:
        if not isinstance(value, (str, timedelta)):
            return value
        duration = parse_duration(value)
        return {name: duration for name in cls.model_fields if name != "stall"}

    @property
    def text(self) -> str:
        """`30s` or `30s to 1m30s`: the shortest and the longest of the durations, without stall."""
        durations = {getattr(self, name) for name in type(self).model_fields if name != "stall"}
        shortest, longest = duration_text(min(durations)), duration_text(max(durations))
        return shortest if shortest == longest else f"{shortest} to {longest}"


def _or_one_for_all(schema: JsonDict) -> None:
    """Allow a single duration in the JSON schema, too."""
    one_for_all: JsonDict = {"type": "string", "pattern": f"^{DURATION.pattern}$", "examples": ["60s"]}
    schema["anyOf"] = [one_for_all, {"$ref": schema.pop("$ref")}]


class RolloutSettings(Settings):
    """How long a rollout is watched, and when it has failed."""

    timeout: Annotated[Timeout, Field(description="a rollout that takes longer has failed")] = 10 * _MINUTE
    settle: Annotated[
        Duration,
        Field(description="soak time: how long a complete rollout must stay healthy; pods may crash under first load"),
    ] = timedelta(seconds=30)
    crashes: Annotated[
        int,
        Field(
            ge=1,
            le=20,
            description="failed runs of one container after which the rollout has failed; 2 more crashes while other "
            "workloads of the release start",
        ),
    ] = 3
    patience: Annotated[
        PatienceSettings,
        Field(
            description="how long recoverable problems may last: one duration for all kinds, or one for each",
            json_schema_extra=_or_one_for_all,
        ),
    ] = PatienceSettings()


class ProbeLimits(Settings):
    """How much users may notice of a rollout; if they notice more, it has failed."""

    failed: Annotated[int, Field(ge=0, description="requests that may get no good response")] = 0
    slow: Annotated[int | None, Field(ge=0, description="good responses that may be slow; default: any number")] = None
    gap: Annotated[Timeout | None, Field(description="the longest time without a good response; default: any")] = None


class Probe(Settings):
    """Requests to the environment's url during the whole rollout, to measure what users see of it.

    Without this key no requests are sent, since which requests are harmless and which responses are good is for the
    operator to decide. `probe: {}` sends GET / ten times a second and allows no failed request.
    """

    path: Annotated[
        str,
        Field(
            pattern="^/",
            description="path of the GET request; must be safe to send repeatedly",
            examples=["/api/products"],
        ),
    ] = "/"
    rate: Annotated[
        float, Field(ge=1, le=100, description="requests per second, sent on schedule even while responses are late")
    ] = 10
    timeout: Annotated[Timeout, Field(description="a request that takes longer has failed")] = timedelta(seconds=5)
    slow: Annotated[Timeout, Field(description="a good response that takes longer is slow")] = timedelta(seconds=1)
    status: Annotated[
        int | None, Field(ge=100, le=599, description="the status of a good response; default: any 2xx or 3xx")
    ] = None
    after: Annotated[
        Duration,
        Field(description="how long to go on after the rollout is complete, while the last old pods shut down"),
    ] = timedelta(seconds=5)
    keep_alive: Annotated[
        bool,
        Field(description="reuse connections, as browsers do; default: one for each request, as new users do"),
    ] = False
    version_header: Annotated[str, Field(min_length=1, description="response header that contains the version")] = (
        "X-Version"
    )
    version_pattern: Annotated[
        str | None,
        Field(
            description="regular expression to find the version in the response body: its first group, or the whole "
            "match; default: use the header",
            examples=['"version": "([^"]+)"'],
        ),
    ] = None
    limits: ProbeLimits = ProbeLimits()

    @model_validator(mode="after")
    def _bounded_in_flight(self) -> Self:
        if self.rate * self.timeout.total_seconds() > _MOST_IN_FLIGHT:
            raise ValueError(f"rate times timeout, the number of requests in flight, must be at most {_MOST_IN_FLIGHT}")
        if self.slow >= self.timeout and self.limits.slow is not None:
            raise ValueError("with this timeout no response can be slow: write a timeout that is longer than slow")
        try:
            re.compile(self.version_pattern or "")
        except re.error as error:
            raise ValueError(f"version_pattern is not a regular expression: {error}") from error
        return self


class ClusterAccess(Settings):
    """How to connect to the cluster: kubeconfig and context, in-cluster, or a Prefect block.

    Default: in-cluster when the pod has a service account, else $KUBECONFIG or ~/.kube/config.
    """

    kubeconfig: Annotated[str | None, Field(description="path of a kubeconfig, relative to this file")] = None
    context: Annotated[str | None, Field(description="context of the kubeconfig; default: the current context")] = None
    in_cluster: Annotated[bool, Field(description="use the pod's service account")] = False
    credentials: Annotated[str | None, Field(description="name of a KubernetesCredentials block")] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [bool(self.kubeconfig or self.context), self.in_cluster, bool(self.credentials)]
        if sum(ways) > 1:
            raise ValueError("choose one of kubeconfig (and context), in_cluster or credentials")
        return self


class Environment(Settings):
    """A namespace in a cluster with a URL, and how a release gets there."""

    name: Name
    namespace: Name
    manifests: Annotated[RelativePath, Field(description="folder of YAML files, or a kustomize overlay")]
    cluster: ClusterAccess = ClusterAccess()
    url: Annotated[
        str | None,
        Field(
            pattern=r"^(https?://.+|service/[a-z0-9]([-a-z0-9]*[a-z0-9])?(:[a-z0-9-]+)?)$",
            description="https://… or service/NAME[:PORT]; gates test this URL",
            examples=["service/shop:80"],
        ),
    ] = None
    approval: Approval | None = None
    gates: Annotated[tuple[Gate, ...], Field(description="tests of the environment after the rollout")] = ()
    rollout: RolloutSettings = RolloutSettings()
    probe: Annotated[
        Probe | None, Field(description="measure what users see of a rollout; default: no requests are sent")
    ] = None
    rollback: Annotated[
        Literal["automatic", "never"], Field(description="roll back after a failed rollout or gate, or not")
    ] = "automatic"
    rollback_check: Annotated[
        Literal["warn", "stop"],
        Field(
            description="what to do when a check before a release finds that a rollback would not work: warn in the "
            "plan and the approval form, or stop the release before anything is written"
        ),
    ] = "warn"
    requirement_check: Annotated[
        Literal["warn", "stop"],
        Field(
            description="what to do when something that the pods of a release need is certainly missing before the "
            "first write, such as a Secret: stop the release, or warn and let the rollout decide"
        ),
    ] = "stop"
    cluster_scoped: Annotated[
        tuple[str, ...],
        Field(
            description="kinds of cluster-scoped objects that the manifests may contain; the environment's own "
            "Namespace may be among them in any case, without pod security labels"
        ),
    ] = ()
    record_key: Annotated[
        str | None,
        Field(
            description="path of a file with the secret key that signs the environment's records, relative to this "
            "file; records without its signature are not used. A key is a line of at least 32 characters, as from "
            "`openssl rand -hex 32`; the first line signs, and each line verifies. Default: records are not signed"
        ),
    ] = None
    take_over: Annotated[
        bool,
        Field(
            description="take over objects and fields of other field managers instead of refusing to. Without it, "
            "fields of our own objects that were changed by hand with kubectl are taken back where `approval` is set, "
            "since the form shows them"
        ),
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
    checks: Annotated[tuple[Check, ...], Field(description="commands that must pass before anything is deployed")] = ()
    environments: Annotated[
        tuple[Environment, ...], Field(min_length=1, description="in the order in which a release reaches them")
    ]
    security: Security = Security()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _unique([check.name for check in self.checks], "check")
        _unique([environment.name for environment in self.environments], "environment")
        locations = [f"{environment.namespace} in {environment.cluster!r}" for environment in self.environments]
        _unique(locations, "cluster and namespace")
        return self

    def environment(self, name: str) -> Environment:
        """The environment called `name`.

        Raises:
            KeyError: there is none; the message lists the environments.
        """
        for environment in self.environments:
            if environment.name == name:
                return environment
        names = ", ".join(environment.name for environment in self.environments)
        raise KeyError(f"no environment {name!r}; there are: {names}")


def _unique(values: Sequence[str], kind: str) -> None:
    """Refuse duplicates. The error has a type of its own, because `load` reports duplicates itself, by line."""
    for value in sorted(set(values)):
        if values.count(value) > 1:
            raise PydanticCustomError(
                "duplicate", "two entries with the same {kind}: {value}", {"kind": kind, "value": value}
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
    "Security",
    "Settings",
    "SourceSettings",
]
