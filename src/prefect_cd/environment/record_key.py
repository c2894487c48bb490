"""The key that signs records, so that nobody who may only write to the cluster can forge one.

The key is on the disk of those who run prefect-cd, in a file that the pipeline file names: outside of what the identity
of a release, or a pod of the environment, can write. A place in the cluster that only prefect-cd may write would need
an identity, a namespace and rights of its own for each environment; the key needs a file. It is never put into a
process's environment, so that checks, builds and suites do not inherit it. They must not be able to read the file
either: see README on running them as another user.

The signature is the HMAC-SHA256 (RFC 2104) of the head of a record and of the place where it lies: namespace and name.
The head contains application, environment, number, state, and the digests of everything else, so that no signed part
can be put into another record, and no record into another environment. An older version of the same record can be put
back by whoever may write to the namespace: that leads to a release that was good there before, and to nothing else.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path

from prefect_cd.errors import Invalid
from prefect_cd.kube.resources import Ref

_MIN_LENGTH = 32  # characters: as many bytes of entropy at most, 16 if they are hex digits
_PURPOSE = "prefect-cd record"


@dataclass(frozen=True)
class RecordKey:
    """The keys of an environment's records: the first signs, and each verifies, so that a key can be replaced."""

    keys: tuple[bytes, ...] = field(repr=False)

    def sign(self, ref: Ref, head: str) -> str:
        """The signature of the head of a record that lies in this Secret, as text for an annotation."""
        return _signature(self.keys[0], ref, head)

    def verifies(self, ref: Ref, head: str, signature: str) -> bool:
        """Whether one of the keys has signed this head in this Secret."""
        given = signature.encode(errors="replace")
        return any(hmac.compare_digest(_signature(key, ref, head).encode(), given) for key in self.keys)


def _signature(key: bytes, ref: Ref, head: str) -> str:
    message = json.dumps([_PURPOSE, ref.namespace, ref.name, head]).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def load_record_key(path: str) -> RecordKey | None:
    """The key in a file; None where the pipeline file names none.

    Args:
        path: the file; empty for none.

    Raises:
        Invalid: it cannot be read, or has no key that is long enough. The content is not quoted.
    """
    if not path:
        return None
    try:
        lines = [line.strip() for line in Path(path).read_bytes().splitlines()]
    except OSError as error:
        raise Invalid(
            f"the key of the records cannot be read: {error.strerror}",
            where=path,
            hint="without it, nobody can tell which records are genuine: provide the file that record_key in the "
            "pipeline file names",
        ) from error
    keys = tuple(line for line in lines if line)
    if not keys or min(map(len, keys)) < _MIN_LENGTH:
        raise Invalid(
            f"a key of the records has fewer than {_MIN_LENGTH} characters" if keys else "it contains no key",
            where=path,
            hint="`openssl rand -hex 32` prints a key; write one into each line",
        )
    return RecordKey(keys)


__all__ = ["RecordKey", "load_record_key"]
