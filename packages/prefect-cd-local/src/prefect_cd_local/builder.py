"""The builder `embedded`: images from a subset of Dockerfiles, without a container engine.

Its command line is that of buildah, so that a release calls it like any builder:

    prefect-cd-embedded-builder build --file DOCKERFILE --tag NAME:TAG [--build-arg K=V] [--label K=V] CONTEXT
    prefect-cd-embedded-builder push [--digestfile FILE] NAME:TAG
    prefect-cd-embedded-builder info

Decides where images are stored until they are pushed ($XDG_CACHE_HOME/prefect-cd/images) and how they are pushed;
`recipe` interprets the Dockerfile. Only the node of the embedded cluster runs these images, so names of registries on
other machines are refused.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import httpx

from prefect_cd_local.dockerfile import Refused
from prefect_cd_local.images import CONFIG, LAYER, MANIFEST, Layout, is_loopback, is_repository
from prefect_cd_local.python_environment import report
from prefect_cd_local.recipe import Recipe


class Name(NamedTuple):
    """The parts of HOST/REPOSITORY:TAG."""

    host: str
    repository: str
    tag: str

    def kept(self) -> Layout:
        """The folder that holds images of this repository until they are pushed."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Layout(cache / "prefect-cd" / "images" / self.host.replace(":", "_") / self.repository)


def parse(text: str) -> Name:
    """Split an image name into its parts.

    Raises:
        Refused: the registry is not on this machine.
    """
    host, _, rest = text.partition("/")
    repository, _, tag = rest.partition(":")
    if not is_loopback(host):
        raise Refused(f"{text}: the builder embedded makes images for the embedded cluster of this machine only; "
                      f"{host} is not on this machine")  # fmt: skip
    if not is_repository(repository):
        raise Refused(f"{text}: {repository!r} is not the name of a repository")
    return Name(host, repository, tag or "latest")


def build(
    dockerfile: Path, context: Path, layout: Layout, tag: str, *, arguments: dict[str, str], labels: dict[str, str]
) -> str:
    """Build an image into a layout and tag it there; returns its digest.

    Raises:
        Refused: the Dockerfile has an instruction that this builder does not support.
    """
    recipe = Recipe(context, arguments)
    recipe.follow(dockerfile)

    def described(content: bytes, media_type: str) -> dict[str, str | int]:
        return {"mediaType": media_type, "digest": layout.put(content), "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(json.dumps(recipe.configuration(labels), sort_keys=True).encode(), CONFIG),
        "layers": [described(layer, LAYER) for layer in recipe.layers],
    }
    return layout.tag(json.dumps(manifest, sort_keys=True).encode(), tag)


def push(name: Name) -> str:
    """Push an image to its registry (distribution-spec, "Pushing manifests"); returns its digest.

    Raises:
        Refused: there is no such image.
        httpx.HTTPError: the registry does not answer, or answers with an error.
    """
    layout = name.kept()
    stored = layout.manifest(name.tag)
    if stored is None:
        raise Refused(f"{name.repository}:{name.tag}: no such image; build it first")
    digest, media_type = stored
    manifest = layout.blob(digest).read_bytes()
    document = json.loads(manifest)
    base = f"http://{name.host}/v2/{name.repository}"
    with httpx.Client(timeout=60, trust_env=False) as client:
        for blob in (document["config"], *document["layers"]):
            if client.head(f"{base}/blobs/{blob['digest']}").is_success:
                continue
            begun = client.post(f"{base}/blobs/uploads/").raise_for_status()
            where = httpx.URL(base).join(begun.headers["Location"]).copy_add_param("digest", blob["digest"])
            client.put(where, content=layout.blob(blob["digest"]).read_bytes()).raise_for_status()
        headers = {"Content-Type": media_type}
        client.put(f"{base}/manifests/{name.tag}", content=manifest, headers=headers).raise_for_status()
    return digest


def main(words: list[str] | None = None) -> int:
    """Run buildah's command line; returns 0, or 1 with the reason on standard error."""
    options = _arguments().parse_args(words)
    try:
        if options.command == "info":
            report("the builder embedded of prefect-cd: its images run on the embedded cluster of this machine only")
        elif options.command == "push":
            digest = push(parse(options.reference))
            if options.digestfile:
                options.digestfile.write_text(digest, encoding="ascii")
            report(f"{options.reference}: digest: {digest}")
        else:
            name = parse(options.tag)
            arguments, labels = (
                dict(pair.partition("=")[::2] for pair in many) for many in (options.build_arg, options.label)
            )
            dockerfile = options.file or options.context / "Dockerfile"
            digest = build(
                dockerfile, options.context.resolve(), name.kept(), name.tag, arguments=arguments, labels=labels
            )
            report(f"{options.tag}: {digest}")
    except (Refused, OSError, httpx.HTTPError) as error:
        sys.stderr.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefect-cd-embedded-builder", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info")
    building = commands.add_parser("build", aliases=["bud"])
    building.add_argument("--file", "-f", type=Path)
    building.add_argument("--tag", "-t", required=True)
    building.add_argument("--build-arg", action="append", default=[])
    building.add_argument("--label", action="append", default=[])
    building.add_argument("context", type=Path)
    pushing = commands.add_parser("push")
    pushing.add_argument("--digestfile", type=Path)
    pushing.add_argument("reference")
    for command in (building, pushing):
        command.add_argument("--tls-verify", help="accepted and ignored: a registry on this machine has no TLS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
