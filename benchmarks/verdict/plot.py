"""The plot of the README: when each tool called the failing rollouts failed, and its verdicts on the rest. Pure."""

from collections.abc import Sequence

from measure import Run
from outcome import score
from tools import NAMES, OURS

_WIDTH, _LANE, _TOP, _LEFT, _RIGHT = 860, 46, 58, 96, 300
_LONGEST = 100.0
_TICKS = (0, 20, 40, 60, 80, 100)
_DOT, _OURS_COLOUR, _COLOUR, _WRONG = 3.5, "#1a7f37", "#57606a", "#cf222e"
_STYLE = "text{font:12px system-ui,sans-serif;fill:#57606a}.name{font-weight:600}.wrong{fill:#cf222e}"


def drawn(runs: Sequence[Run]) -> str:
    """An SVG: a lane for each tool, a dot for each failing rollout that it called failed."""
    failing = sum(not run.scenario.good for run in runs)
    good = len(runs) - failing
    height = _TOP + _LANE * len(NAMES) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>When {failing} failing rollouts were called failed, by tool</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(
            _LEFT, 20, f"{failing} failing rollouts: each dot is one that was called failed, by seconds since the apply"
        ),
        *(_text(_column(number), 42, name, "middle") for number, name in enumerate(_COLUMNS)),
    ]
    bottom = height - 34
    for tick in _TICKS:
        parts.append(f'<path d="M{_x(tick):.0f} {_TOP}V{bottom}" stroke="#d0d7de"/>')
        parts.append(_text(_x(tick), bottom + 18, f"{tick} s", "middle"))
    for lane, tool in enumerate(NAMES):
        result, middle = score(tool, runs), _TOP + _LANE * lane + _LANE / 2
        parts.append(_text(8, middle + 4, tool, style="name"))
        colour = _OURS_COLOUR if tool == OURS else _COLOUR
        for number, seconds in enumerate(result.seconds):
            y = middle + (number % 7 - 3) * 4
            parts.append(f'<circle cx="{_x(seconds):.1f}" cy="{y:.1f}" r="{_DOT}" fill="{colour}" fill-opacity=".55"/>')
        counts = ((len(result.detected), failing, False), (len(result.missed), failing, True),
                  (len(result.false_alarms), good, True))  # fmt: skip
        for number, (count, total, wrong) in enumerate(counts):
            style = "wrong" if wrong and count else ""
            parts.append(_text(_column(number), middle + 4, f"{count} of {total}", "middle", style))
    return "\n".join([*parts, "</svg>", ""])


_COLUMNS = ("called failed", "called complete", "good called failed")


def _x(seconds: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(seconds, _LONGEST) / _LONGEST


def _column(number: int) -> float:
    return _WIDTH - _RIGHT + 55 + number * 95


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    css_class = f' class="{style}"' if style else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{css_class}>{text}</text>'
