"""Write schemas.json: the published schemas of the kinds that the API server serves, without descriptions.

Run it by hand when the version of Kubernetes changes:

    python packages/prefect-cd-local/tools/extract_schemas.py MODULES

kubectl must point at a real server, and MODULES is a Go module cache that holds k8s.io/api and k8s.io/apimachinery of
its version. OpenAPI lacks two facts that the struct tags have, and which are added to each property:
`x-written`, when a server writes the field (always; struct: always, with what it has inside; null: always, null when
unset; unless-zero; unless-null), and `x-numbers`, its number in protobuf, two for a field of an embedded struct.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefect_cd_local.apiserver.kinds import SERVED
from prefect_cd_local.apiserver.schema import REF

Json = dict[str, Any]
SCHEMAS = Path(__file__).parents[1] / "src" / "prefect_cd_local" / "apiserver" / "schemas.json"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_ALSO = (_META + "DeleteOptions", _META + "Patch", "io.k8s.api.autoscaling.v1.Scale", "io.k8s.api.core.v1.Binding")
_FIELD = re.compile(r'^\t(?:(\w+)\s+)?(\S+)\s+`json:"([^"]*)"(?:[^`\n]*?protobuf:"\w+,(\d+))?', re.MULTILINE)
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)


class Tag(NamedTuple):
    """What is written beside a field of a struct."""

    pointer: bool
    options: set[str]
    numbers: list[int]


def main(modules: Path) -> None:
    """Write the schemas into the package, one a line."""
    served: Json = {}
    for root in sorted({kind.root for kind in SERVED} | {"/apis/autoscaling/v1"}):
        answer = subprocess.run(["kubectl", "get", "--raw", f"/openapi/v3{root}"], check=True, capture_output=True)
        served |= json.loads(answer.stdout)["components"]["schemas"]
    wanted, schemas = [*(kind.schema for kind in SERVED), *_ALSO], {}
    while wanted:
        name = wanted.pop()
        if name not in schemas:
            schemas[name] = _without_descriptions(served[name])
            _add_tags(modules, name, schemas[name])
            wanted += _references(schemas[name])
    lines = (f"{json.dumps(name)}: {json.dumps(schemas[name], sort_keys=True)}" for name in sorted(schemas))
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    SCHEMAS.write_text(text, encoding="utf-8")


def _without_descriptions(schema: Any) -> Any:  # noqa: ANN401  any JSON
    if isinstance(schema, list):
        return [_without_descriptions(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if key != "description" or not isinstance(part, str)}
    return {key: _without_descriptions(part) for key, part in kept.items()}


def _references(schema: Any) -> Iterator[str]:  # noqa: ANN401  any JSON
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"].removeprefix(REF)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _references(part)


def _add_tags(modules: Path, name: str, schema: Json) -> None:
    package, _, struct = name.rpartition(".")
    tags = _tags(modules, package.split("."), struct)
    for name_of_field, field in schema.get("properties", {}).items():
        pointer, options, numbers = tags[name_of_field]
        if numbers:
            field["x-numbers"] = numbers
        if "type" not in field and not pointer and "omitzero" not in options:
            field["x-written"] = "struct"
        elif options & {"omitempty", "omitzero"}:
            field["x-written"] = "unless-null" if pointer else "unless-zero"
        else:
            field["x-written"] = "null" if pointer else "always"


def _tags(modules: Path, package: list[str], struct: str) -> dict[str, Tag]:
    """JSON name → tag of the fields of a Go struct, those of embedded structs included."""
    _, host, module, *path = package
    tags: dict[str, Tag] = {}
    for folder in modules.glob(f"{host}.io/{module}@*/" + "/".join(path)):
        texts = (file.read_text() for file in sorted(folder.glob("*.go")))
        for body in (body for text in texts for name, body in _STRUCT.findall(text) if name == struct):
            for _, type_, tag, number in _FIELD.findall(body):
                name, *options = tag.split(",")
                if name:
                    tags[name] = Tag(type_.startswith("*"), set(options), [int(number)] if number else [])
                else:
                    tags |= _embedded(modules, package, type_.rpartition(".")[2], number)
    return tags


def _embedded(modules: Path, package: list[str], struct: str, number: str) -> dict[str, Tag]:
    if struct == "TypeMeta":
        return dict.fromkeys(("apiVersion", "kind"), Tag(pointer=False, options={"omitempty"}, numbers=[]))
    inner = _tags(modules, package, struct)
    return {name: tag._replace(numbers=[int(number), *tag.numbers]) for name, tag in inner.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
