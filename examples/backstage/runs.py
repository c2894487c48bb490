"""Runs of the served pipeline: started, followed and approved through Prefect's public API."""

import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import stamina
from backstage.programs import DemoError, wait
from rich.console import Console

_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
_MINUTES = 10


@dataclass
class Runs:
    """A Prefect server, and what of it the terminal has shown.

    Attributes:
        reported: ids of the task runs whose end has been printed.
    """

    client: httpx.Client
    ui: str
    log: Path
    console: Console
    reported: set[str] = field(default_factory=set)

    def call(self, method: str, path: str, json: object = None) -> Any:  # noqa: ANN401  JSON
        """One call of the Prefect API, retried while the server is busy (503)."""
        for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=20, timeout=60):
            with attempt:
                response = self.client.request(method, path, json=json)
                response.raise_for_status()
        return response.json() if response.content else None

    def release(self, application: str) -> dict[str, str]:
        """Release the branch, approve it, and return the state that the run ended in."""
        deployment = self.call("GET", f"/deployments/name/release/{application}")
        path = f"/deployments/{deployment['id']}/create_flow_run"
        run = str(self.call("POST", path, json={"idempotency_key": uuid4().hex})["id"])
        self.console.print(f"[bold]prefect deployment run 'release/{application}'[/]  → {self._page(run)}")
        state = self._follow(run)
        while state["name"] == "Suspended":
            self._approve(run)
            state = self._follow(run)
        return state

    def _page(self, run: str) -> str:
        return f"{self.ui}/runs/flow-run/{run}"

    def _follow(self, run: str) -> dict[str, str]:
        """Print the run's stages as they end, until the run waits for approval or has ended."""
        give_up = time.monotonic() + _MINUTES * 60
        with self.console.status("starting") as spinner:
            while time.monotonic() < give_up:
                state: dict[str, str] = self.call("GET", f"/flow_runs/{run}")["state"]
                query = {"flow_runs": {"id": {"any_": [run]}}, "sort": "END_TIME_DESC"}
                stages = list(reversed(self.call("POST", "/task_runs/filter", json=query)))
                for stage in stages:
                    self._report(stage)
                running = [stage["name"] for stage in stages if stage["state_type"] == "RUNNING"]
                spinner.update(" → ".join(running) or str(state["name"]).lower())
                if state["name"] == "Suspended" or state["type"] in _ENDED:
                    return state
                time.sleep(0.5)
        raise DemoError(f"the run has not ended after {_MINUTES} minutes: {self._page(run)}")

    def _report(self, stage: dict[str, Any]) -> None:
        if stage["id"] in self.reported or stage["state_type"] not in _ENDED or stage["state_name"] == "Cached":
            return
        self.reported.add(stage["id"])
        mark = "[green]✔[/]" if stage["state_type"] == "COMPLETED" else "[red]✘[/]"
        self.console.print(f"  {mark} {stage['name']} [dim]{stage['total_run_time']:.1f} s[/]")

    def _approve(self, run: str) -> None:
        """Wait for an answer in the UI or for Enter; without a terminal, approve at once."""
        self.console.print(
            "\n[bold yellow]The run waits for approval.[/] The form shows the diff, the tests and the screenshots: "
            f"press Resume on\n  {self._page(run)}"
        )
        if sys.stdin.isatty():
            self.console.print("or press [bold]Enter[/] here to approve")
            while not select.select([sys.stdin], [], [], 1)[0]:
                if self._answered(run):
                    return
            sys.stdin.readline()
        else:
            self.console.print("There is no terminal here, so the demo approves the release itself, through the API.")
        decision = {"decision": "approve", "name": "the demo", "comment": "looks good"}
        self.call("POST", f"/flow_runs/{run}/resume", json={"run_input": decision})
        wait(lambda: self._answered(run), "the approved run", self.log)

    def _answered(self, run: str) -> bool:
        return bool(self.call("GET", f"/flow_runs/{run}")["state"]["name"] != "Suspended")
