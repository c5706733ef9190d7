"""Trees of a git repository, of a commit or as they lie in the working directory, and copies of them.

Both are described the same way, so that a working tree without changes is the same tree as its
commit. Nothing here writes to the repository. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitbench.errors import ToolError, UserError
from bitbench.plugins import advice

GIT_SECONDS = 300.0
ATTEMPTS = 3
"""Copies of a working tree that are tried while somebody saves files in it."""

EXECUTABLE, PLAIN, LINK, SUBMODULE = "100755", "100644", "120000", "160000"
"""Modes of files in git."""


@dataclass(frozen=True)
class Entry:
    """One file of a tree, as git knows it."""

    mode: str
    blob: str
    """Git's hash of the content."""
    path: str


@dataclass(frozen=True)
class Tree:
    """The files under some parts of a repository, in order of their paths."""

    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Hash over names, contents and modes: 16 hex digits."""
        text = "\0".join(f"{e.mode} {e.blob} {e.path}" for e in self.entries)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Changed(Exception):
    """A file is no longer what it was when the tree was described."""


def repository(folder: Path) -> Path:
    """Top of the working tree that ``folder`` lies in; :class:`UserError` where there is none."""
    try:
        done = _run(folder, "rev-parse", "--show-toplevel")
    except NotADirectoryError:
        raise UserError(f"{folder} is not a directory", "name the repository to compare") from None
    if done.returncode != 0 and b"not a git repository" not in done.stderr:
        raise UserError(f"git refuses {folder}: {_fatal(done.stderr)}", "see that `git status` works there")
    if not done.stdout.strip():
        raise UserError(
            f"{folder} is not in a git repository: two versions cannot be told apart",
            "run this inside a clone of the repository",
        )
    return Path(os.fsdecode(done.stdout.strip()))


def resolve(repo: Path, ref: str) -> str:
    """The commit that ``ref`` names; :class:`UserError` where it names none."""
    # A leading dash would be taken for an option.
    done = None if ref.startswith("-") else _run(repo, "rev-parse", "--verify", "-q", f"{ref}^{{commit}}")
    if done is None or done.returncode != 0:
        shallow = _text(repo, "rev-parse", "--is-shallow-repository").strip() == "true"
        names = _text(repo, "for-each-ref", "--format=%(refname:short)").split()
        remedy = advice(ref, names, label="there are", limit=8)
        if shallow:
            remedy = "this clone is shallow: fetch its history with `git fetch --unshallow`; " + remedy
        raise UserError(f"{ref!r} names no commit in {repo}", remedy or "see `git log`")
    return os.fsdecode(done.stdout.strip())


def tree_of_commit(repo: Path, commit: str, parts: Sequence[str]) -> Tree:
    """The files of ``commit`` under ``parts``; no parts means all. Submodules are left out."""
    found = []
    for line in _lines(repo, "ls-tree", "-r", "-z", "--full-tree", commit, "--", *parts):
        facts, _, path = line.partition("\t")
        mode, _, blob = facts.split(" ")
        if mode != SUBMODULE:
            found.append(Entry(mode, blob, path))
    return Tree(tuple(sorted(found, key=lambda entry: entry.path)))


def tree_of_files(repo: Path, parts: Sequence[str]) -> Tree:
    """The files as they lie now: tracked ones and new ones that git does not ignore."""
    found = []
    options = ("--cached", "--others", "--exclude-standard")
    for name in sorted(set(_lines(repo, "ls-files", "-z", *options, "--", *parts))):
        path = repo / name
        try:
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                found.append(Entry(_git_mode(mode), _blob(_content(path)), name))
        except FileNotFoundError:  # deleted, but still in git's index
            continue
    return Tree(tuple(found))


def write_commit(repo: Path, commit: str, tree: Tree, folder: Path) -> None:
    """Check the files of ``tree`` out of ``commit`` into ``folder``, filters (such as LFS) applied.

    ``git archive`` would leave out what is marked ``export-ignore``, which a build may need.
    """
    names = b"".join(os.fsencode(entry.path) + b"\0" for entry in tree.entries)
    with tempfile.TemporaryDirectory(prefix="bitbench-index-") as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _checked(repo, "read-tree", commit, environment=index)
        prefix = f"--prefix={folder}/"
        _checked(repo, "checkout-index", "-z", "--stdin", "-f", "-q", prefix, environment=index, stdin=names)


def write_files(repo: Path, parts: Sequence[str], tree: Tree, folder: Path) -> Tree:
    """Copy the files of ``tree`` as they lie in the working tree into ``folder``; returns the tree
    copied, a newer one where files were saved meanwhile.

    Raises :class:`UserError` where they do not come to rest.
    """
    for _ in range(ATTEMPTS):
        try:
            for entry in tree.entries:
                _copy(repo / entry.path, folder / entry.path, entry)
            return tree
        except (_Changed, FileNotFoundError):
            tree = tree_of_files(repo, parts)
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    raise UserError(
        f"files in {repo} change while they are copied", "stop what writes there, or compare commits"
    )


def _copy(source: Path, target: Path, entry: Entry) -> None:
    content = _content(source)
    if _blob(content) != entry.blob:
        raise _Changed
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.mode == LINK:
        target.symlink_to(os.fsdecode(content))
        return
    target.write_bytes(content)
    if entry.mode == EXECUTABLE:
        target.chmod(0o755)


def _git_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return LINK
    return EXECUTABLE if mode & stat.S_IXUSR else PLAIN


def _content(path: Path) -> bytes:
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()


def _blob(content: bytes) -> str:
    """Git's own hash of a file, so that a file equals the one committed."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _lines(repo: Path, *arguments: str) -> Iterator[str]:
    """Entries of a NUL-separated answer."""
    return (os.fsdecode(part) for part in _checked(repo, *arguments).split(b"\0") if part)


def _text(repo: Path, *arguments: str) -> str:
    return os.fsdecode(_run(repo, *arguments).stdout)


def _checked(
    repo: Path, *arguments: str, environment: dict[str, str] | None = None, stdin: bytes | None = None
) -> bytes:
    done = _run(repo, *arguments, environment=environment, stdin=stdin)
    if done.returncode != 0:
        told = _fatal(done.stderr) or f"exit code {done.returncode}"
        raise ToolError(f"git {arguments[0]} failed in {repo}: {told}", "see that `git status` works there")
    return done.stdout


def _fatal(text: bytes) -> str:
    lines = os.fsdecode(text).strip().splitlines()
    return next((line for line in lines if line.startswith("fatal:")), lines[-1] if lines else "")


def _environment() -> dict[str, str]:
    """Ours without what points git at another repository (as inside a hook), messages in English."""
    pointers = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    return {**{key: value for key, value in os.environ.items() if key not in pointers}, "LC_ALL": "C"}


def _run(
    repo: Path, *arguments: str, environment: dict[str, str] | None = None, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", "-C", str(repo), *arguments],
            input=stdin,
            capture_output=True,
            timeout=GIT_SECONDS,
            env={**_environment(), **(environment or {})},
            check=False,
        )
    except FileNotFoundError:
        raise ToolError("git is not installed", "install git: versions are taken from its history") from None
    except subprocess.TimeoutExpired:
        raise ToolError(f"git {arguments[0]} took more than {GIT_SECONDS:.0f} s in {repo}") from None
