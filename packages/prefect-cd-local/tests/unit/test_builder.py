"""The builder `embedded`, its images and their registry."""

import asyncio
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_cd_local import builder, python_environment
from prefect_cd_local.dockerfile import Refused
from prefect_cd_local.images import MACHINE_LABEL, Layout, Registry
from prefect_cd_local.recipe import ignored

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "context"
    (made / "app").mkdir(parents=True)
    (made / "app" / "main.py").write_text("print('hello')\n")
    (made / "app" / "run.sh").write_text("#!/bin/sh\n")
    (made / "app" / "run.sh").chmod(0o755)
    return made


def built(folder: Path, *lines: str, **arguments: str) -> tuple[dict[str, Any], list[str], str]:
    """Return configuration, names of files, and digest of an image."""
    (folder / "Dockerfile").write_text("\n".join(lines))
    layout = Layout(folder.parent / "layout")
    digest = builder.build(folder / "Dockerfile", folder, layout, "1", arguments=arguments, labels={})
    manifest = json.loads(layout.blob(digest).read_bytes())
    config = json.loads(layout.blob(manifest["config"]["digest"]).read_bytes())
    names = []
    for layer in manifest["layers"]:
        listed = subprocess.run(["tar", "tf", layout.blob(layer["digest"])], check=True, capture_output=True, text=True)
        names += listed.stdout.split()
    return config["config"], names, digest


def test_a_supported_dockerfile_becomes_an_image(folder: Path) -> None:
    config, names, _ = built(
        folder,
        "ARG BASE=python:3",
        "FROM ${BASE}",
        "WORKDIR /srv",
        "WORKDIR shop",
        'ENV A=1 B="two words"',
        "ENV A=2 C=${A}x",  # the old A, as in Docker
        "ARG VERSION=dev",
        "ENV VERSION=${VERSION}",
        "COPY app/ ./",
        "COPY app/main.py /bin/",
        "EXPOSE 8080 53/udp",
        "LABEL kind=test",
        "USER 10001",
        "STOPSIGNAL SIGINT",
        'ENTRYPOINT ["python3", "-m"]',
        'CMD ["main"]',
        VERSION="abc",
    )
    assert names == ["srv/shop/main.py", "srv/shop/run.sh", "bin/main.py"]
    assert config["Env"][1:] == ["A=2", "B=two words", "C=1x", "VERSION=abc"]
    assert config["WorkingDir"] == "/srv/shop"
    assert (config["Entrypoint"], config["Cmd"]) == (["python3", "-m"], ["main"])
    assert config["ExposedPorts"] == {"8080/tcp": {}, "53/udp": {}}
    assert (config["User"], config["StopSignal"], config["Labels"]["kind"]) == ("10001", "SIGINT", "test")


def test_equal_files_give_equal_digests(folder: Path) -> None:
    lines = ("FROM scratch", "COPY app/ /app/")
    first = built(folder, *lines)[2]
    (folder / "app" / "main.py").touch()
    assert built(folder, *lines)[2] == first
    (folder / "app" / "main.py").write_text("print('other')\n")
    assert built(folder, *lines)[2] != first


@pytest.mark.parametrize(
    ("lines", "where", "what"),
    [
        (["FROM a", "RUN apt-get install x"], "Dockerfile:2", "runs `pip install"),
        (["FROM a", "RUN pip install x && rm -rf /"], "Dockerfile:2", "runs `pip install -r FILE` only"),
        (["FROM a", "RUN pip install ."], "Dockerfile:2", ". is not supported"),
        (["FROM a", "RUN pip install -r no.txt"], "Dockerfile:2", "COPY it first"),
        (["FROM a", "", "# note", "FROM b"], "Dockerfile:4", "more than one stage"),
        (["FROM a", "COPY --from=b /x /y"], "Dockerfile:2", "--from=b"),
        (["FROM a", "COPY ../x /y"], "Dockerfile:2", "is outside the context"),
        (["FROM a", "COPY nosuch /y"], "Dockerfile:2", "nosuch is not in the context"),
        (["FROM a", "ADD x /y"], "Dockerfile:2", "is not supported"),
        (["FROM a", "RUN <<END", "x", "END"], "Dockerfile:2", "here-documents"),
        (["WORKDIR /a"], "Dockerfile:1", "FROM must come first"),
    ],
)
def test_unsupported_instructions_are_refused_with_file_and_line(
    folder: Path, lines: list[str], where: str, what: str
) -> None:
    with pytest.raises(Refused) as caught:
        built(folder, *lines)
    assert str(caught.value).startswith(f"{where}: ")
    assert what in str(caught.value)


def test_requirements_that_this_python_satisfies_are_not_downloaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "requirements.txt").write_text("aiohttp>=3\n")
    config, _, _ = built(
        folder,
        "FROM a",
        "WORKDIR /app",
        "COPY requirements.txt .",
        "RUN pip install --no-cache-dir -r requirements.txt",
    )
    assert config["Env"][0].startswith(f"PATH={Path(sys.executable).parent}:")
    assert "nothing is downloaded" in capsys.readouterr().out


def test_other_requirements_get_an_environment_which_is_made_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel(folder)
    monkeypatch.setattr(python_environment, "_pip", without_dry_run(python_environment._pip))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    (folder / "requirements.txt").write_text("little==1.0\n")
    lines = ("FROM a", "COPY requirements.txt /", "RUN pip install -r requirements.txt")
    config = built(folder, *lines)[0]
    programs = config["Env"][0].removeprefix("PATH=").partition(":")[0]
    command = [f"{programs}/python3", "-c", "import little; print(little.WORD)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "yes\n"
    assert str(Path(programs).parent) in json.loads(config["Labels"][MACHINE_LABEL])
    built(folder, *lines)
    assert "using the existing virtual environment" in capsys.readouterr().out


def without_dry_run(pip: Callable[..., Any]) -> Callable[..., Any]:
    """Let pip report missing packages at every dry run."""

    def without(python: str, words: list[str], place: Path) -> Any:  # noqa: ANN401
        missing = subprocess.CompletedProcess(words, 1)
        return missing if "--dry-run" in words else pip(python, words, place)

    return without


def make_wheel(folder: Path) -> Path:
    wheel = folder.parent / "wheels" / "little-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("little.py", "WORD = 'yes'\n")
        archive.writestr("little-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n")
        archive.writestr("little-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("little-1.0.dist-info/RECORD", "")
    return wheel


@pytest.mark.parametrize(
    ("rules", "out", "kept"),
    [
        (["*.pyc", "tests"], ["a.pyc", "tests", "tests/x.py"], ["b/a.pyc", "a.py"]),
        (["**/*.pyc"], ["a.pyc", "b/c/a.pyc"], ["a.py"]),
        (["docs", "!docs/keep.md"], ["docs/x.md"], ["docs/keep.md"]),
        (["# note", "", "/a/"], ["a", "a/b"], ["b/a"]),
    ],
)
def test_dockerignore_excludes_files(tmp_path: Path, rules: list[str], out: list[str], kept: list[str]) -> None:
    (tmp_path / ".dockerignore").write_text("\n".join(rules))
    test = ignored(tmp_path)
    assert [path for path in (*out, *kept) if test(tmp_path / path)] == out


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[[Callable[[str], Any]], Any]]:
    """Run a function beside a registry; its argument is the registry's name."""

    def beside(scenario: Callable[[str], Any]) -> Any:  # noqa: ANN401
        async def run() -> Any:  # noqa: ANN401
            server = Registry(tmp_path / "registry")
            port = await server.start()
            try:
                return await asyncio.to_thread(scenario, f"localhost:{port}")
            finally:
                await server.stop()

        return asyncio.run(run())

    return beside  # type: ignore[return-value]


def test_missing_content_is_answered_with_the_codes_of_the_specification(host: Any) -> None:  # noqa: ANN401
    def scenario(name: str) -> list[tuple[int, str]]:
        paths = (f"manifests/sha256:{'1' * 64}", f"blobs/sha256:{'1' * 64}", "tags/list")
        answers = [httpx.get(f"http://{name}/v2/shop/{path}") for path in paths]
        return [(answer.status_code, answer.json()["errors"][0]["code"]) for answer in answers]

    assert host(scenario) == [(404, "MANIFEST_UNKNOWN"), (404, "BLOB_UNKNOWN"), (404, "NAME_UNKNOWN")]


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_another_program_can_copy_images_in_and_out(host: Any, folder: Path, tmp_path: Path) -> None:  # noqa: ANN401
    def scenario(name: str) -> None:
        built(folder, "FROM a", "COPY app/ /app/")
        source, target = f"oci:{tmp_path}/layout:1", f"docker://{name}/a/b:2"
        subprocess.run(
            ["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", source, target],
            check=True,
            capture_output=True,
        )
        back = ["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", target, f"oci:{tmp_path}/back:1"]
        subprocess.run(back, check=True, capture_output=True)

    host(scenario)
    assert Layout(tmp_path / "back").manifest("1") == Layout(tmp_path / "layout").manifest("1")


def test_images_for_other_machines_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "Dockerfile").write_text("FROM a\n")
    assert builder.main(["build", "--tag", "registry.example.com/shop:1", str(folder)]) == 1
    assert "registry.example.com is not on this machine" in capsys.readouterr().err


def test_an_image_is_found_by_its_digest_after_its_tag_has_moved(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = (layout.tag(content, "latest") for content in (b"{}", b"[]"))
    assert layout.manifest("latest") == layout.manifest(second)
    assert (layout.manifest(first) or ("",))[0] == first
    assert layout.tags() == ["latest"]
