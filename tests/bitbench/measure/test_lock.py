"""One measurement at a time on a device, across processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitbench.errors import UserError
from bitbench.measure.lock import LOCK_DIR, device_lock, holder, lock_dir, lock_name

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from bitbench.measure.lock import device_lock
with device_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(LOCK_DIR, str(tmp_path / "locks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "locks"


@contextmanager
def held_elsewhere(device: str = "cpu") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free(device: str = "cpu") -> bool:
    """Whether another process gets the lock at once."""
    done = subprocess.run(
        [sys.executable, "-c", HOLD, device], input="", capture_output=True, text=True, check=False
    )
    return done.returncode == 0


def test_the_second_is_refused_and_told_who_is_first() -> None:
    with held_elsewhere() as other:
        with (
            pytest.raises(
                UserError, match=rf"another bitbench \(process {other.pid}, since .*on cpu"
            ) as caught,
            device_lock("cpu"),
        ):
            pass
        assert "--wait" in caught.value.remedy
        with device_lock("cuda"):  # another device is free
            pass
    with device_lock("cpu"):
        pass


def test_a_killed_holder_leaves_no_lock_behind() -> None:
    with held_elsewhere() as other:
        other.kill()
        other.wait()
        with device_lock("cpu"):
            pass


def test_waiting_goes_on_when_the_other_ends() -> None:
    told: list[str] = []
    with held_elsewhere() as other:

        def end(message: str) -> None:
            told.append(message)
            other.terminate()

        with device_lock("cpu", wait=True, note=end):
            assert other.wait(10) != 0
    assert len(told) == 1
    assert f"process {other.pid}" in told[0]


def test_a_process_may_hold_it_twice_and_lets_go_with_the_outermost_block(folder: Path) -> None:
    with device_lock("cpu"):
        with device_lock("cpu"):
            assert holder(folder / "cpu.json").startswith(f"process {os.getpid()},")
        assert not free()
    assert free()
    assert holder(folder / "cpu.json") == "its process is not known"


def test_an_error_inside_lets_go() -> None:
    with pytest.raises(ValueError, match="inside"), device_lock("cpu"):
        raise ValueError("inside")
    assert free()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(LOCK_DIR, str(tmp_path / "file" / "locks"))
    with pytest.raises(UserError, match=r"cannot lock cpu in .*file/locks") as caught, device_lock("cpu"):
        pass
    assert LOCK_DIR in caught.value.remedy


def test_the_usual_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCK_DIR)
    assert lock_dir().name == "bitbench"
    assert lock_dir().is_absolute()


def test_gpus_are_told_apart_as_the_environment_numbers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lock_name("cpu") == "cpu"
    assert lock_name("cuda") == "cuda-0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert lock_name("cuda") == "cuda-3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932/../x")
    assert lock_name("cuda") == "cuda-GPU-8932____x"


def test_an_unsigned_lock_is_still_refused(folder: Path) -> None:
    with held_elsewhere():
        (folder / "cpu.json").write_text("torn")
        with pytest.raises(UserError, match="its process is not known"), device_lock("cpu"):
            pass
