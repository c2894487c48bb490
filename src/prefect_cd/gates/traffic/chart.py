"""A picture of a rollout under requests: one bar per stretch of time, by version, with what failed on top. Pure.

An SVG, since it needs no library and the Prefect UI (V1 and V2) and its forms show it as a data URI in Markdown. It has
a background of its own, for the page may be dark, and says in words what colours mean.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape

from prefect_cd.gates.traffic.metrics import Traffic

_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP = 48, 12, 34
_BARS, _LINE = 110, 50  # heights of the two parts
_LINE_TOP = _TOP + _BARS + 26
_VERSIONS = ("#7f93ab", "#2f7ed8", "#46a35e", "#b08ad0")
_FAILED, _INK, _PAPER, _SLOWEST = "#d62f2f", "#30343b", "#fbfbfa", "#c98a12"
_LEGEND = 24


def picture(seen: Traffic) -> str:
    """The chart as a data URI; empty when there is nothing to draw."""
    if not seen.stretches:
        return ""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(seen).encode()).decode()


def svg(seen: Traffic) -> str:
    """The chart as SVG: answers per stretch above, the slowest answer of each stretch below."""
    parts = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{_PAPER}"/>',
        *_legend(seen),
        *_bars(seen),
        *_slowest(seen),
        *_times(seen),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    )
    return f'{head} font-family="sans-serif" font-size="11" fill="{_INK}">{"".join(parts)}</svg>'


def colours(seen: Traffic) -> dict[str, str]:
    """A colour for each version, in the order in which they answered; later ones share the last."""
    names = [each.version for each in seen.versions] or [""]
    return {name: _VERSIONS[min(number, len(_VERSIONS) - 1)] for number, name in enumerate(names)}


def _bars(seen: Traffic) -> Iterator[str]:
    colour = colours(seen)
    highest = max(sum(each.good.values()) + each.failed for each in seen.stretches) or 1
    yield _label(_LEFT - 6, _TOP + 8, f"{highest / seen.step:.0f}/s", "end")
    yield _label(_LEFT - 6, _TOP + _BARS, "0", "end")
    width = _across(seen, seen.step) - _across(seen, 0)
    for each in seen.stretches:
        left, foot = _across(seen, each.start), float(_TOP + _BARS)
        pieces = sorted(each.good.items(), key=lambda item: list(colour).index(item[0]) if item[0] in colour else -1)
        counted = [(number, colour.get(version, _VERSIONS[0])) for version, number in pieces]
        for number, fill in [*counted, (each.failed, _FAILED)]:
            height = _BARS * number / highest
            foot -= height
            if number:
                yield _box(left, foot, max(width - 0.6, 0.6), height, fill)


def _slowest(seen: Traffic) -> Iterator[str]:
    worst = max(each.slowest for each in seen.stretches) or 1
    yield _label(_LEFT - 6, _LINE_TOP + 8, f"{worst * 1000:.0f} ms", "end")
    yield _label(_LEFT - 6, _LINE_TOP + _LINE, "0", "end")
    width = _across(seen, seen.step) - _across(seen, 0)
    for each in seen.stretches:
        height = _LINE * each.slowest / worst
        if height:
            yield _box(_across(seen, each.start), _LINE_TOP + _LINE - height, max(width - 0.6, 0.6), height, _SLOWEST)


def _times(seen: Traffic) -> Iterator[str]:
    """A line where the rollout began, and seconds along the foot."""
    begin, end = _across(seen, 0), seen.stretches[-1].start + seen.step
    yield f'<path d="M{begin:.1f} {_TOP - 4}V{_LINE_TOP + _LINE}" stroke="{_INK}" stroke-dasharray="3 3"/>'
    foot = _LINE_TOP + _LINE + 16
    yield _label(begin, foot, "rollout begins", "start")
    yield _label(_across(seen, end), foot, f"{end:.0f} s", "end")


def _legend(seen: Traffic) -> Iterator[str]:
    words: Sequence[tuple[str, str]] = [
        *((fill, f"answers of {name[:_LEGEND]}" if name else "answers") for name, fill in colours(seen).items()),
        *([(_FAILED, "failed")] if any(each.failed for each in seen.stretches) else []),
        (_SLOWEST, "slowest answer"),
    ]
    left = float(_LEFT)
    for fill, text in words:
        yield _box(left, 10, 10, 10, fill)
        yield _label(left + 14, 19, text, "start")
        left += 30 + 6.2 * len(text)


def _across(seen: Traffic, seconds: float) -> float:
    """Where a time is, in pixels."""
    first, last = seen.stretches[0].start, seen.stretches[-1].start + seen.step
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (seconds - first) / (last - first)


def _box(left: float, top: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _label(left: float, foot: float, text: str, anchor: str) -> str:
    return f'<text x="{left:.1f}" y="{foot:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


__all__ = ["colours", "picture", "svg"]
