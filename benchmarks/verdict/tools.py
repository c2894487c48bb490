"""The measured tools, each started as its users start it: the command, and the meaning of its output.

A verdict is a tool's statement about the rollout. A time-out is no verdict, because the caller sets the time limit.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from api import Object
from scenario import Scenario

COMPLETE, FAILED, NONE = "complete", "failed", "none"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-cd-verdicts"
HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
OURS, KUBECTL, HELM_4, KUBEDOG = "prefect-cd", "kubectl", "helm 4", "kubedog"
NAMES = (OURS, KUBECTL, HELM_4, KUBEDOG)
SOAK = 30.0
"""Seconds that a complete rollout is watched on by default."""
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Answer:
    """The answer of a tool.

    Args:
        tool: its name.
        verdict: complete, failed, or none within its time.
        at: time of the verdict, in seconds of the clock.
        output: everything that the tool wrote.
        named: whether the output names the cause.
        category: the cause's category, where the tool has categories.
    """

    tool: str
    verdict: str
    at: float
    output: str
    named: bool = False
    category: str = ""


async def build(kubedog: Path) -> None:
    """Build Helm and kubedog's tracker into the cache folder, unless they are there; needs Go, and some minutes.

    Args:
        kubedog: the folder of its source.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, command, folder in (
        ("helm", ["go", "install", HELM], CACHE),
        ("kubedog", ["go", "build", "-o", str(CACHE / "kubedog"), "."], kubedog),
    ):
        if (CACHE / name).exists():
            continue
        print(f"building {name}, once", flush=True)
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env={**os.environ, "GOBIN": str(CACHE)})
        if await process.wait():
            sys.exit(f"{' '.join(command)} failed")


def seconds_for(scenario: Scenario) -> float:
    """The time limit of each tool, in seconds."""
    return scenario.window + SOAK


async def watched(tool: str, scenario: Scenario, namespace: str, folder: Path) -> Answer:
    """Run one tool until it ends, or until its time limit."""
    limit = seconds_for(scenario)
    process = await asyncio.create_subprocess_exec(
        *_command(tool, scenario, namespace, limit, folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **_environment(folder)},
        start_new_session=True,  # Ctrl-C is handled by the benchmark
    )
    reading = asyncio.create_task(process.communicate())
    try:
        # Tools with a timeout get it as an option, and some seconds more to report that it was reached.
        await asyncio.wait_for(asyncio.shield(reading), limit + (0 if tool == OURS else _GRACE_SECONDS))
        ended = True
    except asyncio.TimeoutError:
        ended = False
    except asyncio.CancelledError:
        _signal(process, signal.SIGKILL)
        raise
    at = time.time()
    if not ended:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), _GRACE_SECONDS)
        _signal(process, signal.SIGKILL)
    output = (await reading)[0].decode(errors="replace")
    code = process.returncode if ended else None
    return _read(tool, code, output, at, scenario)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _command(tool: str, scenario: Scenario, namespace: str, limit: float, folder: Path) -> Sequence[str]:
    kind, name = scenario.workload
    timeout = f"{limit:.0f}s"
    if tool == OURS:
        return [program(), "rollout", scenario.watch, "-n", namespace, "-o", "json", "--settle", f"{SOAK:.0f}s"]
    if tool == KUBECTL and kind == "job":
        return ["kubectl", "wait", "--for=condition=complete", scenario.watch, "-n", namespace, f"--timeout={timeout}"]
    if tool == KUBECTL:
        return ["kubectl", "rollout", "status", scenario.watch, "-n", namespace, f"--timeout={timeout}"]
    if tool == KUBEDOG:
        return [str(CACHE / "kubedog"), kind, name, namespace, timeout]
    waiting = ["--wait=watcher", "--timeout", timeout, *(["--wait-for-jobs"] if kind == "job" else [])]
    return helm(namespace, folder, *waiting)


def program() -> str:
    """The command `prefect-cd` of the running Python environment."""
    return shutil.which("prefect-cd", path=str(Path(sys.executable).parent)) or "prefect-cd"


def helm(namespace: str, chart: Path, *options: str) -> list[str]:
    """The command that installs or upgrades a chart."""
    return [str(CACHE / "helm"), "upgrade", "--install", "app", str(chart), "-n", namespace, *options]


def write_chart(folder: Path, manifests: Sequence[Object]) -> None:
    """Write a chart that has the manifests and nothing else."""
    shutil.rmtree(folder / "templates", ignore_errors=True)
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "app", "version": "0.1.0"}))
    for number, item in enumerate(manifests):
        text = yaml.safe_dump(item).replace("{{", '{{ "{{" }}')
        (folder / "templates" / f"{number:02}.yaml").write_text(text)


def _environment(folder: Path) -> Mapping[str, str]:
    return {f"HELM_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}


def _read(tool: str, code: int | None, output: str, at: float, scenario: Scenario) -> Answer:
    verdict = verdict_of(tool, code, output)
    named = bool(scenario.named and re.search(scenario.named, output, re.IGNORECASE))
    category = ""
    if tool == OURS and verdict == FAILED:
        troubles: list[dict[str, Any]] = json.loads(output[output.index("{") :])["troubles"]
        category = troubles[0]["category"] if troubles else ""
        named = named and category in scenario.categories
    return Answer(tool, verdict, at, output, named, category)


_TIMED_OUT = {
    KUBECTL: r"timed out waiting|watch closed before|context deadline exceeded",
    HELM_4: r"context deadline exceeded|timed out|client rate limiter",
}


def verdict_of(tool: str, code: int | None, output: str) -> str:
    """The verdict of an exit code and its output; the code is None for a tool that had to be ended."""
    if code == 0:
        return COMPLETE
    if code != 1 or re.search(_TIMED_OUT.get(tool, r"$^"), output):
        return NONE
    return FAILED
