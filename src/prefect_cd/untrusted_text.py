r"""Text that others wrote: commit subjects, names of objects and tests, messages of pods and servers. Pure.

Control characters steer terminals (ESC), begin lines that look like ours, or show text in another order than it is
read (U+202E, see https://trojansource.codes). They are made visible, as Python writes them: `\x1b`, `\u202e`.
"""

import re

_CONTROLS = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\xad\u034f\u061c\u180e\u200b\u200e\u200f\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible; with the bidi marks
    "\u2028-\u202e"  # ends of lines and paragraphs; embeddings and overrides
    "\ud800-\udfff"  # halves of a pair, which no encoding can write
    "\U000e0000-\U000e007f"  # tags: a hidden text
    "]"
)
_LONGEST = 500


def visible(text: object, keep: str = "") -> str:
    r"""The text with its control characters made visible.

    Args:
        text: the text.
        keep: control characters that stay, such as the newlines of a text with several lines.
    """
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], str(text))


def one_line(text: object, longest: int = _LONGEST) -> str:
    """The text for a place with one line: spaces for its tabs and newlines, controls visible, cut where it is long."""
    joined = visible(" ".join(str(text).split()))
    return joined if len(joined) <= longest else f"{joined[:longest]}… ({len(joined) - longest} characters more)"


def has_controls(text: str) -> bool:
    """Whether a text has control characters."""
    return bool(_CONTROLS.search(text))


__all__ = ["has_controls", "one_line", "visible"]
