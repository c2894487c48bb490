"""Files of a commit: read only inside of its checkout, and named in messages so that every terminal can print it."""

from pathlib import Path

from prefect_cd.errors import InvalidManifest

LARGEST = 10_000_000  # bytes; reading as much YAML takes some seconds


def shown(path: Path, top: Path) -> str:
    r"""A path relative to the checkout, for messages: `a\xff.yaml` where its name is not UTF-8.

    Args:
        path: the file or folder.
        top: the checkout.
    """
    return printable(str(path.relative_to(top)))


def printable(text: str) -> str:
    """The text with escapes for bytes that are not UTF-8, and for line ends and other control characters."""
    decoded = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def is_inside(path: Path, top: Path) -> bool:
    """Whether a path lies in the checkout once its links are followed; it need not exist."""
    try:
        return path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name that no file can have
        return False


def refuse_too_large(size: int, location: str) -> None:
    """Refuse a text of more bytes than all manifests of an environment together may have.

    Raises:
        InvalidManifest: it is too large.
    """
    if size > LARGEST:
        raise InvalidManifest(
            f"larger than {LARGEST // 1_000_000} MB", where=location, hint="split it over several applications"
        )


def read_text(path: Path, top: Path) -> str:
    """The text of a file.

    Raises:
        InvalidManifest: it is a link out of the commit, or cannot be read, or is too large, or is not UTF-8.
    """
    location = shown(path, top)
    if not is_inside(path, top):
        raise InvalidManifest("a link that leads out of the commit", where=location)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        refuse_too_large(len(content), location)
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"not UTF-8: {error.reason} at byte {error.start}", where=location) from None
    except OSError as error:
        raise InvalidManifest(f"cannot be read: {error.strerror}", where=location) from error
