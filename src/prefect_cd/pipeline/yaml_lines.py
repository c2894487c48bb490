"""YAML in which every mistake has a line: what the pipeline file and manifests read alike.

How they differ is written down where each of them derives its loader: which keys and values are refused, and whether
an alias has a line of its own.
"""

from typing import Any

import yaml

TEXT_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class Unreadable(yaml.MarkedYAMLError):
    """A value that does not have the type that YAML takes it for: a date in month 13, `!!int x`."""


class PositionedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, where a value that cannot be read has a line, too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """The value of a node.

        Raises:
            Unreadable: PyYAML's constructors raise these errors without a position.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError) as error:
            raise Unreadable(None, None, f"cannot read this value: {error}", node.start_mark) from error


def line_of(error: yaml.YAMLError, text: str) -> int:
    """The line of a mistake in `text`, from 1."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return mark.line + 1 if mark else 1
    # Only the reader raises without a mark: a character that YAML does not allow.
    return text.count("\n", 0, getattr(error, "position", 0)) + 1
