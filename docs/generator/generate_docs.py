"""Writes the pages of docs/ that are generated from the code, and the drawing of its imports.

    python docs/generator/generate_docs.py

`make docs` calls it. tests/packaging/test_docs.py fails when a committed file differs from what the code generates.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from draw_imports import draw_imports
from prefect_cd.errors import DeliveryError, Errored, Failed, Invalid
from prefect_cd.flows.outcome import state_name
from prefect_cd.manifests.lint import RULE_TEXTS, Rule
from prefect_cd.pipeline.models import (
    Approval,
    Check,
    ClusterAccess,
    Environment,
    Gate,
    HttpCheck,
    ImageSettings,
    PatienceSettings,
    Pipeline,
    Probe,
    ProbeLimits,
    RolloutSettings,
    Settings,
    SourceSettings,
)
from prefect_cd.pipeline.types import duration_text
from prefect_cd.rollout.assess.model import patience_key
from prefect_cd.rollout.assess.peers import MAY_NEED_PEERS
from prefect_cd.rollout.diagnosis.cause import CATEGORY_TEXTS, Category, CategoryText
from prefect_cd.tasks.stage import may_heal

TOP = Path(__file__).resolve().parents[2]
_NOTE = "<!-- Generated from the code by `make docs`: change the texts there. -->"


def generated_files() -> dict[Path, str]:
    """Every generated file with its content."""
    docs = TOP / "docs"
    return {
        docs / "errors.md": errors_page(),
        docs / "categories.md": categories_page(),
        docs / "lint.md": lint_page(),
        docs / "pipeline.md": pipeline_page(),
        docs / "imports.svg": draw_imports(TOP),
    }


# --- errors ----------------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """The catalogue of error codes, by the three kinds of errors."""
    head = ("code", "class", "meaning", "retried", "the run's state", "what to do")
    sections = "\n\n".join(
        f"## {kind.__name__}\n\n{table(head, map(_error_row, error_classes(kind)))}"
        for kind in (Invalid, Failed, Errored)
    )
    return f"""{_NOTE}

# Error codes

Every error has a code, a reason, and a hint with the next command or the next edit. The code stands in brackets at the
beginning of the message: `[gate-failed] E2E: 2 of 14 tests failed`. The classes are in
[`src/prefect_cd/errors.py`](../src/prefect_cd/errors.py).

There are three kinds. *Invalid*: the input is wrong; preflight usually finds that before anything is written. *Failed*:
the answer is no. *Errored*: we could not find out. "Retried" means that Prefect runs the stage again, three times,
after 2, 4 and 8 seconds. A whole `deploy` or `rollback` is never retried; the stages in it are.

{sections}
"""


def error_classes(kind: type[DeliveryError]) -> Iterator[type[DeliveryError]]:
    """A kind of errors and the errors of that kind, in the order of the module."""
    yield kind
    for error in kind.__subclasses__():
        if error.__module__.startswith("prefect_cd."):
            yield from error_classes(error)


def _error_row(error: type[DeliveryError]) -> Sequence[str]:
    meaning = _first_paragraph(error)
    retried = "yes" if is_retried(error) else "no"
    state = state_name(error("an example"))
    return f"`{error.code}`", f"`{error.__name__}`", meaning, retried, f"`{state}`", _sentence(error.remedy)


def is_retried(error: type[DeliveryError]) -> bool:
    """Whether Prefect runs a stage again that ended with this error."""

    class EndedState:
        """A stage's state, as far as the condition of retries reads it."""

        def result(self) -> None:
            raise error("an example")

    state: Any = EndedState()
    unused: Any = None
    return may_heal(unused, unused, state)


def _sentence(text: str) -> str:
    """A fragment as a sentence; code and URLs at its beginning keep their first letter."""
    text = text if text.startswith(("`", "http")) else text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


# --- categories ------------------------------------------------------------------------------------------------------


def categories_page() -> str:
    """The catalogue of the categories of rollout problems, and of the patience with them."""
    crashes = RolloutSettings.model_fields["crashes"].default
    return f"""{_NOTE}

# Categories of rollout problems

When a rollout does not complete, every problem that was found has a category. The values are a stable contract: you can
filter by them in the JSON of `prefect-cd rollout -o json` and in artifacts. They are defined in
[`src/prefect_cd/rollout/diagnosis/cause.py`](../src/prefect_cd/rollout/diagnosis/cause.py).

A problem fails a rollout in one of three ways:

- **at once**, because no retry can succeed without a change;
- **after its patience**, since it may pass by itself: the time is set by a key under `rollout.patience`, and is twice
  as long while a new attempt is in progress;
- **by number**, at `rollout.crashes` (default {crashes}) failed runs of one container, evictions, or rejections by
  nodes. Of {_deferred()}, two more are tolerated while other workloads of the release are still starting.

{table(("category", "meaning", "fails the rollout"), map(_category_row, Category))}

## Patience

The keys under `rollout.patience` of an environment in the pipeline file. One duration instead of the keys
(`patience: 60s`) sets all of them except `stall`.

{table(("key", "default", "for"), _patience_rows())}
"""


def _deferred() -> str:
    """The categories whose crashes a starting peer may explain."""
    return " and ".join(f"`{category.value}`" for category in MAY_NEED_PEERS)


def _category_row(category: Category) -> Sequence[str]:
    text = CATEGORY_TEXTS[category]
    return f"`{category.value}`", text.meaning, "<br>".join(_ways(category, text))


def _ways(category: Category, text: CategoryText) -> Iterator[str]:
    ways = (
        ("at once", text.permanent),
        (f"after `patience.{patience_key(category)}`", text.patience),
        ("by number", text.counted),
    )
    for way, condition in ways:
        if condition is not None:
            yield f"**{way}**{f': {condition}' if condition else ''}"


def _patience_rows() -> Iterator[Sequence[str]]:
    for name, field in PatienceSettings.model_fields.items():
        yield f"`{name}`", duration_text(field.default), _sentence(field.description or "")


# --- lint ------------------------------------------------------------------------------------------------------------


def lint_page() -> str:
    """The catalogue of lint rules."""
    return f"""{_NOTE}

# Lint rules for manifests

`plan` reads the manifests of an environment and warns of what will lose requests during a rollout, of references to the
pipeline's image that keep their tag, and of changes that a rollback cannot undo in place. The warnings are shown in the
log, in the plan and in the approval form, and never fail a release: an application may shut down gracefully by itself.
Only pods behind a Service of the same environment are checked for lost requests. The rules are in
[`src/prefect_cd/manifests/lint.py`](../src/prefect_cd/manifests/lint.py) and
[`irreversible.py`](../src/prefect_cd/manifests/irreversible.py) beside it; their names are a stable contract.

{table(("rule", "finding", "consequence", "fix"), ((f"`{rule.value}`", *RULE_TEXTS[rule]) for rule in Rule))}
"""


# --- the pipeline file -----------------------------------------------------------------------------------------------


def pipeline_page() -> str:
    """The reference of the pipeline file: every section with its keys."""
    sections = "\n\n".join(
        f"## {path}\n\n{_first_paragraph(model)}\n\n{table(('key', 'default', 'meaning'), _key_rows(model))}"
        for path, model in SECTIONS.items()
    )
    return f"""{_NOTE}

# The pipeline file

`prefect-cd check FILE` reports every mistake with its line; editors complete the file with its
[JSON schema](../deployments/pipeline.schema.json). Durations are written as `30s`, `5m` or `1h30m`.

- **Cluster**, per environment: `cluster: {{kubeconfig: PATH, context: NAME}}`, `{{in_cluster: true}}` or
  `{{credentials: BLOCK}}` (a prefect-kubernetes `KubernetesCredentials` block). Default: in-cluster when the pod has a
  service account, else `$KUBECONFIG` or `~/.kube/config`.
- **Manifests** are read as kubectl reads them. Labels of a manifest stay as they are. Fields that only the server
  writes (`uid`, `resourceVersion`, `status` …) are refused with their line, and so is an overlay that refers to
  anything outside of the commit.
- **Digest**: it replaces the tag of `image.name` in containers and in image volumes. Where else the name stands, in the
  value of a variable or in a custom resource, `image.fields` lists the paths, and lint warns of those that are missing.
- **Private repository**: `source.credentials: github-credentials/NAME`, also GitLab, Bitbucket, or a token in
  `secret/NAME`.
- **Registry**: prefect-cd uses the login of docker or podman on the machine that serves. It reaches loopback addresses
  by plain HTTP, and others if `image.insecure` is true.
- **URL**: `service/NAME[:PORT]` needs no ingress. Inside the cluster it is the Service's DNS name; elsewhere the
  address of its load balancer, else a node port, else a port-forward.

{sections}
"""


SECTIONS: dict[str, type[Settings]] = {
    "The file": Pipeline,
    "source": SourceSettings,
    "image": ImageSettings,
    "checks[]": Check,
    "environments[]": Environment,
    "environments[].cluster": ClusterAccess,
    "environments[].approval": Approval,
    "environments[].gates[]": Gate,
    "environments[].gates[].http": HttpCheck,
    "environments[].rollout": RolloutSettings,
    "environments[].rollout.patience": PatienceSettings,
    "environments[].probe": Probe,
    "environments[].probe.limits": ProbeLimits,
}
"""The sections of the file and their models."""


def _first_paragraph(documented: type) -> str:
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def _key_rows(model: type[Settings]) -> Iterator[Sequence[str]]:
    for name, field in model.model_fields.items():
        yield f"`{name}`", "required" if field.is_required() else _value(field.default), _meaning(field)


def _meaning(field: FieldInfo) -> str:
    """The key's description; for a key without one, the description of its model."""
    models = [kind for kind in (field.annotation, *get_args(field.annotation)) if inspect.isclass(kind)]
    documented = next((kind for kind in models if issubclass(kind, Settings)), None)
    return _sentence(field.description or (_first_paragraph(documented) if documented else "the name"))


def _value(default: object) -> str:
    """A default as the file would have it; empty for none, and for a section whose keys have defaults of their own."""
    if default is None or default in ((), {}) or isinstance(default, Settings):
        return ""
    if isinstance(default, timedelta):
        return f"`{duration_text(default)}`"
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    for path, content in generated_files().items():
        path.write_text(content)
