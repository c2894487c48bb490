"""The whole story on a cluster: two versions with approval, and a third that production rolls back.

`make demo` plays it on an embedded cluster of its own, `make demo KUBECONFIG=…` on that cluster with the registry of
$REGISTRY (default localhost:5000). It starts a Prefect server and serves the shop's pipeline, all in a temporary
folder, and removes everything at its end. In a terminal the user approves in the Prefect UI or presses Enter; without
one the demo approves by itself, and says so. It fails (exit code 1) when an act ends otherwise than announced, and when
the shop answered no visitor.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from backstage import shop
from backstage.guard import guarded
from backstage.outcome import (
    RELEASED,
    ROLLED_BACK,
    Outcome,
    act_problems,
    ended_as,
    version_name,
    visitor_problems,
)
from backstage.programs import DemoError, free_port, running, wait
from backstage.runs import Runs
from backstage.visitors import Visitors
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from prefect_cd.errors import DeliveryError

PREFECT_PORT = 4200
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Act:
    """One release, what it shows, and how it must end: RELEASED or ROLLED_BACK."""

    title: str
    why: str
    patch: str
    ends: str


ACTS = (
    Act(
        "1. The shop opens",
        "One image is built, tested, deployed to staging and tested there in a browser. Then the run waits for an "
        "approval: only what was approved, exactly as it was approved, reaches production.",
        "",
        RELEASED,
    ),
    Act(
        "2. Version 2 brings staff picks",
        "Visitors are in the shop now, ten requests a second. The new version replaces the old one pod by pod, and no "
        "request may fail. Look at the plan in the form: only objects that change are written.",
        "v2.patch",
        RELEASED,
    ),
    Act(
        "3. Version 3 passes every test, and breaks in production",
        "It lacks a currency that only production uses. The pods are healthy, so the rollout completes, but "
        "the gates after the rollout fail. The known-good version comes back by itself, with its settings.",
        "v3.patch",
        ROLLED_BACK,
    ),
)


def main(folder: Path) -> int:
    """Play the acts; 0 when each ended as it should."""
    logging.getLogger("stamina").setLevel(logging.ERROR)  # retries of a busy server are normal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        with ExitStack() as stack:
            repository = shop.Repository(folder / "shop")
            runs = set_up(stack, folder, repository)
            play(stack, repository, runs)
            console.print("[green]Every act ended as announced.[/]")
            wait_for_ctrl_c(runs)
    except (DemoError, DeliveryError) as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(stack: ExitStack, folder: Path, repository: shop.Repository) -> Runs:
    """Start a Prefect server and serve the pipeline; the stack stops and removes both in reverse order."""
    console.rule("[bold]Set-up")
    if not os.environ.get("KUBECONFIG"):
        raise DemoError("no KUBECONFIG; `make demo` starts a cluster, `make demo KUBECONFIG=…` uses that one")
    console.print(f"cluster   {shop.describe_cluster()}")
    console.print(f"          [dim]export KUBECONFIG={os.environ['KUBECONFIG']}  # for kubectl in another terminal[/]")
    stack.callback(clean_up)
    shop.remove_namespaces()
    pipeline, notes = shop.pipeline(repository.folder)
    for note in notes:
        console.print(f"[yellow]{note}[/]")
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    port = free_port(PREFECT_PORT)
    ui = f"http://127.0.0.1:{port}"
    console.print(f"Prefect   {ui}" + ("" if port == PREFECT_PORT else f" [dim](port {PREFECT_PORT} is taken)[/]"))
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
    runs = Runs(client, ui, folder / "serve.log", console)
    with console.status("starting the Prefect server"):
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = stack.enter_context(running(command, env, folder / "server.log"))
        wait(lambda: client.get("/health").is_success, "the Prefect server", folder / "server.log", server)
    console.print(f"pipeline  prefect-cd serve {file}")
    with console.status("serving the pipeline"):
        serving = stack.enter_context(running(["prefect-cd", "serve", str(file)], env, runs.log))
        served = f"/deployments/name/recover/{shop.NAME}"
        wait(lambda: client.get(served).is_success, "the served pipeline", runs.log, serving)
    return runs


def play(stack: ExitStack, repository: shop.Repository, runs: Runs) -> None:
    """Play the acts, with visitors from the second on, and show the results.

    Raises:
        DemoError: an act ended otherwise than announced, or the visitors did not reach the shop.
    """
    versions: dict[str, str] = {}
    rows: list[tuple[str, str, str]] = []
    known_good = ""
    visitors: Visitors | None = None
    for number, act in enumerate(ACTS, start=1):
        console.print()
        console.print(Panel(act.why, title=f"[bold]{act.title}", title_align="left"), soft_wrap=False)
        if visitors:
            console.print(f"the shop: {visitors.url}")
        commit = repository.commit(act.title.partition(". ")[2], act.patch)
        versions[commit] = f"version {number}"
        state = runs.release(shop.NAME)
        console.print(f"the run ended: [bold]{ended_as(state)}[/]")
        console.print(str(state["message"] or ""), style="dim", markup=False)
        outcome = Outcome(ended_as(state), *shop.production(commit))
        check_act(act, act_problems(act.ends, commit, known_good, outcome), runs)
        rows.append((act.title, outcome.state, outcome.production))
        known_good = commit if act.ends == RELEASED else known_good
        visitors = visitors or stack.enter_context(Visitors(shop.NAMESPACES[1], shop.NAME))
    time.sleep(1)  # some requests to the version that came back
    show_acts(rows)
    if visitors:
        visitors.stop()
        show_visitors(visitors, versions)


def check_act(act: Act, problems: list[str], runs: Runs) -> None:
    """Fail when an act ended otherwise than announced; the log of the served pipeline tells why."""
    if problems:
        log = runs.log.read_text(errors="replace")[-4000:]
        raise DemoError(f"act {act.title!r} ended otherwise than announced: {'; '.join(problems)}\n{log}")


def show_acts(rows: list[tuple[str, str, str]]) -> None:
    """Show what production runs after each act."""
    table = Table("act", "the run ended", "release in production afterwards", title="What the cluster says")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_visitors(visitors: Visitors, versions: dict[str, str]) -> None:
    """Show requests and failures by version; fail when the shop did not get them."""
    table = Table("answered by", "requests", "failures", "what failed", title="What users of the shop saw")
    for version in sorted({version for version, _ in visitors.requests}, key=lambda version: label(version, versions)):
        counts = {failure: number for (other, failure), number in visitors.requests.items() if other == version}
        failures = {failure: number for failure, number in counts.items() if failure}
        details = ", ".join(f"{number} times {failure}" for failure, number in failures.items())
        table.add_row(label(version, versions), str(sum(counts.values())), str(sum(failures.values())), details)
    console.print(table)
    if visitors.problem:
        raise DemoError(f"the visitors stopped before the end: {visitors.problem!r}")
    kept = [name for name, act in zip(versions.values(), ACTS, strict=True) if act.ends == RELEASED]
    if problems := visitor_problems(visitors.requests, versions, kept):
        raise DemoError(f"the figures of the visitors are not about this shop: {'; '.join(problems)}")


def label(version: str, versions: dict[str, str]) -> str:
    """The name of a version in the table of visitors."""
    return version_name(version, versions) or version or "no version"


def wait_for_ctrl_c(runs: Runs) -> None:
    """Keep everything running until Ctrl-C; end at once without a terminal."""
    if not sys.stdin.isatty():
        return
    console.print(f"\nLook around in [bold]{runs.ui}[/]; Ctrl-C ends everything and cleans up.")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)


def clean_up() -> None:
    """Remove the demo's namespaces; a cluster that does not answer is only reported."""
    with console.status("cleaning up"):
        try:
            shop.remove_namespaces()
        except (DemoError, DeliveryError) as error:
            console.print(f"[yellow]not cleaned up: {error}[/]")


def forget_killed_demos(prefix: str) -> None:
    """Remove folders of demos that were killed: the process id in the folder's name is no longer there."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(IndexError):
            if not Path("/proc", folder.name.split("-")[-2]).exists():
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    PREFIX = "prefect-cd-demo-"
    forget_killed_demos(PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as place:
        sys.exit(guarded(lambda: main(Path(place))))
