"""How a rollout is shown in a terminal, in a log, and to a program.

A terminal shows a table that is kept up to date; elsewhere each change is a line; a program gets one JSON document at
the end, which always has all of its keys.
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

from prefect_cd.deployments import terminal
from prefect_cd.errors import DeliveryError, Failed
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report
from prefect_cd.untrusted_text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_STYLES = {Phase.COMPLETE: "green", Phase.FAILED: "red", Phase.PROGRESSING: "yellow"}
_SIGNS = {Phase.COMPLETE: "✔", Phase.FAILED: "✘", Phase.PROGRESSING: "…"}
_MOST_PODS = 12
_FRAMES_PER_SECOND = 4


class View(Protocol):
    """Where reports go while a rollout is watched."""

    def show(self, report: Report) -> None:
        """Show the report as it is now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(*, live: bool, silent: bool) -> View:
    """A table in a terminal, lines elsewhere, or nothing."""
    return _Table() if live else _Lines(silent=silent)


class _Lines:
    """A line for each change; a countdown that goes on is no change."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._written = ""

    def show(self, report: Report) -> None:
        if report.summary_without_seconds != self._written and not self._silent:
            terminal.write(terminal.joined([f"{report.seconds:6.1f} s  {report.summary}"]))
        self._written = report.summary_without_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the lines as they are."""


class _Table:
    """A table that is redrawn, and stays when the watch has ended."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._began = time.monotonic()
        self._ended = False
        self._live: Live | None = None

    def show(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> Self:
        from rich.live import Live  # noqa: PLC0415  takes a tenth of a second, which only a terminal needs

        self._live = Live(get_renderable=self._drawn, refresh_per_second=_FRAMES_PER_SECOND)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self._live:
            self._live.__exit__(kind, error, trace)

    def _drawn(self) -> "RenderableType":
        return drawn(self._report, time.monotonic() - self._began, ended=self._ended)


def drawn(report: Report | None, seconds: float, *, ended: bool = False) -> "RenderableType":
    """The table: each workload with its state, and below it those of its pods that say most."""
    from rich.console import Group  # noqa: PLC0415  as above
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", show_header=False, highlight=False)
    if report is None:
        table.add_row(Text(f"waiting for the cluster … {seconds:.0f} s"))
        return table
    for row in report.workloads:
        style = _STYLES[row.phase]
        table.add_row(
            Text(f"{_SIGNS[row.phase]} {visible(row.workload)}", style=f"bold {style}"),
            Text(f"{row.ready} of {row.wanted}"),
            Text(visible(row.summary), style=style),
        )
        # pods that are not ready come first: not all of many pods are shown
        for pod in sorted(row.pods, key=lambda pod: pod.ready)[:_MOST_PODS]:
            table.add_row(
                Text(f"    {visible(pod.name)}"),
                Text("ready" if pod.ready else "-"),
                Text(visible(pod.state), style="dim"),
            )
    soaking = report.completed_at is not None and not ended
    table.add_row(Text(f"{seconds:.0f} s{', complete; still watched' if soaking else ''}", style="dim"))
    if report.lost and not ended:
        return Group(table, Text(f"{visible(report.lost)}: this is the last known state", style="bold yellow"))
    return table


def document(report: Report | None, error: DeliveryError | None) -> Mapping[str, Any]:
    """The whole answer for a program.

    Keys and values are stable: `verdict` is `complete`, `doomed` (failed) or `unknown`.
    """
    verdict = "complete" if error is None else "doomed" if isinstance(error, Failed) else "unknown"
    shown: dict[str, Any] = {"workloads": [], "problems": [], "seconds": None}
    if report:
        shown = report.model_dump(mode="json", exclude={"workloads": {"__all__": {"summary_without_seconds"}}})
    return {
        "verdict": verdict,
        "summary": error.reason if error else report.summary if report else "",
        "seconds": shown["seconds"],
        "workloads": shown["workloads"],
        "troubles": shown["problems"],  # the key is stable: programs read it
        "error": {"code": error.code, "reason": error.reason, "where": error.where, "hint": error.hint}
        if error
        else None,
    }


__all__ = ["View", "document", "drawn", "view"]
