"""The whole story on a cluster: two versions with approval, and a third that production does not keep.

`make demo` runs it against the cluster of $KUBECONFIG and the registry of $REGISTRY (default localhost:5000). It
starts a Prefect server and serves the shop's pipeline, all in a temporary folder, and removes everything at its end.
In a terminal a person may approve in the Prefect UI or press Enter; without one it answers itself, and says so.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import stamina
import yaml
from rich.console import Console
from rich.table import Table

SHOP = Path(__file__).resolve().parent / "shop"
REGISTRY = os.environ.get("REGISTRY", "localhost:5000")
NAMESPACES = ("demo-staging", "demo-production")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
MINUTES = 10
AUTHOR = ("-c", "user.name=Demo", "-c", "user.email=demo@example.com")
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on; the text says what to do."""


@dataclass
class Stage:
    """Everything the demo started, and how to talk to it."""

    folder: Path
    api: str
    ui: str
    env: Mapping[str, str]
    client: httpx.Client
    told: set[str] = field(default_factory=set)
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def ask(self, method: str, path: str, json: object = None) -> Any:  # noqa: ANN401  JSON
        """One call of the Prefect API; a server that is busy (503) is asked again."""
        for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=20, timeout=60):
            with attempt:
                answer = self.client.request(method, path, json=json)
                answer.raise_for_status()
        return answer.json() if answer.content else None


def main() -> int:
    """Play the acts; 0 when each ended as it should."""
    try:
        with ExitStack() as stack:
            stage = set_up(stack)
            act(stage, "1. The first version goes to production", None, "Completed")
            act(stage, "2. Version 2 brings staff picks", "v2.patch", "Completed")
            act(stage, "3. Version 3 is fine in staging, and breaks in production", "v3.patch", "Rolled back")
            show(stage)
            wait_for_ctrl_c(stage)
    except DemoError as error:
        console.print(f"[red]demo: {error}[/red]")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(stack: ExitStack) -> Stage:
    """Cluster, repository, Prefect server and served pipeline; undone in reverse order."""
    check_cluster()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-cd-demo-")))
    stack.callback(remove_namespaces)
    remove_namespaces()
    make_repository(folder / "shop")
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline(folder / "shop"), sort_keys=False))
    port = free_port()
    ui = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_CD_HOME": str(folder / "prefect-cd"),
        "PREFECT_API_URL": f"{ui}/api",
        "PREFECT_UI_URL": ui,
        "PREFECT_UI_API_URL": f"{ui}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    client = stack.enter_context(httpx.Client(base_url=f"{ui}/api", timeout=30, trust_env=False))
    stage = Stage(folder, f"{ui}/api", ui, env, client)
    console.print(f"starting a Prefect server at [bold]{ui}[/bold]")
    stack.enter_context(running(stage, ["prefect", "server", "start", "--port", str(port)], "server"))
    wait(lambda: client.get("/health").status_code == httpx.codes.OK, "the Prefect server", folder / "server.log")
    console.print("serving the shop's pipeline: [bold]prefect-cd serve pipeline.yaml[/bold]")
    stack.enter_context(running(stage, ["prefect-cd", "serve", str(folder / "pipeline.yaml")], "serve"))
    served = f"/deployments/name/recover/{application()}"
    wait(lambda: client.get(served).status_code == httpx.codes.OK, "the served pipeline", folder / "serve.log")
    return stage


def check_cluster() -> None:
    """Say what is missing before anything is started."""
    if not os.environ.get("KUBECONFIG"):
        raise DemoError("set KUBECONFIG to a cluster that you may create namespaces in, and REGISTRY to its registry")
    try:
        subprocess.run(["kubectl", "version", "--request-timeout=10s"], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DemoError("kubectl is not installed; the demo uses it to show and to clean up") from error
    except subprocess.CalledProcessError as error:
        raise DemoError(f"the cluster of {os.environ['KUBECONFIG']} does not answer:\n{error.stderr}") from error


def application() -> str:
    """The name of the sample application."""
    return "shop"


def pipeline(repository: Path) -> dict[str, object]:
    """The shop's own pipeline file, with the demo's namespaces, registry and base image."""
    text = (SHOP / "pipeline.yaml").read_text()
    loaded: dict[str, object] = yaml.safe_load(text)
    image: dict[str, object] = {"name": f"{REGISTRY}/demo/shop", "context": "app"}
    base = f"{REGISTRY}/base/python:3.11"
    if has_image(base):  # a registry of its own, without a way to public images
        image |= {"args": {"BASE": base}, "options": ["--isolation", "chroot", "--network", "host"]}
    environments = [
        {**environment, "namespace": namespace}
        for environment, namespace in zip(list_of(loaded["environments"]), NAMESPACES, strict=True)
    ]
    source = {"repository": str(repository), "branch": "main"}
    return {**loaded, "source": source, "image": image, "environments": environments}


def list_of(value: object) -> list[dict[str, object]]:
    """A list of mappings, as the pipeline file has it."""
    if not isinstance(value, list):
        raise DemoError("the shop's pipeline file has no list of environments")
    return value


def has_image(reference: str) -> bool:
    """Whether the demo's registry has an image."""
    host, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")
    try:
        return httpx.get(f"http://{host}/v2/{name}/tags/list", timeout=5, trust_env=False).json()["tags"].count(tag) > 0
    except (httpx.HTTPError, ValueError, KeyError, AttributeError):
        return False


def make_repository(folder: Path) -> None:
    """A git repository of the shop's version 1."""
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache", ".mypy_cache"))
    for manifest in folder.glob("k8s/*/deployment.yaml"):
        manifest.write_text(manifest.read_text().replace("localhost:5000/shop", f"{REGISTRY}/demo/shop"))
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "The shop opens")


def git(folder: Path, *arguments: str) -> None:
    """Run git in the demo's repository."""
    subprocess.run(["git", *AUTHOR, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, message: str) -> None:
    """Commit everything."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


@contextmanager
def running(stage: Stage, command: list[str], name: str) -> Iterator[None]:
    """A program with a log file, ended by its pid and with it whatever it started."""
    with (stage.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=stage.folder, env=dict(stage.env), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait(ready: Callable[[], bool], what: str, log: Path) -> None:
    """Wait for a condition, at most two minutes."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise DemoError(f"{what} did not come up:\n{log.read_text()[-2000:]}")


def act(stage: Stage, title: str, patch: str | None, expected: str) -> None:
    """Commit a version, release it, answer the approval, and see how it ends."""
    console.rule(f"[bold]{title}")
    if patch:
        git(stage.folder / "shop", "apply", f"versions/{patch}")
        commit(stage.folder / "shop", title.partition(". ")[2])
    deployment = stage.ask("GET", f"/deployments/name/release/{application()}")
    console.print(f"[bold]prefect deployment run 'release/{application()}'[/bold]")
    run = stage.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", json={"idempotency_key": uuid4().hex})
    console.print(f"watch it: {stage.ui}/runs/flow-run/{run['id']}")
    state = follow(stage, run["id"])
    if state["name"] == "Suspended":
        approve(stage, run["id"])
        state = follow(stage, run["id"])
    console.print(f"the run ended: [bold]{state['name']}[/bold]")
    console.print(str(state["message"] or ""), style="dim", markup=False)
    if state["name"] != expected:
        raise DemoError(f"expected {expected}; the log is in the Prefect UI, and in {stage.folder / 'serve.log'}")
    stage.seen.append((title, state["name"], runs_in_production()))


def follow(stage: Stage, run: str) -> dict[str, str]:
    """Print the run's stages as they end, until it waits for a person or is over."""
    give_up = time.monotonic() + MINUTES * 60
    while time.monotonic() < give_up:
        state: dict[str, str] = stage.ask("GET", f"/flow_runs/{run}")["state"]
        query = {"flow_runs": {"id": {"any_": [run]}}, "sort": "END_TIME_DESC"}
        for each in reversed(stage.ask("POST", "/task_runs/filter", json=query)):
            if each["id"] not in stage.told and each["state_type"] in ENDED and each["state_name"] != "Cached":
                stage.told.add(each["id"])
                good = each["state_type"] == "COMPLETED"
                console.print(
                    f"  {'[green]✔' if good else '[red]✘'}[/] {each['name']} ({each['total_run_time']:.1f} s)"
                )
        if state["name"] == "Suspended" or state["type"] in ENDED:
            return state
        time.sleep(0.5)
    raise DemoError(f"the run is not over after {MINUTES} minutes: {stage.ui}/runs/flow-run/{run}")


def approve(stage: Stage, run: str) -> None:
    """Wait until a person answered in the UI or pressed Enter; answer at once without a terminal."""
    console.print("\nit waits for an approval: press [bold]Resume[/bold] on the run's page and look at the form")
    if sys.stdin.isatty():
        console.print("… or press Enter here to approve it", style="dim")
        while stage.ask("GET", f"/flow_runs/{run}")["state"]["name"] == "Suspended":
            if select.select([sys.stdin], [], [], 1)[0]:
                sys.stdin.readline()
                break
        else:
            return
    else:
        console.print("there is no terminal, so the demo approves it itself through the API", style="dim")
    answer = {"decision": "approve", "name": "the demo", "comment": "looks good"}
    stage.ask("POST", f"/flow_runs/{run}/resume", json={"run_input": answer})
    wait(
        lambda: stage.ask("GET", f"/flow_runs/{run}")["state"]["name"] != "Suspended",
        "the approved run",
        stage.folder / "serve.log",
    )


def runs_in_production() -> str:
    """The release that the cluster itself says is in production."""
    query = "jsonpath={.metadata.annotations.prefect-cd\\.dev/release}"
    command = ["kubectl", "--namespace", NAMESPACES[1], "get", "deployment", application(), "--output", query]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def show(stage: Stage) -> None:
    """What happened, in one table."""
    table = Table(title="What production runs, as kubectl sees it")
    for column in ("act", "the run ended", "release in production afterwards"):
        table.add_column(column)
    for row in stage.seen:
        table.add_row(*row)
    console.print(table)
    if stage.seen[-1][2] != stage.seen[-2][2]:
        raise DemoError("the version that failed is still in production")


def wait_for_ctrl_c(stage: Stage) -> None:
    """Leave everything running for a person; end at once without a terminal."""
    if not sys.stdin.isatty():
        return
    console.print(f"\nlook around at {stage.ui}; Ctrl-C ends everything and cleans up")
    while True:
        time.sleep(1)


def remove_namespaces() -> None:
    """Delete the demo's namespaces and wait for their end."""
    subprocess.run(
        ["kubectl", "delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=90s"],
        check=False,
        capture_output=True,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
