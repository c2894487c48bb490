"""What the query of a write says: who writes, whether it counts, how strictly the body is read.

Source: the API reference ("Common Parameters") and "API concepts" (field validation, dry run) of the documentation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from prefect_cd.local.apiserver.errors import Cause, Refusal, forbidden_field, invalid, required, unsupported
from prefect_cd.local.apiserver.schema import canonical

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
JSON, APPLY = "application/json-patch+json", "application/apply-patch+yaml"
PATCHES = (JSON, MERGE, STRATEGIC, APPLY)
_VALIDATIONS = ("Ignore", "Strict", "Warn")
_LONGEST_NAME = 128


@dataclass
class Options:
    """The options of a write.

    Attributes:
        repeated: complaints about keys that a whole object's text has twice.
        warnings: collects what is to be said beside the answer.
    """

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    repeated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def complain(self, complaints: list[str], refusal: Callable[[str], Refusal]) -> None:
        """Warn of what is wrong with a body, or refuse it, or keep quiet, as the client asked.

        Raises:
            Refusal: the client is strict.
        """
        if complaints and self.validation == "Strict":
            raise refusal(", ".join(complaints))
        if self.validation == "Warn":
            lines = [line for each in complaints for line in each.split("\n  ")[1:] or [each]]  # less YAML's heading
            self.warnings += [each for each in lines if each not in self.warnings]


def options_of(query: dict[str, str], user_agent: str, operation: str, how: str = "") -> Options:
    """The options of a write; `how` is the media type of a patch.

    Raises:
        Refusal: 422, they do not fit the operation.
    """
    causes: list[Cause] = []
    dry_run, validation = query.get("dryRun") or "", query.get("fieldValidation") or "Warn"
    if dry_run not in {"", "All"}:
        said = f'Unsupported value: {canonical([dry_run])}: supported values: "All"'
        causes.append(Cause("FieldValueNotSupported", said, "dryRun"))
    if validation not in _VALIDATIONS:
        causes.append(unsupported("fieldValidation", validation, _VALIDATIONS))
    if how == APPLY and not query.get("fieldManager"):
        causes.append(required("fieldManager", "is required for apply patch"))
    if how not in {"", APPLY} and "force" in query:
        causes.append(forbidden_field("force", "may not be specified for non-apply patch"))
    if causes:
        raise invalid(f"{operation}Options", "meta.k8s.io", "", causes)
    manager = query.get("fieldManager") or user_agent.partition("/")[0][:_LONGEST_NAME] or "unknown"
    return Options(manager, bool(dry_run), validation, query.get("force") == "true")
