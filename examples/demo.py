"""The whole story on a cluster: two versions with approval, and a third that production does not keep.

`make demo` plays it on an embedded cluster of its own, `make demo KUBECONFIG=…` on that cluster with the registry of
$REGISTRY (default localhost:5000). It starts a Prefect server and serves the shop's pipeline, all in a temporary
folder, and removes everything at its end. In a terminal a person may approve in the Prefect UI or press Enter; without
one it answers itself, and says so.
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
    """One release, what it shows, and how it must end."""

    title: str
    why: str
    patch: str
    ends: str


ACTS = (
    Act(
        "1. The shop opens",
        "One image is built, tested, put on staging, clicked through by a browser, and then a person is asked: nothing "
        "reaches production that was not approved exactly as it is.",
        "",
        "Completed",
    ),
    Act(
        "2. Version 2 brings staff picks",
        "Visitors are in the shop now, ten requests a second. The new version comes pod by pod, and none of them may "
        "notice. Look at the plan in the form: only what changes is written.",
        "v2.patch",
        "Completed",
    ),
    Act(
        "3. Version 3 passes every test, and breaks in production",
        "It forgot a currency that only production uses. The pods are healthy, so Kubernetes is content; the gates "
        "after the rollout are not. Nobody has to do anything: the last good version comes back, with its settings.",
        "v3.patch",
        "Rolled back",
    ),
)


def main(folder: Path) -> int:
    """Play the acts; 0 when each ended as it should."""
    logging.getLogger("stamina").setLevel(logging.ERROR)  # a server that is busy is no news
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        with ExitStack() as stack:
            repository = shop.Repository(folder / "shop")
            runs = set_up(stack, folder, repository)
            play(stack, repository, runs)
            wait_for_ctrl_c(runs)
    except (DemoError, DeliveryError) as error:
        console.print(f"[red]demo: {error}[/]", markup=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(stack: ExitStack, folder: Path, repository: shop.Repository) -> Runs:
    """Prefect server and served pipeline; all that is set up is undone in reverse order."""
    console.rule("[bold]Setting the stage")
    if not os.environ.get("KUBECONFIG"):
        raise DemoError("no KUBECONFIG; `make demo` brings a cluster along, `make demo KUBECONFIG=…` takes that one")
    console.print(f"cluster   {shop.cluster_in_words()}")
    console.print(f"          [dim]export KUBECONFIG={os.environ['KUBECONFIG']}  # for kubectl in another terminal[/]")
    stack.callback(clean_up)
    shop.remove_namespaces()
    pipeline, left_out = shop.pipeline(repository.folder)
    for each in left_out:
        console.print(f"[yellow]{each}[/]")
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
    """The acts, with visitors from the second on, and what became of them."""
    versions, rows = {}, []
    visitors: Visitors | None = None
    for number, act in enumerate(ACTS, start=1):
        console.print()
        console.print(Panel(act.why, title=f"[bold]{act.title}", title_align="left"), soft_wrap=False)
        if visitors:
            console.print(f"the shop: {visitors.url}")
        versions[repository.commit(act.title.partition(". ")[2], act.patch)] = f"version {number}"
        state = runs.release(shop.NAME)
        console.print(f"the run ended: [bold]{state['name']}[/]")
        console.print(str(state["message"] or ""), style="dim", markup=False)
        if state["name"] != act.ends:
            raise DemoError(f"this run should have ended as {act.ends}\n{runs.log.read_text(errors='replace')[-4000:]}")
        rows.append((act.title, state["name"], shop.runs_in_production()))
        visitors = visitors or stack.enter_context(Visitors(shop.NAMESPACES[1], shop.NAME))
    time.sleep(1)  # a moment of the version that came back
    show_acts(rows)
    if visitors:
        visitors.leave()
        show_visitors(visitors, versions)


def show_acts(rows: list[tuple[str, str, str]]) -> None:
    """What production runs after each act."""
    table = Table("act", "the run ended", "release in production afterwards", title="What the cluster says")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if rows[-1][2] != rows[-2][2]:
        raise DemoError("the version that failed is still in production")


def show_visitors(visitors: Visitors, versions: dict[str, str]) -> None:
    """Requests and failures by version."""
    table = Table("answered by", "requests", "failures", "what failed", title="What users of the shop saw")
    for version in sorted({version for version, _ in visitors.seen}, key=lambda each: label(each, versions)):
        seen = {outcome: number for (whose, outcome), number in visitors.seen.items() if whose == version}
        failures = {outcome: number for outcome, number in seen.items() if outcome}
        said = ", ".join(f"{number} times {outcome}" for outcome, number in failures.items())
        table.add_row(label(version, versions), str(sum(seen.values())), str(sum(failures.values())), said)
    console.print(table)


def label(version: str, versions: dict[str, str]) -> str:
    """What a person calls the version that an answer names."""
    return next((name for sha, name in versions.items() if version and sha.startswith(version)), version or "nobody")


def wait_for_ctrl_c(runs: Runs) -> None:
    """Leave everything running for a person; end at once without a terminal."""
    if not sys.stdin.isatty():
        return
    console.print(f"\nLook around in [bold]{runs.ui}[/]; Ctrl-C ends everything and cleans up.")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)


def clean_up() -> None:
    """Remove what the demo put into the cluster; one that is gone has nothing left."""
    with console.status("cleaning up"):
        try:
            shop.remove_namespaces()
        except (DemoError, DeliveryError) as error:
            console.print(f"[yellow]not cleaned up: {error}[/]")


def forget_killed_demos(prefix: str) -> None:
    """Remove folders of demos that were killed: their names end with a process that is no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(IndexError):
            if not Path("/proc", folder.name.split("-")[-2]).exists():
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    PREFIX = "prefect-cd-demo-"
    forget_killed_demos(PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as place:
        sys.exit(guarded(lambda: main(Path(place))))
