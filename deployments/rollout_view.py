"""How a rollout is shown in a terminal, in a log, and to a program.

A terminal shows a table that is always of this moment; elsewhere a line is written when there is something new to say;
a program gets one JSON document at the end, whose keys are always all there.
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

from prefect_cd.errors import DeliveryError, Failed
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report

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
        """Show how things stand now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(*, live: bool, silent: bool) -> View:
    """A table in a terminal, lines elsewhere, or nothing."""
    return _Table() if live else _Lines(silent=silent)


class _Lines:
    """A line whenever there is something new to say; a countdown that goes on is nothing new."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._said = ""

    def show(self, report: Report) -> None:
        if report.gist != self._said and not self._silent:
            sys.stdout.write(f"{report.seconds:6.1f} s  {report.summary}\n")
            sys.stdout.flush()
        self._said = report.gist

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the lines as they are."""


class _Table:
    """A table that is drawn again and again, and stays when the watch has ended."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._began = time.monotonic()
        self._ended = False
        self._live: Live | None = None

    def show(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> Self:
        from rich.live import Live  # noqa: PLC0415  a tenth of a second that only a terminal is worth

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
    """The table: each workload with what keeps it, and under it the pods that matter."""
    from rich.console import Group  # noqa: PLC0415  as above
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", show_header=False, highlight=False)
    if report is None:
        table.add_row(Text(f"looking … {seconds:.0f} s"))
        return table
    for each in report.workloads:
        style = _STYLES[each.phase]
        table.add_row(
            Text(f"{_SIGNS[each.phase]} {each.workload}", style=f"bold {style}"),
            Text(f"{each.ready} of {each.wanted}"),
            Text(each.summary, style=style),
        )
        # the ready ones are of less interest where there are many
        for pod in sorted(each.pods, key=lambda pod: pod.ready)[:_MOST_PODS]:
            table.add_row(Text(f"    {pod.name}"), Text("ready" if pod.ready else "-"), Text(pod.state, style="dim"))
    settling = report.completed_at is not None and not ended
    table.add_row(Text(f"{seconds:.0f} s{', complete; watched a little longer' if settling else ''}", style="dim"))
    if report.lost and not ended:
        return Group(table, Text(f"{report.lost}: this is what was last seen", style="bold yellow"))
    return table


def document(report: Report | None, error: DeliveryError | None) -> Mapping[str, Any]:
    """The whole answer for a program: `verdict` is complete, doomed or unknown."""
    verdict = "complete" if error is None else "doomed" if isinstance(error, Failed) else "unknown"
    told = report.model_dump(mode="json") if report else {"workloads": [], "troubles": [], "seconds": None}
    return {
        "verdict": verdict,
        "summary": error.reason if error else report.summary if report else "",
        "seconds": told["seconds"],
        "workloads": told["workloads"],
        "troubles": told["troubles"],
        "error": {"code": error.code, "reason": error.reason, "where": error.where, "hint": error.hint}
        if error
        else None,
    }


__all__ = ["View", "document", "drawn", "view"]
