"""Images, names and paths of somebody who means harm: nothing of the machine is written or read by them."""

import asyncio
import http.client
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd_local import builder
from prefect_cd_local.archives import OutsideError, inside, unpack
from prefect_cd_local.dockerfile import Refused
from prefect_cd_local.images import MANIFEST, Layout, Registry, digest_of
from prefect_cd_local.node.environment import ConfigError
from prefect_cd_local.node.pull import Puller, PullError, parse
from prefect_cd_local.node.volumes import Volumes

pytestmark = pytest.mark.timeout(60)
CONTENT = "of the machine"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    """A folder that belongs to the machine: nothing may change in it, and nothing of it may be copied."""
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / "secret").write_text(CONTENT)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == CONTENT


# --- the registry ----------------------------------------------------------------------------------------------------


def at_a_registry(folder: Path, scenario: Callable[[str], Any]) -> Any:  # noqa: ANN401
    async def run() -> Any:  # noqa: ANN401
        server = Registry(folder)
        port = await server.start()
        try:
            return await asyncio.to_thread(scenario, f"127.0.0.1:{port}")
        finally:
            await server.stop()

    return asyncio.run(run())


def send(host: str, method: str, path: str, body: bytes = b"") -> int:
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request(method, path, body, {"Content-Type": MANIFEST})
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "name",
    ["%2e%2e/x", "..%2fx", "a/%2e%2e/%2e%2e/x", "%2e%2e%2fx", ".", "a//b", "a/./b", "%2fetc", "-a", "a%00b"],
)
def test_no_name_of_a_repository_leaves_the_folder_of_the_registry(tmp_path: Path, name: str) -> None:
    def scenario(host: str) -> list[int]:
        content = b"{}"
        upload = f"/v2/{name}/blobs/uploads/?digest={digest_of(content)}"
        return [
            send(host, "PUT", f"/v2/{name}/manifests/latest", content),
            send(host, "POST", upload, content),
            send(host, "GET", f"/v2/{name}/manifests/latest"),
            send(host, "GET", f"/v2/{name}/tags/list"),
        ]

    assert all(400 <= status < 500 for status in at_a_registry(tmp_path / "registry", scenario))
    assert not (tmp_path / "registry").exists()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "digest", ["sha256:../../../../machine/secret", "x:../../machine/secret", "sha256:", "", 5, None, ["a"]]
)
def test_no_digest_is_a_path(tmp_path: Path, digest: object) -> None:
    manifest = {"mediaType": MANIFEST, "config": {"digest": digest, "size": 1}, "layers": []}

    def scenario(host: str) -> int:
        return send(host, "PUT", "/v2/a/manifests/latest", json.dumps(manifest).encode())

    assert at_a_registry(tmp_path / "registry", scenario) == 400
    with pytest.raises(ValueError, match="no digest"):
        Layout(tmp_path).blob(str(digest))


@pytest.mark.usefixtures("machine")
def test_a_node_takes_no_file_of_the_machine_for_a_blob(tmp_path: Path) -> None:
    blob = {"digest": "x:../../../machine/secret", "size": 1}
    layout = Layout(tmp_path / "registry" / "a")
    layout.tag(json.dumps({"mediaType": MANIFEST, "config": blob, "layers": [blob]}).encode(), "1")

    def scenario(host: str) -> None:
        asyncio.run(Puller(tmp_path / "node").pull(parse(f"{host}/a:1")))

    with pytest.raises(PullError, match="no digest"):
        at_a_registry(tmp_path / "registry", scenario)


@pytest.mark.parametrize("manifest", [b"[]", b"5", b"{", b"[" * 50_000, b'{"layers": 1}'])
def test_no_manifest_is_an_unexpected_error_of_the_node(tmp_path: Path, manifest: bytes) -> None:
    Layout(tmp_path / "registry" / "a").tag(manifest, "1")

    def scenario(host: str) -> None:
        asyncio.run(Puller(tmp_path / "node").pull(parse(f"{host}/a:1")))

    with pytest.raises(PullError):
        at_a_registry(tmp_path / "registry", scenario)


@pytest.mark.parametrize("repository", ["../../machine", "a/../../machine", "/etc", "A", ""])
def test_the_builder_keeps_images_of_repositories_only(repository: str) -> None:
    with pytest.raises(Refused, match="is not the name of a repository"):
        builder.parse(f"localhost:5000/{repository}:1")


# --- the builder -----------------------------------------------------------------------------------------------------


def build(folder: Path, *lines: str, dockerfile: Path | None = None) -> list[str]:
    """Build; returns the names and links of the image."""
    if dockerfile is None:
        dockerfile = folder / "Dockerfile"
        dockerfile.write_text("\n".join(lines))
    layout = Layout(folder.parent / "layout")
    digest = builder.build(dockerfile, folder, layout, "1", arguments={}, labels={})
    names = []
    for layer in json.loads(layout.blob(digest).read_bytes())["layers"]:
        assert CONTENT.encode() not in layout.blob(layer["digest"]).read_bytes()
        with tarfile.open(layout.blob(layer["digest"])) as archive:
            names += [f"{member.name} -> {member.linkname}" if member.issym() else member.name for member in archive]
    return names


@pytest.fixture
def build_context(tmp_path: Path, machine: Path) -> Path:
    """A build context with links to the machine."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "link").symlink_to(machine)
    (folder / "file").symlink_to(machine / "secret")
    (folder / "requirements.txt").write_text("aiohttp\n")
    return folder


@pytest.mark.parametrize("source", ["link/secret", "link/*", "*/secret", "./link/secret"])
def test_copy_does_not_follow_a_link_out_of_the_context(build_context: Path, source: str) -> None:
    with pytest.raises(Refused, match="behind a link out of the context"):
        build(build_context, "FROM a", f"COPY {source} /app/")


def test_copy_keeps_links_as_links(build_context: Path) -> None:
    names = build(build_context, "FROM a", "COPY . /app/")
    assert sorted(name.partition(" ")[0] for name in names if " -> " in name) == ["app/file", "app/link"]


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_what_the_builder_reads_is_no_link_out_of_the_context(build_context: Path, machine: Path, name: str) -> None:
    (build_context / name).unlink(missing_ok=True)
    (build_context / name).symlink_to(machine / "secret")
    lines = ("FROM a", "COPY . /app/")
    with pytest.raises(Refused, match="is a link out of the context"):
        build(build_context, *lines, dockerfile=build_context / name if name == "Dockerfile" else None)


@pytest.mark.parametrize(
    "lines",
    [
        ("COPY link /app", "COPY requirements.txt /app/x/y", "RUN pip install -r /app/x/y"),
        ("COPY file /requirements.txt", "RUN pip install -r requirements.txt"),
        ("COPY link /app", "WORKDIR /app/made", "RUN pip install -r requirements.txt"),
        ("COPY link /app", "RUN pip install -r app/secret"),
        ("RUN pip install -r {secret}",),
        ("RUN pip install -r ../../../../../../../../../../..{secret}",),
    ],
    ids=["a file below a link", "a linked file", "a linked working directory", "below a link", "absolute", "by .."],
)
def test_pip_install_touches_nothing_of_the_machine(build_context: Path, machine: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises((Refused, OutsideError)) as caught:
        build(build_context, "FROM a", *(line.format(secret=machine / "secret") for line in lines))
    assert CONTENT not in str(caught.value)
    assert "pip failed" not in str(caught.value)


# --- layers ----------------------------------------------------------------------------------------------------------


def link(name: str, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member


def typed(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def layer(*members: tarfile.TarInfo) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            member.size = 4 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"evil"))
    buffer.seek(0)
    return buffer


def unpacked(into: Path, *members: tarfile.TarInfo) -> None:
    into.mkdir(exist_ok=True)
    with tarfile.open(fileobj=layer(*members)) as archive:
        unpack(archive, into)


def test_a_layer_writes_nothing_outside_of_its_folder(tmp_path: Path, machine: Path) -> None:
    outside = str(machine)
    for members in (
        [tarfile.TarInfo("../machine/x")],
        [tarfile.TarInfo(f"{outside}/x")],
        [link("a", outside), tarfile.TarInfo("a/x")],
        [link("a", "../machine"), tarfile.TarInfo("a/secret")],
        [link("a", "b"), link("b", outside), tarfile.TarInfo("a/x")],
        [link("a", outside), typed("a/x", tarfile.DIRTYPE)],
        [typed("a", tarfile.LNKTYPE, f"{outside}/secret")],
        [typed("a", tarfile.CHRTYPE)],
        [typed("a", tarfile.FIFOTYPE)],
        [link("a", "a"), tarfile.TarInfo("a/x")],
    ):
        with pytest.raises(OSError, match=r"leads out|does not belong there|is no file"):
            unpacked(tmp_path / "image", *members)


def test_a_file_replaces_the_link_of_an_earlier_layer(tmp_path: Path, machine: Path) -> None:
    unpacked(tmp_path / "image", link("a", str(machine / "secret")))
    unpacked(tmp_path / "image", tarfile.TarInfo("a"))
    assert (tmp_path / "image" / "a").read_bytes() == b"evil"
    assert not (tmp_path / "image" / "a").is_symlink()


def test_links_stay_what_they_are_and_no_file_runs_as_its_owner(tmp_path: Path, machine: Path) -> None:
    program = tarfile.TarInfo("program")
    program.mode = 0o4755
    unpacked(tmp_path / "image", link("etc/absolute", str(machine)), program)
    assert os.readlink(tmp_path / "image/etc/absolute") == str(machine)  # noqa: PTH115
    assert (tmp_path / "image/program").stat().st_mode & 0o7777 == 0o755


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", "/"]), min_size=1, max_size=4).map("/".join)


kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])


@given(st.lists(st.tuples(names, kinds, names), max_size=5))
@settings(max_examples=60, deadline=None)
def test_no_layer_writes_outside_of_its_folder(tmp_path_factory: Any, members: list[tuple[str, bytes, str]]) -> None:  # noqa: ANN401
    top = tmp_path_factory.mktemp("layer")
    with suppress(OSError):
        unpacked(top / "image", *(typed(*member) for member in members))
    assert [path.name for path in top.iterdir()] == ["image"]


# --- containers and volumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../machine/x", "/../machine/x", "link/x", "a/../../machine/x", "a\0b"])
def test_a_path_of_a_container_stays_in_its_folder(tmp_path: Path, machine: Path, name: str) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "link").symlink_to(machine)
    with pytest.raises(OutsideError):
        inside(folder, name)
    assert inside(folder, "/a/b") == folder / "a/b"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("path", ["../../machine/x", "a/../../../machine/x"])
def test_a_volume_writes_nothing_beside_its_folder(tmp_path: Path, path: str) -> None:
    volumes = Volumes(tmp_path / "volumes", None, {})  # type: ignore[arg-type]  # the downward API needs no client
    pod = {"metadata": {"name": "evil", "namespace": "x"}, "spec": {}}
    volume = {"name": "v", "downwardAPI": {"items": [{"path": path, "fieldRef": {"fieldPath": "metadata.name"}}]}}
    with pytest.raises(ConfigError, match="leads out"):
        asyncio.run(volumes.provide(pod, volume))
    asyncio.run(volumes.provide(pod, {"name": "e", "emptyDir": {}}))
    with pytest.raises(ConfigError, match="leads out"):
        volumes.binds({"volumeMounts": [{"name": "e", "mountPath": "/x", "subPath": path}]})
