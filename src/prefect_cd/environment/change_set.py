"""What happens to the objects of an environment, as a plan shows it and as it is written. Pure."""

from dataclasses import astuple
from enum import Enum
from typing import Any

from prefect_cd.kube.client import ABSENT
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.diff import changed_lines, diff
from prefect_cd.manifests.hand_edits import HandEdit
from prefect_cd.manifests.irreversible import Kept
from prefect_cd.manifests.risks import Risk, risks
from prefect_cd.release.model import Result, digest_of


class Action(str, Enum):
    """What happens to one object."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    RECREATED = "recreated"
    """It is being deleted: created again when it is gone."""
    REPLACED = "replaced"
    """It cannot be changed in place: deleted, and created again."""
    PRUNED = "pruned"
    KEPT = "kept"
    """It cannot go back to what it was: it stays as it is."""


class Change(Result):
    """One object, what happens to it, and the live object for which that was found out.

    `uid` and `version` are no part of what people see or approve: a controller may change the version at any time.

    Args:
        risks: what in it may give more rights than an application needs.
        kept: fields that keep their live value, and why.
        takes_fields: whether we become the manager of fields first, so that the apply removes them.
        force: whether fields of other managers are taken over.
        checked: whether the server has dry-run it; not where its definition comes with the same set.
        hand_edits: what somebody changed by hand in an object of ours.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    action: Action
    diff: str = ""
    risks: tuple[Risk, ...] = ()
    uid: str = ""
    version: str = ""
    kept: tuple[Kept, ...] = ()
    takes_fields: bool = False
    force: bool = False
    checked: bool = True
    hand_edits: tuple[HandEdit, ...] = ()

    @property
    def ref(self) -> Ref:
        """Which object."""
        return Ref(self.api_version, self.kind, self.namespace, self.name)


class ChangeSet(Result):
    """What changes in an environment, object by object."""

    changes: tuple[Change, ...]

    def count(self, action: Action) -> int:
        """How many objects have this action."""
        return sum(change.action == action for change in self.changes)

    @property
    def kept(self) -> tuple[str, ...]:
        """What stays as it is, though the set has it otherwise, with the reason: one text a field."""
        return tuple(f"{change.ref}: {field}" for change in self.changes for field in change.kept)

    @property
    def changes_something(self) -> bool:
        """Whether anything would be written."""
        return self.count(Action.UNCHANGED) < len(self.changes)

    def __str__(self) -> str:
        counts = {action: self.count(action) for action in Action}
        return ", ".join(f"{count} {action.value}" for action, count in counts.items() if count) or "nothing"

    @property
    def digest(self) -> str:
        """Identity of the changes: which lines of which objects are removed and added. 64 hex digits.

        The context of a diff is left out, so that a field that another manager writes nearby does not change it. So is
        whether an object to create is still being deleted, which ends at any time.
        """
        return digest_of(
            [
                [*astuple(change.ref), _DIGESTED.get(change.action, change.action).value, changed_lines(change.diff)]
                for change in sorted(self.changes, key=lambda change: change.ref)
                if change.action != Action.UNCHANGED
            ]
        )


_DIGESTED = {Action.RECREATED: Action.CREATED}


def version_of(live: Object) -> str:
    """The resourceVersion; empty for a dry run of an object that does not exist."""
    return str(live["metadata"].get("resourceVersion", ""))


def is_being_deleted(live: Object) -> bool:
    """Whether an object was deleted, and waits for its finalizers."""
    return "deletionTimestamp" in live["metadata"]


def created(item: Object, *, checked: bool = True) -> Change:
    """The change of an object that does not exist."""
    return change_to(item, Action.CREATED, states=(None, item), checked=checked)


def change_to(
    item: Object,
    action: Action,
    live: Object | None = None,
    *,
    states: tuple[Object | None, Object | None] = (None, None),
    **more: Any,  # noqa: ANN401  further fields of Change
) -> Change:
    """A change.

    Args:
        item: the object.
        action: what happens to it.
        live: the live object for which that was found out; None where there is none.
        states: before and after, without what no manifest has; both None where they are the same.
        more: further fields.
    """
    ref = Ref.of(item)
    return Change(
        api_version=ref.api_version,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        action=action,
        diff=diff(*states),
        risks=() if states == (None, None) else risks(*states),
        uid=live["metadata"]["uid"] if live else "",
        version=version_of(live) if live else ABSENT,
        **more,
    )
