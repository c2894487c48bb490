"""What changes, as people read it: risks first, a table, and the diff of each object. Pure.

A form has room for a part of a long diff. What it leaves out, it says object by object, and an object with a long diff
takes no room of another one. The whole diff is in the pages of the plan.
"""

from collections.abc import Iterable, Iterator, Sequence

from prefect_cd.environment.change_set import Action, Change, ChangeSet
from prefect_cd.manifests.risks import Risk, RiskKind, worst_first
from prefect_cd.tasks.markdown_text import bold, bullets, fenced, inline, link, table

_ROOM = 60_000  # characters of diffs in a form, which stays readable and far below what the server accepts
_LEAST = 400
_LONGEST_LINE = 300
_MOST_ROWS = 1_000
_MOST_RISKS = 200
_PAGE = 400_000
LONGEST = 40 * _PAGE
"""Characters of diffs that the pages of a plan hold; nobody can read what is longer."""


def risks(change_set: ChangeSet) -> str:
    """What may give more rights than an application needs; empty where nothing does."""
    all_of_them = sorted(
        ((change, risk) for change in change_set.changes for risk in change.risks),
        key=lambda pair: worst_first(pair[1]),
    )
    if not all_of_them:
        return ""
    lines = [_risk(change, risk) for change, risk in all_of_them[:_MOST_RISKS]]
    rest = [risk.kind for _, risk in all_of_them[_MOST_RISKS:]]
    if rest:
        kinds = ", ".join(f"{rest.count(kind)} {kind.value}" for kind in RiskKind if kind in rest)
        lines.append(f"**and {len(rest)} more, which are not listed here:** {kinds}")
    number = f"{len(all_of_them)} risk{'s' if len(all_of_them) > 1 else ''}"
    return f"## Look at this first: {number} in what changes\n\n{bullets(*lines)}"


def _risk(change: Change, risk: Risk) -> str:
    return f"{bold(change.ref)}: {inline(risk.summary)}" + ("" if risk.new else " *(already now)*")


def hand_edits(change_set: ChangeSet) -> str:
    """What somebody changed by hand, and whether the release takes it back; empty where nobody did."""
    lines = [f"{bold(change.ref)}: {inline(edit)}" for change in change_set.changes for edit in change.hand_edits]
    if not lines:
        return ""
    rest = "What the manifests have, too, is set back by this release, as the diff shows; what they do not have stays."
    return f"## Changed by hand\n\n{bullets(*lines)}\n\n{rest}"


def _changed(change_set: ChangeSet) -> list[Change]:
    """What changes; objects with risks come first, so that no others take their room."""
    changed = [change for change in change_set.changes if change.action != Action.UNCHANGED]
    return sorted(changed, key=lambda change: min(map(worst_first, change.risks), default=(True, len(RiskKind))))


def _summary(change_set: ChangeSet) -> Iterator[str]:
    changed = _changed(change_set)
    if changed:
        yield table(["object", "action"], ([change.ref, change.action.value] for change in changed[:_MOST_ROWS]))
    if len(changed) > _MOST_ROWS:
        yield f"**{len(changed) - _MOST_ROWS} more objects that change are not listed here.**"
    if unchanged := len(change_set.changes) - len(changed):
        yield f"{unchanged} unchanged."


# --- in a form -------------------------------------------------------------------------------------------------------


def shortened(change_set: ChangeSet, whole: str) -> str:
    """The change set as a table, then the diff of each object, with what is left out said in words.

    Args:
        change_set: what changes.
        whole: where the whole diff is; empty where nobody stored it.
    """
    where = f"See {link('the whole diff', whole)}." if whole else "No page has the whole diff."
    changed = _changed(change_set)
    most = max(_LEAST, _fair_share([len(change.diff) for change in changed]))
    left, parts, skipped = _ROOM, list(_summary(change_set)), 0
    for change in changed:
        if left < min(most, len(change.diff)):
            skipped += 1
            continue
        left -= min(most, len(change.diff))
        parts += _shortened(change, most, where)
    if skipped:
        parts.append(f"**The diffs of {skipped} more objects are left out here.** {where}")
    return "\n\n".join(parts)


def _fair_share(lengths: Sequence[int]) -> int:
    """The most characters for one diff, so that all of them fit: what short ones leave, long ones share."""
    left = _ROOM
    for place, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - place)
        if length > share:
            return share
        left -= length
    return _ROOM


def _shortened(change: Change, most: int, where: str) -> Iterator[str]:
    yield _title(change)
    if len(change.diff) <= most:
        yield fenced(change.diff, "diff")
        return
    lines = change.diff.split("\n")
    head = _fitting(lines, most // 2)
    tail = _fitting(lines[: len(head) - 1 : -1], most // 2)[::-1]
    omitted, cut = len(lines) - len(head) - len(tail), sum(len(line) > _LONGEST_LINE for line in (*head, *tail))
    yield fenced("\n".join(map(_cut, head)), "diff")
    counts = [f"{omitted} of {len(lines)} lines"] * bool(omitted) + [f"the ends of {cut} long lines"] * bool(cut)
    yield f"**{' and '.join(counts)} of {inline(change.ref)} are left out here.** {where}"
    if tail:
        yield fenced("\n".join(map(_cut, tail)), "diff")


def _fitting(lines: Iterable[str], room: int) -> list[str]:
    """The first lines that fit, and one at least."""
    fitting: list[str] = []
    for line in lines:
        room -= min(len(line), _LONGEST_LINE) + 1
        if room < 0 and fitting:
            break
        fitting.append(line)
    return fitting


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({len(line) - _LONGEST_LINE} more)"


def _title(change: Change, part: str = "") -> str:
    return f"**{change.action.value} {inline(change.ref)}**{part}"


# --- in full ---------------------------------------------------------------------------------------------------------


def pages(change_set: ChangeSet) -> list[str]:
    """The change set as a table, then the whole diff of each object, on one page or more."""
    filled: list[list[str]] = [list(_summary(change_set))]
    left = _PAGE
    for change in _changed(change_set):
        for number, part in enumerate(_parts(change.diff)):
            if left < len(part) and left < _PAGE:
                filled.append([])
                left = _PAGE
            left -= len(part)
            filled[-1] += [_title(change, ", continued" if number else ""), fenced(part, "diff")]
    return ["\n\n".join(parts) for parts in filled]


def _parts(diff: str) -> Iterator[str]:
    """A diff in parts of whole lines that fit on a page; a longer line is a part of its own."""
    part: list[str] = []
    left = _PAGE
    for line in diff.split("\n"):
        if left < len(line) and part:
            yield "\n".join(part)
            part, left = [], _PAGE
        part.append(line)
        left -= len(line) + 1
    yield "\n".join(part)


def length(change_set: ChangeSet) -> int:
    """How many characters the whole diff has."""
    return sum(len(change.diff) for change in change_set.changes)


__all__ = ["LONGEST", "hand_edits", "length", "pages", "risks", "shortened"]
