"""How Secrets hold a record (format 2), and whether what they hold is what prefect-cd wrote. Pure.

The annotation `prefect-cd.dev/head` is the one source of truth about the state: its metadata, so that a list request
returns it, with a checksum of itself and the digest of the content. The content, in `data.record`, is the record as
compressed JSON. Labels select records, and show people what the head says.

A record that is larger than a Secret has its objects in further Secrets, which are immutable, exist before the head
does, and are named by their digest. So a record with a head is complete.

Format 1 had neither head nor digest: its labels are what a list says about a record, and its content confirms them.

Checksum and digests recognise damage, and no forgery: everybody can compute them. Where the operator provides a key,
the annotation `prefect-cd.dev/signature` proves that the head, and so everything else, was written by somebody who has
it (`record_key`). Whatever a Secret contains, reading it raises nothing, so that no Secret hides the records beside it.
"""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from prefect_cd.environment.journal import Damage, Entry
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import BASELINE, Record, State
from prefect_cd.environment.record_key import RecordKey
from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object, dig, dig_mapping
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.labels import EPOCH, PREFIX, RECORD
from prefect_cd.release.model import Result, digest_of

FORMAT = 2
HEAD = PREFIX + "head"
SIGNATURE = PREFIX + "signature"
RECORD_SELECTOR = f"{RECORD} in (release,baseline,part)"
_TYPE = f"{PREFIX}record.v"
_PART_TYPE = f"{PREFIX}record-part.v{FORMAT}"
_STATE, _RELEASE, _NUMBER, _RESTORES = (PREFIX + key for key in ("state", "release-id", "number", "restores"))
_LIMIT = 950_000  # bytes of content; a Secret holds 1 MiB (MaxSecretSize in k8s.io/api/core/v1)
_MAX_PARTS = 16
_LARGE = ("objects", "known", "replaced", "pruned")  # the fields that are moved into parts
_MAX_DIGITS = 9  # of a record's number
_MAX_EPOCH = 10**9  # of the 2^31 that a Lease can count
_MAX_DECOMPRESSED = 200_000_000  # bytes; a manipulated Secret must not exhaust our memory


class Head(Result):
    """What the head of a record says, all of it covered by its checksum.

    Attributes:
        content: digest of `data.record`.
        parts: how many further Secrets there are.
        large: digest of the bytes of all parts together; empty without parts.
    """

    format: int
    application: str
    environment: str
    number: int
    epoch: int = Field(ge=0, le=_MAX_EPOCH)
    state: State
    release_id: str
    restores: int | None
    settled_at: datetime | None
    content: str
    parts: int = Field(ge=0, le=_MAX_PARTS)
    large: str

    def part_names(self, name: str) -> list[str]:
        """The names of the further Secrets of the record whose head is called `name`."""
        return [f"{name}.{self.large[:8]}.{index}" for index in range(1, self.parts + 1)]


# --- writing ---------------------------------------------------------------------------------------------------------


def record_ref(ownership: Ownership, number: int) -> Ref:
    """The Secret of a record."""
    return Ref("v1", "Secret", ownership.namespace, f"prefect-cd.{ownership.application}.{number}")


def encode(
    ownership: Ownership, record: Record, epoch: int, live: Object | None = None, key: RecordKey | None = None
) -> tuple[Object, tuple[Object, ...]]:
    """The Secret of a record, and the further ones of a large record, which have to exist before it.

    Args:
        ownership: the environment.
        record: what to write.
        epoch: of the lock under which it is written.
        live: the Secret as it is: its parts and its type stay. A Secret's type cannot be changed.
        key: signs the record; then parts stay only where the live Secret is signed, too.

    Raises:
        InvalidManifest: the record is too large.
    """
    ref = record_ref(ownership, record.number)
    known = read_head(live) if live and (key is None or _is_signed(live, key)) else None
    document = record.model_dump(mode="json")
    parts: tuple[Object, ...] = ()
    if isinstance(known, Head) and known.parts:
        content, large, count = _compressed(_small(document)), known.large, known.parts
    else:
        content, parts, large = _split(ownership, ref, record.number, document)
        count = len(parts)
    head = Head(
        format=FORMAT,
        application=record.application,
        environment=record.environment,
        number=record.number,
        epoch=epoch,
        state=record.state,
        release_id=record.release_id,
        restores=record.restores,
        settled_at=record.settled_at,
        content=_digest(content),
        parts=count,
        large=large,
    )
    labels = {RECORD: "baseline" if record.number == BASELINE else "release", **_shown(head)}
    item = _secret(ownership, ref, str((live or {}).get("type") or f"{_TYPE}{FORMAT}"), "record", content, labels)
    text = sealed(head)
    signature = {SIGNATURE: key.sign(ref, text)} if key else {}
    item["metadata"]["annotations"] = {HEAD: text, EPOCH: str(epoch), **signature}
    return item, parts


def sealed(head: Head) -> str:
    """The head as the text of the annotation: canonical JSON with its checksum."""
    fields = head.model_dump(mode="json")
    return json.dumps({**fields, "checksum": digest_of(fields)}, sort_keys=True, separators=(",", ":"))


def _split(
    ownership: Ownership, ref: Ref, number: int, document: dict[str, Any]
) -> tuple[bytes, tuple[Object, ...], str]:
    """The content of a record's Secret, its further Secrets, and the digest of these; none where one is enough."""
    content = _compressed(document)
    if len(content) <= _LIMIT:
        return content, (), ""
    large = _compressed({key: document[key] for key in _LARGE})
    slices = [large[start : start + _LIMIT] for start in range(0, len(large), _LIMIT)]
    content, digest = _compressed(_small(document)), _digest(large)
    if len(slices) > _MAX_PARTS or len(content) > _LIMIT:
        raise InvalidManifest(
            f"the record of this release takes {len(large) + len(content):,} bytes compressed; "
            f"the limit is {_LIMIT * _MAX_PARTS:,}",
            where=str(ref),
            hint="move large data out of ConfigMaps, or split the application in two",
        )
    labels = {RECORD: "part", _NUMBER: str(number)}
    parts = tuple(
        _secret(
            ownership,
            Ref("v1", "Secret", ref.namespace, f"{ref.name}.{digest[:8]}.{index}"),
            _PART_TYPE,
            "part",
            part,
            labels,
        )
        | {"immutable": True}
        for index, part in enumerate(slices, 1)
    )
    return content, parts, digest


def _small(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, **{key: [] for key in _LARGE}}


def _compressed(document: dict[str, Any]) -> bytes:
    # mtime=0: equal records have equal bytes
    return gzip.compress(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _secret(ownership: Ownership, ref: Ref, kind: str, key: str, content: bytes, labels: Mapping[str, str]) -> Object:
    item = ownership.label(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "data": {key: base64.b64encode(content).decode()},
        }
    )
    item["metadata"]["labels"] |= labels
    return item


def _is_signed(secret: Object, key: RecordKey) -> bool:
    """Whether the head of a Secret was signed for the place where the Secret is."""
    annotations = dig_mapping(secret, "metadata", "annotations")
    return key.verifies(Ref.of(secret), str(annotations.get(HEAD, "")), str(annotations.get(SIGNATURE, "")))


def _shown(said: Head | Record | Entry) -> dict[str, str]:
    """What the labels of a record show."""
    restores = {} if said.restores is None else {_RESTORES: str(said.restores)}
    return {_STATE: said.state.value, _RELEASE: said.release_id, _NUMBER: str(said.number), **restores}


# --- reading metadata ------------------------------------------------------------------------------------------------


def is_part(secret: Object) -> bool:
    """Whether a Secret is a part of a record."""
    return bool(dig(secret, "metadata", "labels", RECORD) == "part")


def is_named_as_ours(ownership: Ownership, secret: Object) -> bool:
    """Whether a Secret has the name of a record, or of a part of one, so that it may be deleted as one."""
    number = number_of(secret)
    if number is None:
        return False
    name, prefix = str(secret["metadata"]["name"]), record_ref(ownership, number).name
    return name.rsplit(".", 2)[0] == prefix if is_part(secret) else name == prefix


def number_of(secret: Object) -> int | None:
    """The number of the record that a Secret holds or is a part of, by its name."""
    name = str(secret["metadata"]["name"])
    return _trailing_number(name.rsplit(".", 2)[0] if is_part(secret) else name)


def state_of(secret: Object) -> State | None:
    """The state of the record in a Secret; None where it cannot be read."""
    try:
        head = _head(secret)
        return head.state if head else _entry_of_format_1(secret, number_of(secret) or BASELINE).state
    except _DamagedError:
        return None


def epoch_of(secret: Object) -> int:
    """The epoch in which a record was written, also where it cannot be read; 0 when it is unknown."""
    head = read_head(secret)
    epoch = str(dig_mapping(secret, "metadata", "annotations").get(EPOCH, ""))
    fenced = int(epoch) if epoch.isdecimal() and len(epoch) <= len(str(_MAX_EPOCH)) else 0
    return max(head.epoch if isinstance(head, Head) else 0, fenced if fenced <= _MAX_EPOCH else 0)


def read_entry(
    ownership: Ownership, secret: Object, parts: Collection[str], key: RecordKey | None = None
) -> tuple[Entry | None, Damage | None]:
    """What the metadata of a record's Secret says, and what is wrong with it; one of the two may be None.

    Args:
        ownership: the environment.
        secret: its metadata is enough.
        parts: the names of the parts that exist in the environment.
        key: with which it has to be signed; None where records are not signed.
    """
    try:
        entry, head = _entry(ownership, secret, parts, key)
    except _DamagedError as error:
        return None, error.damage
    shown, labels = _shown(entry), dig_mapping(secret, "metadata", "labels")
    if head and any(labels.get(key) != value for key, value in shown.items()):
        return entry, _edited(secret, entry).model_copy(update={"hides": False})  # it misleads only people
    return entry, None


def read_head(secret: Object) -> Head | Damage | None:
    """The head of a record; None for one of format 1, which has none."""
    try:
        return _head(secret)
    except _DamagedError as error:
        return error.damage


def _entry(
    ownership: Ownership, secret: Object, parts: Collection[str], key: RecordKey | None
) -> tuple[Entry, Head | None]:
    name = str(secret["metadata"]["name"])
    number = _trailing_number(name)
    if number is None or record_ref(ownership, number).name != name:
        raise _DamagedError(_copied(secret))
    head = _head(secret)
    if key and not _is_signed(secret, key):
        raise _DamagedError(_unsigned(secret, head))
    if head is None:
        return _entry_of_format_1(secret, number), None
    if (head.application, head.environment, head.number) != (ownership.application, ownership.environment, number):
        place = f"record {head.number} of {head.application} in {head.environment}"
        raise _damaged(secret, f"it is a copy: its head is that of {place}")
    if missing := [part for part in head.part_names(name) if part not in parts]:
        raise _damaged(secret, f"{len(missing)} of its {head.parts} parts are missing: {', '.join(missing)}")
    return Entry(number=number, state=head.state, release_id=head.release_id, restores=head.restores), head


def _head(secret: Object) -> Head | None:
    text = dig_mapping(secret, "metadata", "annotations").get(HEAD)
    kind = str(secret.get("type", f"{_TYPE}1"))  # the metadata of a list is without type
    if not kind.startswith(_TYPE):
        raise _DamagedError(_foreign(secret))
    if text is None and kind == f"{_TYPE}1":
        return None
    if kind not in {f"{_TYPE}1", f"{_TYPE}{FORMAT}"}:
        raise _DamagedError(_newer(secret, kind.rpartition(".v")[2]))
    try:
        fields = json.loads(text or "")
        checksum, version = fields.pop("checksum", ""), fields["format"]
        if isinstance(version, int) and version > FORMAT:
            raise _DamagedError(_newer(secret, version))
        head = Head.model_validate(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(secret, f"its annotation {HEAD} was removed, or is not what prefect-cd wrote") from None
    if checksum != digest_of(fields):
        raise _damaged(secret, f"its annotation {HEAD} was edited: the checksum is that of another text")
    return head


def _entry_of_format_1(secret: Object, number: int) -> Entry:
    labels = dig_mapping(secret, "metadata", "labels")
    try:
        if int(labels[_NUMBER]) != number:
            raise ValueError(f"{_NUMBER} is {labels[_NUMBER]}")
        return Entry(
            number=number,
            state=_state_of_format_1(labels[_STATE]),
            release_id=labels[_RELEASE],
            restores=int(labels[_RESTORES]) if _RESTORES in labels else None,
        )
    except (KeyError, ValueError) as error:
        raise _damaged(secret, f"its labels were edited: {error}") from error


def _state_of_format_1(value: object) -> State:
    return State.APPLYING if value == "started" else State(str(value))


# --- reading content -------------------------------------------------------------------------------------------------


def part_names(secret: Object) -> list[str]:
    """The names of the further Secrets that a record needs; empty where its head cannot be read."""
    head = read_head(secret)
    return head.part_names(secret["metadata"]["name"]) if isinstance(head, Head) else []


def decode(
    ownership: Ownership, secret: Object, parts: Sequence[Object | None] = (), key: RecordKey | None = None
) -> Record | Damage:
    """The record in a Secret, or what is wrong with it.

    Neither quotes the content: it contains the objects, and so their Secrets.

    Args:
        ownership: the environment.
        secret: the record's own Secret.
        parts: the Secrets that `part_names` names, in this order; None for one that does not exist.
        key: with which it has to be signed; None where records are not signed.
    """
    try:
        entry, head = _entry(ownership, secret, {part["metadata"]["name"] for part in parts if part}, key)
        record = Record.model_validate(_document(secret, head, parts))
        _confirm(ownership, secret, record, entry, head)
    except _DamagedError as error:
        return error.damage
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)})
        return _damaged(secret, f"it cannot be read: unexpected {', '.join(fields)}").damage
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        return _damaged(secret, f"it cannot be read: {type(error).__name__}").damage
    return record


def _document(secret: Object, head: Head | None, parts: Sequence[Object | None]) -> dict[str, Any]:
    """The content of a record, after its digests were compared."""
    content = base64.b64decode(secret["data"]["record"], validate=True)
    if head is None:
        document = _unpacked(secret, content)
        return {**document, "state": _state_of_format_1(document["state"])}
    if _digest(content) != head.content:
        raise _damaged(secret, "its content was changed: the digest is that of another content")
    document = _unpacked(secret, content)
    if head.parts:
        large = b"".join(base64.b64decode(part["data"]["part"], validate=True) for part in parts if part)
        if _digest(large) != head.large:
            raise _damaged(secret, "its parts were changed: the digest is that of another content")
        document |= _unpacked(secret, large)
    return document


def _confirm(ownership: Ownership, secret: Object, record: Record, entry: Entry, head: Head | None) -> None:
    """Raise where the content does not say the same as the head, or as the labels of format 1."""
    if (record.application, record.environment) != (ownership.application, ownership.environment):
        raise _damaged(secret, f"its content is that of {record.application} in {record.environment}")
    if head is None and entry.restores is None:  # the oldest records have no label for it
        entry = entry.model_copy(update={"restores": record.restores})
    if _shown(record) != _shown(entry):
        raise (
            _damaged(secret, "its content is that of another head") if head else _DamagedError(_edited(secret, record))
        )


def _unpacked(secret: Object, content: bytes) -> dict[str, Any]:
    """The JSON object in compressed content."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = unpacker.decompress(content, _MAX_DECOMPRESSED)
    if not unpacker.eof:
        raise _damaged(secret, "it cannot be read: it is truncated, or too large")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise TypeError
    return document


# --- damage ----------------------------------------------------------------------------------------------------------


class _DamagedError(Exception):
    def __init__(self, damage: Damage) -> None:
        super().__init__(damage.problem)
        self.damage = damage


def _trailing_number(name: str) -> int | None:
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS else None


def _damaged(secret: Object, problem: str) -> _DamagedError:
    ref = Ref.of(secret)
    damage = Damage(
        number=_trailing_number(ref.name),
        where=str(ref),
        problem=f"the record is damaged: {problem}",
        hint=f"restore the Secret from a backup, or drop the record: "
        f"`kubectl -n {ref.namespace} delete secret {ref.name}`; a rollout without an outcome is then taken back",
    )
    return _DamagedError(damage)


def out_of_scope(secret: Object, problem: str) -> Damage:
    """The damage of a record with something in it that may not be written to its environment.

    Args:
        secret: it holds the record.
        problem: what, and why not.
    """
    damage = _damaged(secret, f"it is not one of this environment: {problem}").damage
    hint = "if it is genuine, allow this in the pipeline file until a release without it is known-good"
    return damage.model_copy(update={"hint": f"{hint}; else {damage.hint}"})


def _foreign(secret: Object) -> Damage:
    ref = Ref.of(secret)
    return Damage(
        number=_trailing_number(ref.name),
        where=str(ref),
        problem=f"it has the labels and the name of a record, and the type {secret['type']}: prefect-cd did not write "
        "it, and ignores it",
        hint=f"`kubectl -n {ref.namespace} delete secret {ref.name}`, if nobody needs it; who made it?",
        hides=False,
        foreign=True,
    )


def _unsigned(secret: Object, head: Head | None) -> Damage:
    ref = Ref.of(secret)
    signed = SIGNATURE in dig_mapping(secret, "metadata", "annotations")
    problem = "it is signed with another key, or was changed after it was signed" if signed else "it is not signed"
    damage = _damaged(secret, problem).damage
    what = f"release {head.release_id}, {head.state.value}, as it says" if head else "of format 1"
    adopt = (
        f"if you know that it is genuine ({what}), `prefect-cd recover --sign-records FILE ENVIRONMENT` signs it"
        if not signed
        else "use the key with which it was signed, as another line of the key file"
    )
    return damage.model_copy(
        update={
            "hint": f"{adopt}; else drop it: `kubectl -n {ref.namespace} delete secret {ref.name}`",
            "unsigned": not signed,
        }
    )


def _edited(secret: Object, said: Record | Entry) -> Damage:
    """The damage of a record whose labels do not show what it says."""
    ref = Ref.of(secret)
    correct = " ".join(f"{key}={value}" for key, value in sorted(_shown(said).items()))
    return Damage(
        number=said.number,
        where=str(ref),
        problem=f"a label of record {said.number} was edited: right is {correct}",
        hint=f"`kubectl -n {ref.namespace} label secret {ref.name} {correct} --overwrite`",
    )


def _newer(secret: Object, version: object) -> Damage:
    ref = Ref.of(secret)
    return Damage(
        number=_trailing_number(ref.name),
        where=str(ref),
        problem=f"the record has format {version}, and this version of prefect-cd knows formats up to {FORMAT}",
        hint="use the version of prefect-cd that wrote it, or a newer one; nothing was changed",
        newer=True,
    )


def _copied(secret: Object) -> Damage:
    ref = Ref.of(secret)
    return Damage(
        number=None,
        where=str(ref),
        problem="it has the labels of a record, and its name is not that of one: it is a copy",
        hint=f"`kubectl -n {ref.namespace} label secret {ref.name} {RECORD}-`",
        hides=False,
    )
