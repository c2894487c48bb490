"""Real parts for tests of flows: git repositories, a Prefect server, served pipelines, their runs, and kubectl."""

import base64
import ctypes
import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import yaml
from typing_extensions import Self

PROGRAMS = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
SHOP = REPOSITORY / "examples" / "shop"
REGISTRY = os.environ.get("REGISTRY", "")
BUILDER = os.environ.get("BUILDER") or "buildah"
HELLO = f"{REGISTRY}/test/hello"
HTTPD = "httpd -f -p 8080 -h /www"  # of busybox; where the base is a whole system, it has Python
RBAC = bool(os.environ.get("RBAC"))
"""Whether pipelines are served by a service account with the Roles of `prefect-cd rbac`, not by an administrator."""
SESSION = f"t-{token_hex(3)}"  # begins the names of namespaces, so that sessions and workers can share a cluster
PATIENCE = 300.0  # seconds; what takes a few on an idle machine may take this long: the tests do not measure time
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.1, 1.0  # frequent polling takes CPU time from what is waited for
_ENDED = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_WITHOUT_ANSWER = frozenset({"Expired", "Superseded"})  # the outcomes that a waiting run may have without an answer
_OUTCOMES = frozenset(
    {"Rolled back", "Rollback failed", "Superseded", "Vetoed", "Rejected", "Expired", "Errored"}
)  # the first words of the message of a state that is called Failed or Cancelled


def wait_for(condition: Callable[[], Any], what: Callable[[], str] | str, seconds: float = PATIENCE) -> Any:  # noqa: ANN401
    """Poll `condition` and return its result as soon as that is neither False nor None."""
    give_up, pause = time.monotonic() + seconds, _FIRST_POLL_SECONDS
    while time.monotonic() < give_up:
        answer = condition()
        if answer is not None and answer is not False:
            return answer
        time.sleep(pause)
        pause = min(_LAST_POLL_SECONDS, 1.3 * pause)
    raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Switch:
    """Something outside of the isolation of a commit's programs that they can see: a local port, open or not.

    The port is ours as long as the block runs, so that nobody else opens it.
    """

    def __init__(self) -> None:
        self._socket = self._bound(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def test(self) -> str:
        """A command for bash that succeeds while it is open."""
        return f"true 2>/dev/null </dev/tcp/127.0.0.1/{self._socket.getsockname()[1]}"

    def open(self) -> None:
        self._socket.listen()

    def close(self) -> None:
        """Close it; it can be opened again."""
        port = self._socket.getsockname()[1]
        self._socket.close()
        self._socket = self._bound(port)

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound


# ---------------------------------------------------------------------------------------------------- Kubernetes


def kubectl(*arguments: str, check: bool = True, stdin: str | None = None) -> str:
    """The output of kubectl; if it fails, so does the test, with its error message."""
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False, input=stdin)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def get(namespace: str, what: str) -> dict[str, Any] | None:
    """One object, `kind/name`, or None."""
    output = kubectl("-n", namespace, "get", what, "-o", "json", "--ignore-not-found")
    return dict(json.loads(output)) if output.strip() else None


def namespaces() -> set[str]:
    return set(kubectl("get", "namespaces", "-o", "name").replace("namespace/", "").split())


def create_namespace(name: str) -> None:
    """Create a namespace, unless it is there."""
    if name not in namespaces():
        kubectl("create", "namespace", name)


def untouched(namespace: str) -> bool:
    """Whether nothing was written to an environment; with Roles, its namespace is there before."""
    if not RBAC:
        return namespace not in namespaces()
    return not json.loads(kubectl("-n", namespace, "get", "secrets,leases,deployments", "-o", "json"))["items"]


def pods(namespace: str) -> list[dict[str, Any]]:
    """The pods that are not being deleted."""
    items = json.loads(kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
    return [item for item in items if "deletionTimestamp" not in item["metadata"]]


def images(namespace: str) -> set[str]:
    return {container["image"] for pod in pods(namespace) for container in pod["spec"]["containers"]}


def records(namespace: str) -> list[dict[str, Any]]:
    """The records of an environment, oldest first, decoded from the Secrets without the package."""
    secrets = kubectl("-n", namespace, "get", "secrets", "-l", "prefect-cd.dev/record=release", "-o", "json")
    contents = (item["data"]["record"] for item in json.loads(secrets)["items"])
    read = (json.loads(gzip.decompress(base64.b64decode(content))) for content in contents)
    return sorted(read, key=lambda record: int(record["number"]))


def states(namespace: str) -> list[str]:
    """The states of the records, oldest first."""
    return [record["state"] for record in records(namespace)]


def holder(namespace: str) -> str:
    """Who holds the environment's lock; empty when nobody does."""
    leases = json.loads(kubectl("-n", namespace, "get", "leases", "-o", "json"))["items"]
    return str(leases[0]["spec"].get("holderIdentity") or "") if leases else ""


def tags(name: str) -> set[str]:
    """The tags that the registry has for an image."""
    host, _, repository = name.partition("/")
    answer = httpx.get(f"http://{host}/v2/{repository}/tags/list", trust_env=False)
    return set(answer.json().get("tags") or []) if answer.is_success else set()


# ----------------------------------------------------------------------------------------------------------- git

Files = Mapping[str, str | None]
"""Path -> content; None removes the file."""


class Repository:
    """A git repository whose commits are the same in every run of the tests: same content, same SHA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self._number = 0
        self._git("init", "--quiet", "--initial-branch=main")

    def commit(self, files: Files, subject: str, *, on: str = "") -> str:
        """Commit on top of the current branch, or on a new branch `on`."""
        if on:
            self._git("checkout", "--quiet", "-b", on)
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return self._commit(subject)

    def patch(self, patch: Path, subject: str, files: Files | None = None) -> str:
        """Commit a patch, and further files with it."""
        self._git("apply", str(patch))
        return self.commit(files or {}, subject)

    def switch(self, revision: str, branch: str = "") -> None:
        self._git("checkout", "--quiet", *(["-b", branch] if branch else []), revision)

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def _commit(self, subject: str) -> str:
        self._number += 1
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "-m", subject)
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        when = f"2026-01-01T00:{self._number:02}:00Z"
        who = {"NAME": "Test Author", "EMAIL": "author@example.org", "DATE": when}
        identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": "/dev/null"}
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def shop_files() -> dict[str, str]:
    """The sample shop with the tests' image and one replica."""
    files = {
        str(path.relative_to(SHOP)): path.read_text()
        for path in sorted(SHOP.rglob("*"))
        if path.is_file() and not any("cache" in part for part in path.relative_to(SHOP).parts)
    }
    for name in ("k8s/staging/deployment.yaml", "k8s/production/deployment.yaml"):
        files[name] = files[name].replace("localhost:5000/shop", f"{REGISTRY}/test/shop")
        files[name] = files[name].replace("replicas: 3", "replicas: 1")
        files[name] = files[name].replace("maxUnavailable: 1", "maxUnavailable: 0")  # the single replica keeps serving
        files[name] = files[name].replace("seconds: 3 #", "seconds: 10 #")
    return files


def hello_files(**production: Any) -> dict[str, str]:  # noqa: ANN401
    """A web server that starts at once: for tests to which the application does not matter."""
    files = {
        "Dockerfile": "ARG BASE\nFROM ${BASE}\nCOPY www/ /www/\n",
        "www/index.html": "hello\n",
        "k8s/staging/hello.yaml": hello_manifests(),
        "k8s/production/hello.yaml": hello_manifests(**production),
    }
    return files | {"tests/unit/test_nothing.py": "def test_nothing() -> None:\n    pass\n"}


def hello_manifests(*, slow: int = 0, greeting: str = "hello", extra: Sequence[dict[str, Any]] = ()) -> str:
    """ConfigMap, Deployment and Service.

    Args:
        slow: seconds that the rollout of this version takes at least.
        greeting: content of the ConfigMap.
        extra: further containers.
    """
    labels = {"app.kubernetes.io/name": "hello"}
    web = {
        "name": "web",
        "image": HELLO,
        "command": ["sh", "-c", f"command -v httpd && exec {HTTPD}; exec python3 -m http.server 8080 -d /www"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        "envFrom": [{"configMapRef": {"name": "hello-config"}}],
    }
    template = {
        "metadata": {"labels": labels, "annotations": {"example.org/greeting": greeting}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [web, *extra]},
    }
    deployment = {"replicas": 1, "minReadySeconds": slow, "selector": {"matchLabels": labels}, "template": template}
    port = {"name": "http", "port": 80, "targetPort": "http"}
    objects = (
        _object("v1", "ConfigMap", "hello-config", data={"GREETING": greeting}),
        _object("apps/v1", "Deployment", "hello", spec=deployment),
        _object("v1", "Service", "hello", spec={"selector": labels, "ports": [port]}),
    )
    return yaml.safe_dump_all(objects, sort_keys=False)


def config_map(name: str, **data: str) -> str:
    return yaml.safe_dump(_object("v1", "ConfigMap", name, data=data), sort_keys=False)


def _object(api_version: str, kind: str, name: str, **content: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}


# ------------------------------------------------------------------------------------------------------- Prefect


def hello_pipeline(name: str, repository: Path, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A pipeline of the hello server; `staging=` and `production=` change these environments."""
    staging, production = changes.pop("staging", {}), changes.pop("production", {})
    answers = [{"name": "answers", "http": {"path": "/", "contains": "hello"}}]
    return {
        "application": name,
        "source": {"repository": str(repository), "branch": "main"},
        "image": {"name": HELLO, **BUILT, "args": {"BASE": f"{REGISTRY}/base/busybox:1"}},
        "environments": [
            _environment(name, "staging", "hello", answers) | staging,
            _environment(name, "production", "hello", answers) | production,
        ],
        "security": {"unauthenticated_server": "allow"},
        **changes,
    }


def shop_pipeline(name: str, repository: Path) -> dict[str, Any]:
    """The pipeline of the sample shop as its own file has it, with the tests' image and namespaces."""
    pipeline = dict(yaml.safe_load((SHOP / "pipeline.yaml").read_text()))
    pipeline |= {"application": name, "source": {"repository": str(repository), "branch": "main"}}
    pipeline["image"] |= {"name": f"{REGISTRY}/test/shop", **BUILT, "args": {"BASE": f"{REGISTRY}/base/python:3.11"}}
    for environment in pipeline["environments"]:
        environment["namespace"] = namespace_of(name, environment["name"])
        environment["rollout"] = {"settle": "1s"}
    return pipeline


# without layers, buildah installs the shop's dependencies for each commit anew
_IN_A_CONTAINER = ["--isolation", "chroot", "--network", "host", "--layers"]
BUILT = {"builder": BUILDER, "options": _IN_A_CONTAINER if BUILDER == "buildah" else []}


def _environment(application: str, name: str, service: str, gates: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace_of(application, name),
        "manifests": f"k8s/{name}",
        "url": f"service/{service}",
        "rollout": {"settle": "0s"},
        "gates": gates,
    }


def namespace_of(application: str, environment: str) -> str:
    return f"{SESSION}-{application}-{environment}"


_UNUSED_SERVICES = ("EVENT_PERSISTER", "TRIGGERS", "FOREMAN", "LATE_RUNS", "REPOSSESSOR")
"""Of Prefect's server: they store events, watch automations and workers, and take a part of its CPU time."""


@dataclass
class Server:
    """A Prefect server of our own, in whose folder are its files and its log.

    Args:
        folder: exists; one for each server.
        services_off: services of Prefect's server, as in the names of its settings, that do not run in addition to
            those that no test needs.
        port: on loopback.
    """

    folder: Path
    services_off: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=f"{self.url}/api", trust_env=False, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        # another server's settings may be in ours: a fixture of the same session has set them
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **inherited,
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_UI_URL": self.url,
            "PREFECT_UI_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **{
                f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
                for service in (*_UNUSED_SERVICES, *self.services_off)
            },
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
            "PREFECT_CD_HOME": str(self.folder / "cd"),
        }

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401
        answer = self._request("POST", path, body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:  # noqa: ANN401
        answer = self._request("GET", path)
        assert answer.is_success or answer.status_code == HTTPStatus.NOT_FOUND, f"{path}: {answer.status_code}"
        return answer.json() if answer.is_success else None

    def _request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Repeat the request while the database is locked, as Prefect's own client does."""

        def request() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                answer = self._client.request(method, path, json=body)
                return None if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE else answer
            return None

        answer: httpx.Response = wait_for(request, f"no answer to {method} {path}")
        return answer

    @contextmanager
    def running(self) -> Iterator["Server"]:
        command = [PROGRAMS / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        database = self.folder / "home" / "prefect.db"
        database.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            with new_database(database):
                server = stack.enter_context(process(command, self.environment, self.folder / "server.log"))
                self.process = server
                wait_for(lambda: server.poll() is not None or self._healthy(), lambda: self.log)
                assert server.poll() is None, self.log
            with closing(self._client):
                yield self

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def _healthy(self) -> bool:
        """Whether this server answers: one that took the port while this one was starting has another home."""
        with suppress(httpx.TransportError):
            answer = self._client.get("/admin/settings")
            return answer.is_success and answer.json()["home"] == str(self.folder / "home")
        return False

    @contextmanager
    def serving(self, *pipelines: dict[str, Any], **variables: str) -> Iterator[list["Application"]]:
        """Serve pipelines as a user does; their namespaces are removed in the end."""
        applications = [Application(self, pipeline) for pipeline in pipelines]
        files = [application.write(self.folder) for application in applications]
        log = self.folder / f"serve-{applications[0].name}.log"
        try:
            access = {} if "KUBECONFIG" in variables else {"KUBECONFIG": kubeconfig_of(applications)}
            environment = {**self.environment, **access, **variables}
            with process([PROGRAMS / "prefect-cd", "serve", *files], environment, log) as served:
                for application in applications:
                    application.process = served
                    application.wait_until_served(log)
                yield applications
        finally:
            remove_namespaces(
                application.namespace(name) for application in applications for name in application.environments
            )


@contextmanager
def new_database(database: Path) -> Iterator[None]:
    """A new database for a server that starts in this block: a copy, since its migrations take 5 s of CPU time.

    The first server of an environment makes its own, and a copy of that for the others, which wait for it. One that
    starts again keeps the database that it has.
    """
    if database.exists():
        yield
        return
    original = Path(sys.prefix) / f"prefect-{version('prefect')}.db"
    with original.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            yield
            unfinished = original.with_suffix(".new")
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(unfinished)) as target:
                source.backup(target)
            unfinished.rename(original)
            return
    shutil.copy(original, database)
    yield


def remove_namespaces(names: Iterator[str] | Sequence[str]) -> None:
    kubectl("delete", "namespaces", "--ignore-not-found", "--wait=false", *names, check=False)


# ------------------------------------------------------------------------------------------------- least privilege

_KINDS = ("v1/ConfigMap", "v1/Secret", "v1/Service", "apps/v1/Deployment")  # of all manifests in these tests


def kubeconfig_of(applications: Sequence["Application"], *, cluster_wide: bool = False) -> str:
    """The kubeconfig with which these applications are served; with RBAC=1, that of a service account with their Roles.

    Args:
        applications: their pipeline files are written.
        cluster_wide: whether the service account has the optional ClusterRole, too; the caller deletes it.
    """
    if not RBAC:
        return os.environ["KUBECONFIG"]
    for application in applications:
        for name in application.environments:
            create_namespace(application.namespace(name))
    first = applications[0]
    namespace = first.namespace(next(iter(first.environments)))
    kubectl("-n", namespace, "create", "serviceaccount", "deployer")
    for application in applications:
        kubectl("create", "-f", "-", stdin=_roles(application, f"{namespace}/deployer"))
        if cluster_wide:
            kubectl("create", "-f", "-", stdin=_roles(application, f"{namespace}/deployer", "--cluster-wide"))
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"][0]["user"] = {"token": kubectl("-n", namespace, "create", "token", "deployer").strip()}
    path = first.server.folder / f"kubeconfig-{first.name}"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def _roles(application: "Application", account: str, *options: str) -> str:
    """What `prefect-cd rbac` prints for manifests that have all kinds of these tests."""
    checkout = application.server.folder / f"kinds-{application.name}"
    for environment in application.environments.values():
        (checkout / environment["manifests"]).mkdir(parents=True, exist_ok=True)
        objects = (_object(*kind.rsplit("/", 1), "any") for kind in _KINDS)
        (checkout / environment["manifests"] / "all.yaml").write_text(yaml.safe_dump_all(objects))
    command = [PROGRAMS / "prefect-cd", "rbac", application.file, "--checkout", checkout, "--service-account", account]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout


# ------------------------------------------------------------------------------------------------------- processes

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _prepare_program() -> None:
    """Have Linux end a program when its parent is killed, as xdist does to workers when a session is interrupted.

    SIGINT, which ends it otherwise, is ignored by default in all children of a shell's background job.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def process(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in the background, ended by its own id, gently first."""
    options: dict[str, Any] = {"env": environment, "preexec_fn": _prepare_program}
    with log.open("ab") as out, subprocess.Popen(command, stdout=out, stderr=out, **options) as started:
        try:
            yield started
        finally:
            started.send_signal(signal.SIGINT)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()


class Application:
    """One served pipeline."""

    process: "subprocess.Popen[bytes]"
    kubeconfig: str

    def __init__(self, server: Server, pipeline: dict[str, Any]) -> None:
        self.server = server
        self.pipeline = pipeline
        self.name = str(pipeline["application"])
        self.environments = {environment["name"]: environment for environment in pipeline["environments"]}

    def write(self, folder: Path) -> Path:
        """Write the pipeline file, also anew while it is served."""
        self.file = folder / f"{self.name}.yaml"
        self.file.write_text(yaml.safe_dump(self.pipeline, sort_keys=False))
        return self.file

    def namespace(self, environment: str) -> str:
        return str(self.environments[environment]["namespace"])

    @property
    def staging(self) -> str:
        return self.namespace("staging")

    @property
    def production(self) -> str:
        return self.namespace("production")

    def wait_until_served(self, log: Path) -> None:
        def served() -> bool:
            assert self.process.poll() is None, log.read_text()
            return all(self.server.get(f"/deployments/name/{flow}/{self.name}") for flow in ("release", "recover"))

        wait_for(served, log.read_text, PATIENCE)
        # `serve` starts one recovery of each application: afterwards the machine is idle
        wait_for(lambda: any(run.ended for run in self.runs("recover")), log.read_text, PATIENCE)

    def release(self, revision: str, *, again: bool = False) -> "Run":
        """Start a release through the API."""
        return self.start("release", revision=revision, **({"again": True} if again else {}))

    def start(self, flow: str, **parameters: str | bool) -> "Run":
        deployment = self.server.get(f"/deployments/name/{flow}/{self.name}")
        created = self.server.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return Run(self, str(created["id"]))

    def run_by_command(self, flow: str, **parameters: str) -> "Run":
        """Start a run with the command, as a user does."""
        options = [part for key, value in parameters.items() for part in ("-p", f"{key}={value}")]
        done = subprocess.run(
            [PROGRAMS / "prefect", "deployment", "run", f"{flow}/{self.name}", *options],
            env={**self.server.environment, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        match = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", done.stdout)
        assert match, done.stdout + done.stderr
        return Run(self, match[0])

    def runs(self, flow: str) -> list["Run"]:
        """All runs of a flow, newest first."""
        query = {
            "deployments": {"name": {"any_": [self.name]}},
            "flows": {"name": {"any_": [flow]}},
            "sort": "EXPECTED_START_TIME_DESC",
        }
        runs = self.server.post("/flow_runs/filter", query)
        return [Run(self, str(run["id"])) for run in runs if run["state"]["type"] != "SCHEDULED"]


@dataclass
class Run:
    """One flow run, seen and answered through the API."""

    application: Application
    id: str

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.application.server.get(f"/flow_runs/{self.id}")["state"])

    @property
    def name(self) -> str:
        return _name_of(self.state)

    @property
    def title(self) -> str:
        """The name of the run itself, which lists of runs show."""
        return str(self.application.server.get(f"/flow_runs/{self.id}")["name"])

    @property
    def tags(self) -> set[str]:
        return set(self.application.server.get(f"/flow_runs/{self.id}")["tags"])

    @property
    def message(self) -> str:
        return str(self.state["message"])

    @property
    def ended(self) -> bool:
        return self.state["type"] in _ENDED

    def wait(self, *names: str, seconds: float = PATIENCE) -> "Run":
        """Return when the run's state or outcome has one of the names; fail, with the log, when it can no longer."""

        def is_reached() -> bool:
            state = self.state
            if _name_of(state) in names:
                return True
            waits = state["name"] == "Suspended" and not _WITHOUT_ANSWER.intersection(names)
            stuck = state["type"] in _ENDED or waits
            assert not stuck, f"{_name_of(state)} instead of {' or '.join(names)}: {state['message']}\n\n{self.log()}"
            return False

        wait_for(is_reached, lambda: f"{names}; the run is {self.name}\n\n{self.log()}", seconds)
        return self

    def answer(self, decision: str = "approve", name: str = "approver one", comment: str = "") -> "Run":
        """Answer the form, which Prefect saves a moment after the run's state says that it waits."""
        body = {"run_input": {"decision": decision, "name": name, "comment": comment}}
        answer: dict[str, Any] = {}

        def accepted() -> bool:
            nonlocal answer
            answer = self.application.server.post(f"/flow_runs/{self.id}/resume", body)
            return str(answer["status"]) == "ACCEPT"

        wait_for(accepted, lambda: f"the answer is not accepted: {answer}")
        return self

    def form(self) -> str:
        """The text of the form whose answer the run waits for."""
        keyset = self.state["state_details"]["run_input_keyset"]
        path = f"/flow_runs/{self.id}/input/{keyset['description']}"  # saved a moment after the state
        return str(wait_for(lambda: self.application.server.get(path), "the form is not saved"))

    def log(self) -> str:
        lines: list[str] = []
        while True:
            query = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC", "offset": len(lines)}
            page = self.application.server.post("/logs/filter", query)
            lines += [entry["message"] for entry in page]
            if not page:
                return "\n".join(lines)

    def wait_for_log(self, text: str, seconds: float = PATIENCE) -> None:
        """Return when the run's log contains the text."""
        wait_for(lambda: text in self.log(), lambda: f"no {text!r} in the log:\n\n{self.log()}", seconds)

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """Key -> the run's newest artifact of this key."""
        query = {"artifacts": {"flow_run_id": {"any_": [self.id]}}, "sort": "CREATED_DESC", "limit": 200}
        artifacts = self.application.server.post("/artifacts/filter", query)
        return {artifact["key"]: artifact for artifact in reversed(artifacts)}

    def tasks(self) -> dict[str, str]:
        """Name -> state of the run's tasks."""
        tasks = self.application.server.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [self.id]}}})
        return {task["name"]: task["state_name"] for task in tasks}

    def cancel(self) -> None:
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self.application.server.post(f"/flow_runs/{self.id}/set_state", body)

    def process_id(self) -> int:
        """The process that executes the run on this machine: it has the name of the run."""
        name = f"{self.id[:15]}\n".encode()
        folders = [folder for folder in Path("/proc").glob("[0-9]*") if read(folder / "comm") == name]
        assert len(folders) == 1, f"{folders} work for {self.id}; it is {self.name}"
        return int(folders[0].name)


def _name_of(state: dict[str, Any]) -> str:
    """The outcome of a run that ended otherwise than completed; else the name of its state."""
    outcome = str(state["message"] or "").partition(": ")[0]
    return outcome if state["type"] in _ENDED and outcome in _OUTCOMES else str(state["name"])


def read(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
