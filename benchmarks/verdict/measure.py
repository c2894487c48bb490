"""Measure one scenario: two copies of it side by side, with all tools at the same time.

The first copy is applied by the benchmark and watched by ours, kubectl and kubedog at the same time; the second is
installed by Helm, which watches what it installs.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api import Api
from proof import proved
from scenario import Scenario, load
from stage import Stage
from tools import HELM_4, KUBECTL, KUBEDOG, OURS, Answer, helm, watched, write_chart
from witness import Observation, Witness

_NAME_LENGTH = 30
_START_INTERVAL = 2.0  # seconds between the starts of two scenarios


@dataclass(frozen=True)
class Run:
    """The result of a scenario.

    Args:
        scenario: the scenario.
        applied: when the first copy was applied, in seconds of the clock.
        proof: when the API had the proving fact, or the first sign of the problem.
        answers: by tool.
        seconds: from the apply of its copy to each tool's answer.
        observations: the witness's record of the first copy.
    """

    scenario: Scenario
    applied: float
    proof: float | None
    answers: dict[str, Answer]
    seconds: dict[str, float]
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class Bench:
    """The shared parts of all scenarios of a run.

    Args:
        api: the cluster.
        witness: watches all namespaces with the prefix.
        prefix: begins the name of every namespace of this run.
        folder: for charts.
        keep: do not delete the namespaces.
        starting: held by the scenario that is about to apply.
    """

    api: Api
    witness: Witness
    prefix: str
    folder: Path
    keep: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def _wait_for_turn(self) -> None:
        """Space out the starts: with everything at once, the load of the machine would be measured."""
        async with self.starting:
            await asyncio.sleep(_START_INTERVAL)

    async def measure(self, name: str) -> Run:
        """Measure both copies at the same time."""
        stages = [self._stage(name, copy) for copy in ("a", "b")]
        try:
            await asyncio.gather(*(stage.prepare() for stage in stages))
            copies = [asyncio.create_task(self._apply_and_watch(stages[0])),
                    asyncio.create_task(self._install_with_helm(stages[1]))]  # fmt: skip
            try:
                (applied, answers), (installed, helm_answers) = await asyncio.gather(*copies)
            finally:
                for task in copies:
                    task.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
            observations = tuple(self.witness.observations(stages[0].namespace))
        finally:
            for stage in stages:
                if not self.keep:
                    await asyncio.shield(stage.close())
                self.witness.forget(stage.namespace)
        scenario = stages[0].scenario
        by_tool = {answer.tool: answer for answer in (*answers, *helm_answers)}
        started = {tool: installed if tool == HELM_4 else applied for tool in by_tool}
        seconds = {tool: answer.at - started[tool] for tool, answer in by_tool.items()}
        proof = proved(scenario.proof, observations, applied) if scenario.proof else None
        return Run(scenario, applied, proof, by_tool, seconds, observations)

    def _stage(self, name: str, copy: str) -> Stage:
        namespace = f"{self.prefix}{name[:_NAME_LENGTH].rstrip('-')}-{copy}"
        return Stage(self.api, load(name, namespace), namespace)

    async def _apply_and_watch(self, stage: Stage) -> tuple[float, list[Answer]]:
        scenario, folder = stage.scenario, self.folder / stage.namespace
        if scenario.earlier:
            await stage.apply(scenario.before())
            await stage.until_up()
        await self._wait_for_turn()
        applied = time.time()
        await stage.apply(scenario.manifests)
        playing = asyncio.create_task(stage.play(applied))
        tools = (OURS, KUBECTL, KUBEDOG)
        return applied, await _answers_during(
            playing, [watched(tool, scenario, stage.namespace, folder) for tool in tools]
        )

    async def _install_with_helm(self, stage: Stage) -> tuple[float, list[Answer]]:
        scenario, folder = stage.scenario, self.folder / stage.namespace
        generation = 0
        if scenario.earlier:
            write_chart(folder, scenario.before())
            process = await asyncio.create_subprocess_exec(
                *helm(stage.namespace, folder), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            await process.wait()
            await stage.until_up()
            generation = await stage.generation()
        write_chart(folder, scenario.manifests)
        await self._wait_for_turn()
        installed = time.time()
        playing = asyncio.create_task(_play_after_install(stage, generation))
        return installed, await _answers_during(playing, [watched(HELM_4, scenario, stage.namespace, folder)])


async def _play_after_install(stage: Stage, generation: int) -> None:
    if stage.scenario.steps:
        await stage.until_applied(generation)
        await stage.play(time.time())


async def _answers_during(
    playing: "asyncio.Task[None]", watching: Sequence[Coroutine[Any, Any, Answer]]
) -> list[Answer]:
    """Wait for the tools while the scenario plays; a step that fails makes the measurement invalid and raises."""
    tools = [asyncio.create_task(tool) for tool in watching]
    answers = asyncio.gather(*tools)
    try:
        await asyncio.wait([playing, answers], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if playing.done():
            playing.result()
        return list(await answers)
    finally:
        for task in (playing, *tools):
            task.cancel()
        await asyncio.gather(playing, *tools, return_exceptions=True)
