"""Formats of names, labels and keys, with the messages of the real server, which clients show to users.

Source: "Object Names and IDs" and "Labels and Selectors" in the Kubernetes documentation.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from prefect_cd_local.apiserver.errors import Cause, bad_value
from prefect_cd_local.apiserver.schema import canonical

Causes = Iterator[Cause]


class Form(NamedTuple):
    """A regular expression, the server's description of it, and the greatest length."""

    pattern: str
    description: str
    most: int

    def check(self, field: str, value: str, shown: str = "", part: str = "") -> Causes:
        """Check a value; `shown` is the larger value that contains it, for the message."""
        quoted = canonical(shown or value)
        if len(value) > self.most:
            yield bad_value(field, quoted, f"{part}must be no more than {self.most} bytes")
        if not re.fullmatch(self.pattern, value):
            yield bad_value(field, quoted, f"{part}{self.description}, regex used for validation is '{self.pattern}')")


_ALNUM_DASH = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL = Form(
    _ALNUM_DASH,
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc'",
    63,
)
SUBDOMAIN = Form(
    rf"{_ALNUM_DASH}(\.{_ALNUM_DASH})*",
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com'",
    253,
)
LABEL_VALUE = Form(
    "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345'",
    63,
)
_NAME_PART = Form(
    "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    "(e.g. 'MyName',  or 'my.name',  or '123-abc'",
    63,
)
CONFIG_KEY = Form(
    "[-._a-zA-Z0-9]+",
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name'",
    253,
)
PERCENT = Form(
    "[0-9]+%",
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%'",
    253,
)


def qualified(field: str, key: str) -> Causes:
    """Check a key that may have a DNS name before a slash."""
    prefix, slash, name = key.rpartition("/")
    if slash:
        yield from SUBDOMAIN.check(field, prefix, key, "prefix part ")
    yield from _NAME_PART.check(field, name, key, "name part ")
