"""Versions of a package as snapshots: what belongs to one, when it is made, and every way to fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import ToolError, UserError
from bitbench.execute import sides, snapshots
from bitbench.execute.sides import SideCode, prepare_side


def git(repo: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(repo), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(repo: Path, message: str) -> str:
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", message)
    return git(repo, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two versions of the package ``tool``, and a private cache."""
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))
    for name in sides.BUILD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "repo"
    (place / "tool").mkdir(parents=True)
    git(tmp_path, "init", "-q", "-b", "main", str(place))
    (place / ".gitignore").write_text("*.pyc\nmade/\n")
    (place / "tool" / "__init__.py").write_text("VERSION = 1\n")
    (place / "README").write_text("first\n")
    commit(place, "one")
    (place / "tool" / "__init__.py").write_text("VERSION = 2\n")
    (place / "README").write_text("second\n")
    commit(place, "two")
    return place


@pytest.fixture
def prepare(repo: Path) -> Callable[..., SideCode]:
    def made(ref: str | None, packages: tuple[str, ...] = ("tool",), **options: Any) -> SideCode:
        notes: list[str] = []
        options = {"repo": repo, "note": notes.append, **options}
        found = prepare_side(options.pop("side", "base"), ref, packages=packages, **options)
        made.notes = notes  # type: ignore[attr-defined]
        return found

    return made


def source(side: SideCode) -> str:
    return (Path(side.root) / "tool" / "__init__.py").read_text()


def test_a_version_is_what_its_commit_holds(prepare: Any, repo: Path) -> None:
    one, two = prepare("HEAD~1"), prepare("main", side="head")
    assert (source(one), source(two)) == ("VERSION = 1\n", "VERSION = 2\n")
    head = git(repo, "rev-parse", "HEAD")
    assert two.label == f"main ({head[:8]})"
    assert (two.side, two.packages) == ("head", ["tool"])
    assert two.code.commit == head
    assert not two.code.dirty
    assert two.code.label == two.label
    assert one.code.digest != two.code.digest
    assert two.code.native == {"library": None, "library_sha256": None}
    assert not (Path(two.root) / "README").exists()  # belongs to no package
    assert git(repo, "status", "--porcelain") == ""


def test_the_working_tree_counts_as_it_is(prepare: Any, repo: Path) -> None:
    (repo / "tool" / "__init__.py").write_text("VERSION = 3\n")
    (repo / "tool" / "new.py").write_text("")
    (repo / "tool" / "ignored.pyc").write_text("")
    script = repo / "tool" / "script.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (repo / "tool" / "link.py").symlink_to("new.py")
    found = prepare(None, side="head")
    place = Path(found.root) / "tool"
    assert source(found) == "VERSION = 3\n"
    names = sorted(path.name for path in place.iterdir())
    assert names == ["__init__.py", "link.py", "new.py", "script.sh"]
    assert (place / "link.py").is_symlink()
    assert os.access(place / "script.sh", os.X_OK)
    assert found.code.dirty
    assert found.label == f"working tree ({git(repo, 'rev-parse', 'HEAD')[:8]}, changed)"
    before = found.code.digest
    commit(repo, "three")
    assert prepare("HEAD").code.digest == before
    assert prepare("HEAD").root == found.root


def test_an_unchanged_working_tree_is_its_commit(prepare: Any, repo: Path) -> None:
    (repo / "README").write_text("changed, but no part of the package\n")
    found, committed = prepare(None), prepare("HEAD")
    assert found.root == committed.root
    assert not found.code.dirty
    assert found.label.startswith("working tree (")
    assert "changed" not in found.label


def test_a_deleted_file_is_gone_from_the_working_tree(prepare: Any, repo: Path) -> None:
    (repo / "tool" / "extra.py").write_text("")
    commit(repo, "three")
    (repo / "tool" / "extra.py").unlink()
    assert not (Path(prepare(None).root) / "tool" / "extra.py").exists()
    assert (Path(prepare("HEAD").root) / "tool" / "extra.py").exists()


def test_a_snapshot_is_made_once_and_anew_where_it_was_left_half_made(prepare: Any) -> None:
    first = prepare("HEAD")
    assert [note.split(":")[0] for note in prepare.notes] == ["base"]
    again = prepare("HEAD")
    assert prepare.notes == []
    assert again == first
    (Path(first.root) / sides.DONE).unlink()
    (Path(first.root) / "tool" / "__init__.py").write_text("VERSION = 'half'\n")
    assert source(prepare("HEAD")) == "VERSION = 2\n"
    assert len(prepare.notes) == 1


def test_packages_under_src_and_single_modules(prepare: Any, repo: Path) -> None:
    (repo / "src").mkdir()
    shutil.move(repo / "tool", repo / "src" / "tool")
    (repo / "src" / "more.py").write_text("")
    commit(repo, "src layout")
    found = prepare("HEAD", ("tool", "more"))
    assert Path(found.root).name == "src"
    assert source(found) == "VERSION = 2\n"


def test_a_build_command_sees_the_whole_repository_and_may_make_the_package(prepare: Any, repo: Path) -> None:
    found = prepare("HEAD", ("tool", "made"), build_command="mkdir made && cp README made/__init__.py")
    assert (Path(found.root) / "made" / "__init__.py").read_text() == "second\n"
    assert not (repo / "made").exists()
    other = prepare("HEAD", ("tool", "made"), build_command="mkdir made && echo 1 > made/__init__.py")
    assert other.root != found.root


@pytest.mark.parametrize("ref", ["nowhere", "mian", "--all", "HEAD:README"])
def test_an_unknown_version_is_refused(prepare: Any, ref: str) -> None:
    with pytest.raises(UserError, match="names no commit") as caught:
        prepare(ref)
    if ref == "mian":
        assert "did you mean 'main'?" in caught.value.remedy


def test_a_shallow_clone_is_named_as_the_cause(prepare: Any, repo: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo}", str(tmp_path / "shallow"))
    with pytest.raises(UserError, match="names no commit") as caught:
        prepare("HEAD~1", repo=tmp_path / "shallow")
    assert "git fetch --unshallow" in caught.value.remedy


def test_a_folder_outside_git_is_refused(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in a git repository"):
        prepare("HEAD", repo=tmp_path)


def test_what_git_says_is_passed_on(prepare: Any, repo: Path) -> None:
    (repo / ".git" / "config").write_text("[broken\n")
    with pytest.raises(UserError, match=r"git refuses .*bad config"):
        prepare("HEAD")


def test_inside_a_hook_of_another_repository(
    prepare: Any, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert source(prepare("main")) == "VERSION = 2\n"


def test_a_missing_package_is_refused_before_and_after_a_build(prepare: Any) -> None:
    with pytest.raises(UserError, match="holds nothing of other") as caught:
        prepare("HEAD", ("other",))
    assert "--package" in caught.value.remedy
    with pytest.raises(UserError, match="has no package 'other'"):
        prepare("HEAD", ("tool", "other"))
    with pytest.raises(UserError, match="has no package 'made'"):
        prepare("HEAD", ("made",), build_command="true")


def test_a_failing_build_shows_its_last_lines(prepare: Any) -> None:
    command = "for i in $(seq 40); do echo line $i; done; echo no such header >&2; exit 3"
    with pytest.raises(ToolError, match=r"exit code 3") as caught:
        prepare("HEAD", build_command=command)
    assert "no such header" in caught.value.message
    assert "line 40" in caught.value.message
    assert "line 20\n" not in caught.value.message
    with pytest.raises(ToolError):  # not taken for finished the next time
        prepare("HEAD", build_command=command)


NATIVE = """
cmake_minimum_required(VERSION 3.21)
project(tiny LANGUAGES CXX)
add_library(bitimpl_cpu SHARED tiny.cpp)
install(TARGETS bitimpl_cpu LIBRARY DESTINATION impl/_native)
"""


@pytest.fixture
def native(repo: Path) -> Path:
    (repo / "impl").mkdir()
    (repo / "impl" / "__init__.py").write_text("")
    (repo / "csrc").mkdir()
    (repo / "csrc" / "CMakeLists.txt").write_text(NATIVE)
    (repo / "csrc" / "tiny.cpp").write_text('extern "C" int tiny() { return 1; }\n')
    commit(repo, "native")
    return repo


@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("cmake") is None, reason="needs a compiler")
def test_the_kernels_are_built_into_the_snapshot(prepare: Any, native: Path) -> None:
    found = prepare("HEAD", ("impl",))
    library = Path(found.root) / "impl" / "_native" / "libbitimpl_cpu.so"
    assert found.code.native["library"] == library.name
    assert not (Path(found.root) / "build").exists()
    library.unlink()  # damaged: built anew, not run without
    assert prepare("HEAD", ("impl",)).code == found.code
    assert library.exists()
    (native / "csrc" / "tiny.cpp").write_text("this is no program\n")
    with pytest.raises(ToolError, match=r"the kernels of working tree .* cannot be built") as caught:
        prepare(None, ("impl",))
    assert "error" in caught.value.message


def test_no_compiler_is_said_before_anything_is_built(
    prepare: Any, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolError, match="no C\\+\\+ compiler"):
        prepare("HEAD", ("impl",))


def test_files_saved_while_they_are_copied(prepare: Any, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, edits = snapshots._copy, iter(["VERSION = 4\n"])

    def copy(source: Path, target: Path, entry: snapshots.Entry) -> None:
        if text := next(edits, ""):
            (repo / "tool" / "__init__.py").write_text(text)
        real(source, target, entry)

    monkeypatch.setattr(snapshots, "_copy", copy)
    found = prepare(None)
    assert source(found) == "VERSION = 4\n"
    assert found.code.digest == snapshots.tree_of_files(repo, sides._parts(["tool"], None)).digest


def test_files_that_never_rest_are_refused(prepare: Any, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path, entry: snapshots.Entry) -> None:
        raise snapshots._Changed

    monkeypatch.setattr(snapshots, "_copy", copy)
    with pytest.raises(UserError, match="change while they are copied"):
        prepare(None)


def test_a_cache_that_cannot_be_written_names_the_variable(
    prepare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot make") as caught:
        prepare("HEAD")
    assert "BITBENCH_CACHE" in caught.value.remedy


def test_snapshots_that_nobody_used_for_long_are_removed(prepare: Any) -> None:
    old, new = prepare("HEAD~1"), prepare("HEAD")
    past = 0.0
    os.utime(Path(old.root) / sides.DONE, (past, past))
    prepare("HEAD")
    assert not Path(old.root).exists()
    assert Path(new.root).exists()
    assert json.loads((Path(new.root) / sides.DONE).read_text())["label"] == new.label


def test_the_head_of_a_run_says_what_serves_each_side(prepare: Any) -> None:
    from bitbench.execute.runner import Machine
    from bitbench.suite.expand import expand
    from bitbench.suite.schema import Suite

    suite = Suite.model_validate(
        {
            "schema": 1,
            "name": "tiny",
            "baseline": "linear",
            "layers": {"linear": {"kind": "linear"}},
            "workloads": [{"kind": "linear", "shapes": [[8, 8]]}],
        }
    )
    probed = {"isa": "avx512", "library": "libbitimpl_cpu.so", "library_sha256": "installed", "abi": 3}
    pair = (prepare("HEAD~1"), prepare("HEAD", side="head"))
    machine = Machine("cpu", 1, {"native": probed})
    info = sides.describe_sides(expand(suite), machine, "r", "s.yaml", pair, "gate", {"linear": 0.1})
    assert (info.purpose, info.slowdown) == ("gate", 0.1)
    assert {code.label for code in info.sides.values()} == {side.label for side in pair}
    assert info.sides["base"].native == probed  # impl is not what is compared
    own = [replace(side, packages=["impl"]) for side in pair]
    without = sides.describe_sides(expand(suite), machine, "r", "s.yaml", (own[0], own[1]), "gate", {})
    assert without.sides["head"].native == {"library": None, "library_sha256": None}
    built = {"library": "libbitimpl_cpu.so", "library_sha256": "own"}
    code = own[1].code.model_copy(update={"native": built})
    with_own = (own[0], replace(own[1], code=code))
    mixed = sides.describe_sides(expand(suite), machine, "r", "s.yaml", with_own, "gate", {})
    assert mixed.code.native == {"isa": "avx512", **built}
