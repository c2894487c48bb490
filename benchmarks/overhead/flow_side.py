"""Our side: a Prefect server, `prefect-cd serve`, and releases that are started and approved through the API.

All times are the server's own, on this machine's clock. A release lasts from the request that starts it to its last
state, without the time between `Suspended` and the call that resumes it, in which the run waits for its approval.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

Stages = dict[str, float]
_POLL = 0.2
_READING = 5.0  # seconds that a user would need, at least, to read the form; not counted
_RUN_TIMEOUT = 600  # seconds
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
ANSWER = {"decision": "approve", "name": "the benchmark", "comment": "at once"}
# The beginning of a task's name -> its stage.
_STAGE_OF = (
    ("resolve", "checkout"),
    ("preflight", "preflight"),
    ("build image", "build and push"),
    ("unit tests", "unit tests"),
    ("render", "render manifests"),
    ("apply to ", "apply to {environment}"),
    ("rollout of ", "rollout of {environment}"),
    ("E2E on ", "E2E on staging"),
    ("smoke on ", "smoke on production"),
    ("front page on ", "smoke on production"),
    ("plan ", "plan (dry run and diff)"),
    ("record ", "records"),
    ("prune ", "prune"),
)


class BenchmarkError(Exception):
    """The measurement failed."""


@dataclass(frozen=True)
class Side:
    """The served pipeline, ready to release."""

    client: httpx.Client
    folder: Path
    application: str

    def release(self) -> Stages:
        """Release the branch's newest commit and approve it at once; seconds by stage."""
        deployment = self._get(f"/deployments/name/release/{self.application}")
        requested = time.time()
        run = self._post(f"/deployments/{deployment['id']}/create_flow_run", {})["id"]
        self._follow(run, {"Suspended"})
        time.sleep(_READING)
        # Prefect saves the form a moment after the state of the run is Suspended.
        resume, body = f"/flow_runs/{run}/resume", {"run_input": ANSWER}
        _wait_for(lambda: self._post(resume, body)["status"] == "ACCEPT", "no form to answer")
        resumed = time.time()
        self._follow(run, set())
        states = self._call("GET", f"/flow_run_states/?flow_run_id={run}")
        suspended = _seconds(next(state["timestamp"] for state in states if state["name"] == "Suspended"))
        ended = max(_seconds(state["timestamp"]) for state in states)
        return _stages(self._tasks(run), requested, suspended, resumed, ended)

    def _follow(self, run: str, waits: set[str]) -> None:
        """Wait until the run is in a state of `waits`, or has completed."""
        give_up = time.monotonic() + _RUN_TIMEOUT
        while time.monotonic() < give_up:
            state = self._get(f"/flow_runs/{run}")["state"]
            if state["name"] in waits or state["type"] == "COMPLETED":
                return
            if state["type"] in _ENDED:
                raise BenchmarkError(f"the run ended as {state['name']}: {state['message']}")
            time.sleep(_POLL)
        raise BenchmarkError(f"the run has not ended after {_RUN_TIMEOUT} s")

    def _tasks(self, run: str) -> list[dict[str, Any]]:
        """The run's tasks in order; the server gets their ends a little later than the end of the run."""
        query = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}
        give_up = time.monotonic() + 30
        while True:
            tasks: list[dict[str, Any]] = self._post("/task_runs/filter", query)
            if all(task["end_time"] for task in tasks):
                return sorted(tasks, key=lambda task: str(task["start_time"] or task["end_time"]))
            if time.monotonic() > give_up:
                raise BenchmarkError("the server has no end time for some tasks")
            time.sleep(_POLL)

    def _get(self, path: str) -> dict[str, Any]:
        content: dict[str, Any] = self._call("GET", path)
        return content

    def _post(self, path: str, body: object) -> Any:  # noqa: ANN401  a list or a mapping
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  a list or a mapping
        """One call, repeated while the server answers 503: its database is busy, and nothing has changed."""
        give_up = time.monotonic() + 30
        while (response := self.client.request(method, path, json=body)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            if time.monotonic() > give_up:
                break
            time.sleep(_POLL)
        return response.raise_for_status().json()


def _stages(tasks: list[dict[str, Any]], requested: float, suspended: float, resumed: float, ended: float) -> Stages:
    """Seconds by stage: tasks by their names, the start of processes, and the time between tasks."""
    spans = [
        (_seconds(task["start_time"]), _seconds(task["end_time"]), str(task["name"]))
        for task in tasks
        if task["start_time"] and not task["name"].startswith(("deploy to ", "prepare "))  # their parts are tasks
    ]
    first = min(start for start, _, _ in spans)
    restarted = min(start for start, _, _ in spans if start > resumed)
    stages: Stages = {"start of the run": first - requested, "start again after the approval": restarted - resumed}
    for start, end, name in spans:
        stage = _stage_of(name)
        stages[stage] = stages.get(stage, 0) + end - start
    stages["together"] = ended - requested - (resumed - suspended)
    stages["between tasks, lock"] = stages["together"] - sum(
        seconds for stage, seconds in stages.items() if stage != "together"
    )
    return stages


def _stage_of(name: str) -> str:
    stage = next((stage for beginning, stage in _STAGE_OF if name.startswith(beginning)), name)
    return stage.format(environment=name.rpartition(" ")[2])


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


@contextmanager
def served(folder: Path, pipeline: Path, application: str) -> Iterator[Side]:
    """Run a Prefect server and the served pipeline; end both, with their child processes, at the end of the block."""
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    env = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_CD_HOME": str(folder / "prefect-cd"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    programs = Path(sys.executable).parent
    with httpx.Client(base_url=api, timeout=30, trust_env=False) as client:
        side = Side(client, folder, application)
        server = [str(programs / "prefect"), "server", "start", "--port", str(port)]
        with _running(server, env, folder / "server.log"):
            _wait(client, "/health", folder / "server.log")
            with _running([str(programs / "prefect-cd"), "serve", str(pipeline)], env, folder / "serve.log"):
                _wait(client, f"/deployments/name/recover/{application}", folder / "serve.log")
                yield side


@contextmanager
def _running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=dict(env), stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(client: httpx.Client, path: str, log: Path) -> None:
    def ready() -> bool:
        with suppress(httpx.TransportError):
            return client.get(path).is_success
        return False

    _wait_for(ready, f"{path} does not answer:\n{log}")


def _wait_for(ready: Callable[[], bool], message: str) -> None:
    give_up = time.monotonic() + 120
    while not ready():
        if time.monotonic() > give_up:
            raise BenchmarkError(message)
        time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
