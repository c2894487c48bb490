"""Query parameters of a write: field manager, dry run, field validation.

Source: the API reference ("Common Parameters") and "API concepts" (field validation, dry run) of the documentation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from prefect_cd_local.apiserver.errors import Cause, Refusal, forbidden_field, invalid, required, unsupported
from prefect_cd_local.apiserver.schema import canonical

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
JSON, APPLY = "application/json-patch+json", "application/apply-patch+yaml"
PATCHES = (JSON, MERGE, STRATEGIC, APPLY)
_VALIDATIONS = ("Ignore", "Strict", "Warn")
_LONGEST_NAME = 128


@dataclass
class Options:
    """The options of a write.

    Attributes:
        duplicates: messages about duplicate keys in the body.
        warnings: collects texts for Warning headers.
    """

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    duplicates: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def complain(self, complaints: list[str], refusal: Callable[[str], Refusal]) -> None:
        """Handle messages about a body as the client asked: warn, refuse, or ignore.

        Raises:
            Refusal: the client wants strict validation.
        """
        if complaints and self.validation == "Strict":
            raise refusal(", ".join(complaints))
        if self.validation == "Warn":
            lines = [
                line for complaint in complaints for line in complaint.split("\n  ")[1:] or [complaint]
            ]  # without YAML's heading
            self.warnings += [line for line in lines if line not in self.warnings]


def options_of(query: dict[str, str], user_agent: str, operation: str, how: str = "") -> Options:
    """Read the options of a write; `how` is the media type of a patch.

    Raises:
        Refusal: 422, they do not fit the operation.
    """
    causes: list[Cause] = []
    dry_run, validation = query.get("dryRun") or "", query.get("fieldValidation") or "Warn"
    if dry_run not in {"", "All"}:
        message = f'Unsupported value: {canonical([dry_run])}: supported values: "All"'
        causes.append(Cause("FieldValueNotSupported", message, "dryRun"))
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
