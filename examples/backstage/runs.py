"""Runs of the served pipeline: started, followed and answered through the Prefect API, as anybody could."""

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
    """A Prefect server, and what the terminal was told of it already."""

    client: httpx.Client
    ui: str
    log: Path
    console: Console
    told: set[str] = field(default_factory=set)

    def ask(self, method: str, path: str, json: object = None) -> Any:  # noqa: ANN401  JSON
        """One call of the Prefect API; a server that is busy (503) is asked again."""
        for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=20, timeout=60):
            with attempt:
                answer = self.client.request(method, path, json=json)
                answer.raise_for_status()
        return answer.json() if answer.content else None

    def release(self, application: str) -> dict[str, str]:
        """Release the branch, answer the approval, and return the state that it ended in."""
        deployment = self.ask("GET", f"/deployments/name/release/{application}")
        path = f"/deployments/{deployment['id']}/create_flow_run"
        run = str(self.ask("POST", path, json={"idempotency_key": uuid4().hex})["id"])
        self.console.print(f"[bold]prefect deployment run 'release/{application}'[/]  → {self._page(run)}")
        state = self._follow(run)
        while state["name"] == "Suspended":
            self._approve(run)
            state = self._follow(run)
        return state

    def _page(self, run: str) -> str:
        return f"{self.ui}/runs/flow-run/{run}"

    def _follow(self, run: str) -> dict[str, str]:
        """Tell the run's stages as they end, until it waits for a person or is over."""
        give_up = time.monotonic() + _MINUTES * 60
        with self.console.status("starting") as spinner:
            while time.monotonic() < give_up:
                state: dict[str, str] = self.ask("GET", f"/flow_runs/{run}")["state"]
                query = {"flow_runs": {"id": {"any_": [run]}}, "sort": "END_TIME_DESC"}
                stages = list(reversed(self.ask("POST", "/task_runs/filter", json=query)))
                for each in stages:
                    self._tell(each)
                now = [each["name"] for each in stages if each["state_type"] == "RUNNING"]
                spinner.update(" → ".join(now) or str(state["name"]).lower())
                if state["name"] == "Suspended" or state["type"] in _ENDED:
                    return state
                time.sleep(0.5)
        raise DemoError(f"the run is not over after {_MINUTES} minutes: {self._page(run)}")

    def _tell(self, stage: dict[str, Any]) -> None:
        if stage["id"] in self.told or stage["state_type"] not in _ENDED or stage["state_name"] == "Cached":
            return
        self.told.add(stage["id"])
        mark = "[green]✔[/]" if stage["state_type"] == "COMPLETED" else "[red]✘[/]"
        self.console.print(f"  {mark} {stage['name']} [dim]{stage['total_run_time']:.1f} s[/]")

    def _approve(self, run: str) -> None:
        """Wait until a person answered in the UI or pressed Enter; answer at once without a terminal."""
        self.console.print(
            "\n[bold yellow]It waits for a person.[/] The form with the diff, the tests and the pictures: press Resume "
            f"on\n  {self._page(run)}"
        )
        if sys.stdin.isatty():
            self.console.print("or press [bold]Enter[/] here to approve")
            while not select.select([sys.stdin], [], [], 1)[0]:
                if self._answered(run):
                    return
            sys.stdin.readline()
        else:
            self.console.print("There is no terminal here, so the demo approves it itself, through the API.")
        answer = {"decision": "approve", "name": "the demo", "comment": "looks good"}
        self.ask("POST", f"/flow_runs/{run}/resume", json={"run_input": answer})
        wait(lambda: self._answered(run), "the approved run", self.log)

    def _answered(self, run: str) -> bool:
        return bool(self.ask("GET", f"/flow_runs/{run}")["state"]["name"] != "Suspended")
