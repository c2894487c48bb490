"""Where manifests name an image: field paths, and references inside texts. Pure.

A field path names fields of an object: `spec.image`, `spec.template.spec.containers[].env[].value`,
`metadata.annotations["example.org/image"]`. `[]` stands for every item of a list or map.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from prefect_cd.kube.objects import Object
from prefect_cd.release.model import ImageReference

_SEGMENT = re.compile(r'\.?([\w-]+)|(\[\])|\["([^"\]]+)"\]')
_PLAIN_KEY = re.compile(r"[\w-]+")
_HUBS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TAG, _DIGEST = r":\w(?:[\w.-]{0,126}\w)?", r"@\w[\w+.-]*:[0-9a-fA-F]{32,}"  # distribution/reference, `reference.go`


class Reference(NamedTuple):
    """A reference to an image that stands somewhere in an object."""

    path: str
    text: str


@dataclass(frozen=True)
class ImagePattern:
    """Recognises references to one image, under any tag or digest, and in any spelling of its name.

    Attributes:
        name: the image's repository, without a tag.
    """

    name: str

    def is_reference(self, text: str) -> bool:
        """Whether the whole text is a reference."""
        host, below, path = ImageReference.of(text).repository.partition("/")
        return (host.lower() + below + path if below else host) in self.spellings

    def is_name(self, text: str) -> bool:
        """Whether the whole text is the image's name, without a tag or digest."""
        return text in self.spellings

    def replace(self, text: str, reference: str) -> str:
        """The text with `reference` in place of every reference to the image in it."""
        return self._inside.sub(lambda _: reference, text) if self._may_have_one(text) else text

    def moving(self, text: str) -> list[str]:
        """The references in a text that have a tag and no digest, so that what they mean may change."""
        matches = self._inside.finditer(text) if self._may_have_one(text) else ()
        return [match[0] for match in matches if match["tag"] and not match["digest"]]

    @property
    def _inside(self) -> re.Pattern[str]:
        """The image's name with its tag and digest; not a part of a longer name, but after `oci://`, too."""
        before, after = r"(?<![\w.@-])(?<![^/]/)", r"(?![\w/:@-]|\.\w)"
        names = "|".join(map(re.escape, self._spellings_in_texts))
        return re.compile(f"{before}(?:{names})(?P<tag>{_TAG})?(?P<digest>{_DIGEST})?{after}")

    @cached_property
    def spellings(self) -> frozenset[str]:
        """All names of the repository, as docker and containers read names (distribution/reference, `normalize.go`).

        A name without a host is one of Docker Hub, and one without a slash one of its `library`; 443 is the usual port.
        """
        host, slash, path = self.name.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            host, path = _HUBS[0], self.name
        if host not in _HUBS:
            plain = host.removesuffix(":443")
            return frozenset({self.name, f"{plain}/{path}", *([] if ":" in plain else [f"{plain}:443/{path}"])})
        short = path.removeprefix("library/")
        paths = {short, f"library/{short}"} if "/" not in short else {path}
        return frozenset({*paths, *(f"{hub}/{path}" for hub in _HUBS for path in paths)})

    @property
    def _spellings_in_texts(self) -> list[str]:
        """The names that are recognised inside of texts, longest first: a single word may mean anything there."""
        return sorted((name for name in self.spellings if "/" in name), key=lambda name: (-len(name), name))

    def _may_have_one(self, text: str) -> bool:
        """A quick check before the slow one: every spelling ends with the same words."""
        return self.name.rpartition("/")[2] in text


@dataclass(frozen=True)
class Place:
    """A text in an object, which can be replaced there."""

    holder: Any
    key: Any

    @property
    def value(self) -> str:
        """The text."""
        return str(self.holder[self.key])

    def write(self, text: str) -> None:
        """Replace the text."""
        self.holder[self.key] = text


def places(item: Object, fields: Sequence[str]) -> Iterator[Place]:
    """The texts of an object that field paths name; a path that the object does not have names none."""
    for field in fields:
        keys = [match[1] or match[3] for match in _SEGMENT.finditer(field)]  # None for []
        holders: list[Any] = [item]
        for key in keys[:-1]:
            holders = [holder[step] for holder in holders for step in _steps(holder, key)]
        for holder in holders:
            yield from (Place(holder, step) for step in _steps(holder, keys[-1]) if isinstance(holder[step], str))


def _steps(value: object, key: str | None) -> list[Any]:
    """The keys or indexes below a value that one segment of a path stands for."""
    if isinstance(value, dict):
        return list(value) if key is None else [key] * (key in value)
    return list(range(len(value))) if isinstance(value, list) and key is None else []


def moving_references(item: Object, image: str) -> Iterator[Reference]:
    """References to an image without a digest in any field of an object; each place and reference once.

    A name without a tag counts where the field is called an image: it means the tag `latest`. Secrets are not read.
    """
    if item.get("kind") != "Secret":
        pattern = ImagePattern(image)
        found = dict.fromkeys(
            Reference(path, reference)
            for path, text in _texts(item, "")
            for reference in (
                [text] if pattern.is_name(text) and path.lower().endswith("image") else pattern.moving(text)
            )
        )
        yield from found


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    """All texts below a value with their field paths."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child, f"{path}[]")
    elif isinstance(value, dict):
        for key, child in value.items():
            step = f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{json.dumps(key)}]"
            yield from _texts(child, f"{path}{step}".removeprefix("."))


__all__ = ["ImagePattern", "Place", "Reference", "moving_references", "places"]
