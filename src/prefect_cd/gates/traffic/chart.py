"""A chart of the requests during a rollout: one bar per interval and version, failed requests on top. Pure.

An SVG, because it needs no library, and because the Prefect UI (V1 and V2) and its forms show it as a data URI in
Markdown. It has a background of its own, since the page may be dark, and a legend, since colours explain nothing.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape

from prefect_cd.gates.traffic.metrics import Interval, Traffic

# Pixels. The upper part shows requests per interval, the lower part the slowest response of each interval.
_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP = 48, 12, 34
_UPPER_HEIGHT, _LOWER_HEIGHT = 110, 50
_LOWER_TOP = _TOP + _UPPER_HEIGHT + 26
_BAR_GAP, _NARROWEST_BAR = 0.6, 0.6
_CHARACTER_WIDTH = 6.2  # of the legend's font, about
_VERSION_COLOURS = ("#7f93ab", "#2f7ed8", "#46a35e", "#b08ad0")
_FAILED, _INK, _PAPER, _SLOWEST = "#d62f2f", "#30343b", "#fbfbfa", "#c98a12"
_LONGEST_VERSION = 24  # characters in the legend


def chart_uri(traffic: Traffic) -> str:
    """The chart as a data URI; empty when there is nothing to draw."""
    if not traffic.intervals:
        return ""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(traffic).encode()).decode()


def svg(traffic: Traffic) -> str:
    """The chart as SVG: responses per interval above, the slowest response of each interval below."""
    parts = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{_PAPER}"/>',
        *_legend(traffic),
        *_response_bars(traffic),
        *_latency_bars(traffic),
        *_time_axis(traffic),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    )
    return f'{head} font-family="sans-serif" font-size="11" fill="{_INK}">{"".join(parts)}</svg>'


def _colours(traffic: Traffic) -> dict[str, str]:
    """A colour for each version, in the order in which they first responded; later ones share the last colour."""
    names = [version.version for version in traffic.versions] or [""]
    last = len(_VERSION_COLOURS) - 1
    return {name: _VERSION_COLOURS[min(number, last)] for number, name in enumerate(names)}


def _response_bars(traffic: Traffic) -> Iterator[str]:
    colours = _colours(traffic)
    highest = max(sum(interval.good.values()) + interval.failed for interval in traffic.intervals) or 1
    yield _label(_LEFT - 6, _TOP + 8, f"{highest / traffic.interval:.0f}/s", "end")
    yield _label(_LEFT - 6, _TOP + _UPPER_HEIGHT, "0", "end")
    for interval in traffic.intervals:
        left, bottom = _x(traffic, interval.start), float(_TOP + _UPPER_HEIGHT)
        for number, fill in [*_good_by_colour(interval, colours), (interval.failed, _FAILED)]:
            height = _UPPER_HEIGHT * number / highest
            bottom -= height
            if number:
                yield _box(left, bottom, _bar_width(traffic), height, fill)


def _good_by_colour(interval: Interval, colours: dict[str, str]) -> list[tuple[int, str]]:
    """The good responses of an interval with their colours: without a version first, then the oldest version."""
    others = [(number, _VERSION_COLOURS[0]) for version, number in interval.good.items() if version not in colours]
    return others + [(interval.good[version], fill) for version, fill in colours.items() if version in interval.good]


def _latency_bars(traffic: Traffic) -> Iterator[str]:
    slowest = max(interval.slowest for interval in traffic.intervals) or 1
    yield _label(_LEFT - 6, _LOWER_TOP + 8, f"{slowest * 1000:.0f} ms", "end")
    yield _label(_LEFT - 6, _LOWER_TOP + _LOWER_HEIGHT, "0", "end")
    for interval in traffic.intervals:
        height = _LOWER_HEIGHT * interval.slowest / slowest
        if height:
            top = _LOWER_TOP + _LOWER_HEIGHT - height
            yield _box(_x(traffic, interval.start), top, _bar_width(traffic), height, _SLOWEST)


def _time_axis(traffic: Traffic) -> Iterator[str]:
    """A vertical line where the rollout started, and seconds along the bottom."""
    start, end = _x(traffic, 0), traffic.intervals[-1].start + traffic.interval
    yield f'<path d="M{start:.1f} {_TOP - 4}V{_LOWER_TOP + _LOWER_HEIGHT}" stroke="{_INK}" stroke-dasharray="3 3"/>'
    baseline = _LOWER_TOP + _LOWER_HEIGHT + 16
    yield _label(start, baseline, "rollout starts", "start")
    yield _label(_x(traffic, end), baseline, f"{end:.0f} s", "end")


def _legend(traffic: Traffic) -> Iterator[str]:
    entries: Sequence[tuple[str, str]] = [
        *(
            (fill, f"responses of {name[:_LONGEST_VERSION]}" if name else "responses")
            for name, fill in _colours(traffic).items()
        ),
        *([(_FAILED, "failed")] if any(interval.failed for interval in traffic.intervals) else []),
        (_SLOWEST, "slowest response"),
    ]
    left = float(_LEFT)
    for fill, text in entries:
        yield _box(left, 10, 10, 10, fill)
        yield _label(left + 14, 19, text, "start")
        left += 30 + _CHARACTER_WIDTH * len(text)


def _x(traffic: Traffic, seconds: float) -> float:
    """The horizontal position of a time, in pixels."""
    first, last = traffic.intervals[0].start, traffic.intervals[-1].start + traffic.interval
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (seconds - first) / (last - first)


def _bar_width(traffic: Traffic) -> float:
    return max(_x(traffic, traffic.interval) - _x(traffic, 0) - _BAR_GAP, _NARROWEST_BAR)


def _box(left: float, top: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _label(left: float, baseline: float, text: str, anchor: str) -> str:
    return f'<text x="{left:.1f}" y="{baseline:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


__all__ = ["chart_uri", "svg"]
