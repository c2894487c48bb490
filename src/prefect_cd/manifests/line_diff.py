"""The unified diff of two texts, in a time that grows with their length and not with its square. Pure.

`difflib` alone needs half a minute for 16,000 lines of which every second one differs. So lines that both texts have
exactly once are matched first (the patience diff of git), and `difflib` compares what is left between them, as long as
that is little. What is too much is shown as removed and added: longer than necessary, and never wrong.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher

_CONTEXT = 2
_STEPS_PER_LINE = 2_000
_MOST_STEPS = 20_000_000
_DEEPEST = 12


def unified(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The lines of a unified diff without its two lines of names; empty where the texts are equal."""
    matcher = _Matcher(before, after)
    return [line for group in matcher.get_grouped_opcodes(_CONTEXT) for line in _hunk(group, before, after)]


def _hunk(
    group: Sequence[tuple[str, int, int, int, int]], before: Sequence[str], after: Sequence[str]
) -> Iterator[str]:
    first, last = group[0], group[-1]
    yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
    for tag, begin, end, new_begin, new_end in group:
        if tag == "equal":
            yield from (f" {line}" for line in before[begin:end])
        else:
            yield from (f"-{line}" for line in before[begin:end])
            yield from (f"+{line}" for line in after[new_begin:new_end])


def _range(begin: int, end: int) -> str:
    """A range of lines as POSIX writes it: a single line is its number, and an empty range the line before it."""
    length = end - begin
    return f"{begin + 1}" if length == 1 else f"{begin + 1 if length else begin},{length}"


class _Matcher(SequenceMatcher[str]):
    """Groups the matching blocks that are computed here."""

    def __init__(self, before: Sequence[str], after: Sequence[str]) -> None:
        super().__init__(None, (), ())
        self._lines = before, after
        self._steps = min(_MOST_STEPS, _STEPS_PER_LINE * (len(before) + len(after)))

    def get_matching_blocks(self) -> list[Match]:
        """The equal runs of lines in their order; the last one is empty and stands at the end of both."""
        before, after = self._lines
        pairs = self._matches(0, len(before), 0, len(after), 0)
        blocks: list[Match] = []
        for at, new_at in pairs:
            if blocks and (blocks[-1].a + blocks[-1].size, blocks[-1].b + blocks[-1].size) == (at, new_at):
                blocks[-1] = blocks[-1]._replace(size=blocks[-1].size + 1)
            else:
                blocks.append(Match(at, new_at, 1))
        return [*blocks, Match(len(before), len(after), 0)]

    def _matches(self, begin: int, end: int, new_begin: int, new_end: int, depth: int) -> Iterator[tuple[int, int]]:
        """The pairs of equal lines of two ranges, in their order."""
        before, after = self._lines
        while begin < end and new_begin < new_end and before[begin] == after[new_begin]:
            yield begin, new_begin
            begin, new_begin = begin + 1, new_begin + 1
        tail = 0
        while begin < end - tail and new_begin < new_end - tail and before[end - tail - 1] == after[new_end - tail - 1]:
            tail += 1
        end, new_end = end - tail, new_end - tail
        anchors = _anchors(before[begin:end], after[new_begin:new_end]) if depth < _DEEPEST else []
        at, new_at = begin, new_begin
        for offset, new_offset in anchors:
            yield from self._matches(at, begin + offset, new_at, new_begin + new_offset, depth + 1)
            yield begin + offset, new_begin + new_offset
            at, new_at = begin + offset + 1, new_begin + new_offset + 1
        if anchors:
            yield from self._matches(at, end, new_at, new_end, depth + 1)
        else:
            yield from self._compared(begin, end, new_begin, new_end)
        yield from ((end + step, new_end + step) for step in range(tail))

    def _compared(self, begin: int, end: int, new_begin: int, new_end: int) -> Iterator[tuple[int, int]]:
        """What `difflib` finds, while there is time for it."""
        before, after = self._lines[0][begin:end], self._lines[1][new_begin:new_end]
        if set(before).isdisjoint(after):
            return
        steps = len(before) * len(after) * min(len(before), len(after))
        if steps > self._steps:
            return
        self._steps -= steps
        matcher = SequenceMatcher(None, before, after, autojunk=False)
        for block in matcher.get_matching_blocks():
            yield from ((begin + block.a + step, new_begin + block.b + step) for step in range(block.size))


def _anchors(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """The most lines that both have exactly once and in the same order: the longest increasing subsequence."""
    once, new_once = _unique(before), _unique(after)
    pairs = [(at, new_once[line]) for line, at in once.items() if line in new_once]
    ends: list[int] = []  # the smallest end of an increasing subsequence, by its length
    rows: list[int] = []  # and the pair that it belongs to
    previous: list[int] = []
    for row, (_, new_at) in enumerate(pairs):
        length = bisect_left(ends, new_at)
        previous.append(rows[length - 1] if length else -1)
        ends[length : length + 1], rows[length : length + 1] = [new_at], [row]
    chosen, row = [], rows[-1] if rows else -1
    while row >= 0:
        chosen.append(pairs[row])
        row = previous[row]
    return chosen[::-1]


def _unique(lines: Sequence[str]) -> dict[str, int]:
    """Where the lines stand that occur once."""
    counts = Counter(lines)
    return {line: at for at, line in enumerate(lines) if counts[line] == 1}


__all__ = ["unified"]
