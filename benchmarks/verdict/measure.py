"""One scenario, measured: two copies of it side by side, all tools on the stopwatch.

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
from witness import Seen, Witness

_NAME_LENGTH = 30
_BETWEEN_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """What came of a scenario.

    Args:
        scenario: which.
        applied: when the first copy was applied, in seconds of the clock.
        proof: when the API had the proving fact, or the first sign of the trouble.
        answers: by tool.
        seconds: from the apply to each tool's answer; each counts from the apply of its own copy.
        seen: what the witness saw of the first copy.
    """

    scenario: Scenario
    applied: float
    proof: float | None
    answers: dict[str, Answer]
    seconds: dict[str, float]
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What all scenarios of a run share.

    Args:
        api: the cluster.
        witness: watches all namespaces with the prefix.
        prefix: of every namespace of this run.
        folder: for charts.
        keep: leave the namespaces.
        starting: held by who is about to apply.
    """

    api: Api
    witness: Witness
    prefix: str
    folder: Path
    keep: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def _turn(self) -> None:
        """Wait until no other scenario has just begun: a machine that starts everything at once measures itself."""
        async with self.starting:
            await asyncio.sleep(_BETWEEN_SECONDS)

    async def measure(self, name: str) -> Run:
        """Both copies, at the same time."""
        stages = [self._stage(name, copy) for copy in ("a", "b")]
        try:
            await asyncio.gather(*(each.prepare() for each in stages))
            both = [asyncio.create_task(self._applied_by_us(stages[0])),
                    asyncio.create_task(self._installed_by_helm(stages[1]))]  # fmt: skip
            try:
                (applied, answers), (installed, helms) = await asyncio.gather(*both)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            seen = tuple(self.witness.seen(stages[0].namespace))
        finally:
            for each in stages:
                if not self.keep:
                    await asyncio.shield(each.close())
                self.witness.forget(each.namespace)
        scenario = stages[0].scenario
        told = {each.tool: each for each in (*answers, *helms)}
        seconds = {tool: each.at - (installed if tool == HELM_4 else applied) for tool, each in told.items()}
        proof = proved(scenario.proof, seen, applied) if scenario.proof else None
        return Run(scenario, applied, proof, told, seconds, seen)

    def _stage(self, name: str, copy: str) -> Stage:
        namespace = f"{self.prefix}{name[:_NAME_LENGTH].rstrip('-')}-{copy}"
        return Stage(self.api, load(name, namespace), namespace)

    async def _applied_by_us(self, stage: Stage) -> tuple[float, list[Answer]]:
        scenario, folder = stage.scenario, self.folder / stage.namespace
        if scenario.earlier:
            await stage.apply(scenario.before())
            await stage.until_up()
        await self._turn()
        applied = time.time()
        await stage.apply(scenario.manifests)
        playing = asyncio.create_task(stage.play(applied))
        tools = (OURS, KUBECTL, KUBEDOG)
        return applied, await _with(playing, [watched(each, scenario, stage.namespace, folder) for each in tools])

    async def _installed_by_helm(self, stage: Stage) -> tuple[float, list[Answer]]:
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
        await self._turn()
        installed = time.time()
        playing = asyncio.create_task(_played(stage, generation))
        return installed, await _with(playing, [watched(HELM_4, scenario, stage.namespace, folder)])


async def _played(stage: Stage, generation: int) -> None:
    if stage.scenario.steps:
        await stage.until_applied(generation)
        await stage.play(time.time())


async def _with(playing: "asyncio.Task[None]", watching: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Wait for the tools while the scenario plays; a step that cannot be done spoils the measurement."""
    answers = [asyncio.create_task(each) for each in watching]
    told = asyncio.gather(*answers)
    try:
        await asyncio.wait([playing, told], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if playing.done():
            playing.result()
        return list(await told)
    finally:
        for task in (playing, *answers):
            task.cancel()
        await asyncio.gather(playing, *answers, return_exceptions=True)
