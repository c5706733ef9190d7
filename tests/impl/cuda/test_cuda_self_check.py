"""The check that a device gets on its first use: what it finds, what comes of it, what is remembered."""

from __future__ import annotations

import ctypes
import json
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated import EmulatedLibrary
from weights import ternary

from impl import native
from impl.native.calls import LINEAR_CALL
from impl.native.cuda import PreparedCudaLinear, devices, image_check, self_check
from impl.native.library import NativeError

pytestmark = pytest.mark.usefixtures("one_thread")
GPU = torch.device("cuda", 0)
IMAGE_CASES = image_check.CASES
_Y = 7  # place of y's address among the fields of a call


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases take seconds here."""
    binary = self_check._BINARY[:1] + self_check._BINARY[5:6]
    monkeypatch.setattr(self_check, "CASES", self_check._SMALL[:3] + self_check._FLOAT[:1] + binary)
    monkeypatch.setattr(image_check, "CASES", image_check.CASES[:1])


Damage = Callable[[str], None]


@pytest.fixture
def damage(emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> Damage:
    """Makes a kernel write one wrong value, where it is chosen by name or of itself."""

    def spoil(kernel: str) -> None:
        run = emulated.linear

        def wrong(call: bytes, index: int, stream: int) -> int:
            status: int = run(call, index, stream)
            if emulated.last_kernel().decode().split("/")[3] == kernel:
                ctypes.memset(LINEAR_CALL.unpack(call)[_Y], 0x3F, 4)
            return status

        monkeypatch.setattr(emulated, "linear", wrong)

    return spoil


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that were checked."""
    made: list[int] = []
    check = self_check.check

    def noted(library: Any, index: int) -> dict[str, str]:
        made.append(index)
        return check(library, index)

    monkeypatch.setattr(self_check, "check", noted)
    return made


def test_every_kernel_passes_and_serves_cases(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = self_check._SMALL + self_check._FLOAT + self_check._BINARY[:9]
    monkeypatch.setattr(self_check, "CASES", cases)
    monkeypatch.setattr(image_check, "CASES", IMAGE_CASES)
    assert self_check.check(emulated, 0) == {}
    samples = [self_check._Sample(case, torch.device("cpu"), 0) for case in cases]
    for name in emulated.kernels_here:
        emulated.select(name)
        assert sum(sample.served() for sample in samples) >= 3, name
    emulated.select("")


def test_a_device_is_checked_once_and_remembered_on_disk(
    emulated: EmulatedLibrary, checks: list[int], fresh: Path
) -> None:
    for _ in range(3):
        assert native.cuda.why_not(0, "linear", "base3") == ""
    assert checks == [0]
    (record,) = fresh.glob("self-check-*.json")
    assert json.loads(record.read_text())["device"] == "Emulated GPU 0"
    devices.forget()
    assert native.cuda.why_not(0, "linear", "base3") == ""
    assert checks == [0]
    assert native.cuda.why_not(1, "linear", "base3") == ""
    assert checks == [0, 1]
    for change in ("driver_version", "device_name"):
        devices.forget()
        setattr(emulated, change, "another")
        assert native.cuda.why_not(0, "linear", "base3") == ""
    assert checks == [0, 1, 0, 0]
    record.write_text("{")
    devices.forget()
    del emulated.driver_version, emulated.device_name
    assert native.cuda.why_not(0, "linear", "base3") == ""
    assert checks == [0, 1, 0, 0, 0]


def test_a_cache_that_cannot_be_written_costs_a_check_a_process(
    emulated: EmulatedLibrary,
    checks: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        devices.forget()
        assert native.cuda.why_not(0, "linear", "base3") == ""
    assert checks == [0, 0]


def test_a_wrong_kernel_is_left_out_and_named(emulated: EmulatedLibrary, damage: Damage, fresh: Path) -> None:
    _, weight = ternary("two_bit", 1, 40, 128)
    call = PreparedCudaLinear(weight, None, 8)
    x = torch.ones(1, 128)
    call(x)
    first = call.kernel.split("/")[3]
    assert first != "any"
    damage(first)
    with pytest.warns(
        RuntimeWarning, match=f"fail their self-check on cuda:0 .*{first}: 1 of 45 values are wrong"
    ):
        assert native.cuda.why_not(0, "linear", "two_bit") == ""
    found = native.cuda.found_wrong(0)
    assert found is not None
    assert set(found) == {first}
    call(x)
    assert call.kernel.split("/")[3] != first
    assert not list(fresh.glob("*"))
    assert emulated.selection.name == ""


@pytest.mark.parametrize(
    ("kernel", "lost", "kept"), [("any", "linear", "float_linear"), ("float", "float_linear", "linear")]
)
def test_without_a_needed_kernel_the_reference_serves(
    emulated: EmulatedLibrary,
    damage: Damage,
    kernel: str,
    lost: str,
    kept: str,
) -> None:
    damage(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert native.uses_native(GPU, kept)
    with native.backend("auto"), pytest.warns(RuntimeWarning, match=f"torch reference: {kernel} on cuda:0"):
        assert not native.uses_native(GPU, lost)
    with (
        native.backend("native"),
        pytest.raises(NativeError, match=f"'native' was asked for, but {kernel} on cuda:0"),
    ):
        native.uses_native(GPU, lost)


def test_results_that_were_never_written_are_noticed(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "linear", lambda *_: 0)
    assert set(self_check.check(emulated, 0)) == set(emulated.kernels_here)


@pytest.mark.parametrize("entry", ["cuda_pack", "cuda_unpack", "dequantize"])
def test_wrong_packing_is_noticed(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    if entry == "dequantize":
        monkeypatch.setattr(emulated, "dequantize", lambda *_: 0)
    else:
        function = emulated.function
        monkeypatch.setattr(
            emulated, "function", lambda name: (lambda *_: 0) if name == entry else function(name)
        )
    assert set(self_check.check(emulated, 0)) == {entry.removeprefix("cuda_")}


def test_errors_of_the_library_count_as_wrong(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "linear", lambda *_: 2)
    assert all("_linear" in reason for reason in self_check.check(emulated, 0).values())
    assert native.cuda.found_wrong(0) is None


def test_a_kernel_that_refuses_what_it_must_take_is_wrong(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "linear_workspace", lambda *_: -1)
    wrong = self_check.check(emulated, 0)
    assert set(wrong) == {"any", "float"}
    assert "it refuses what it should take" in wrong["any"]


def test_a_device_that_breaks_is_an_error_with_a_way_out(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(emulated, "linear", broken)
    with pytest.raises(
        NativeError, match=r"illegal memory access.*start it again with BITIMPL_BACKEND=torch"
    ):
        native.cuda.why_not(0, "linear", "base3")


def test_kernels_without_proof_are_not_run(
    emulated: EmulatedLibrary, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "unproven", {"any": "never seen"})
    damage("any")
    assert "any" not in self_check.check(emulated, 0)


def test_while_a_graph_is_captured_the_check_is_put_off(emulated: EmulatedLibrary, checks: list[int]) -> None:
    emulated.recording = True
    with pytest.warns(RuntimeWarning, match="put off, since a CUDA graph is being captured"):
        assert native.serves_cuda(0, "linear", "base3")
    assert checks == []
    assert not native.cuda.settled(0)
    emulated.recording = False
    assert native.serves_cuda(0, "linear", "base3")
    assert checks == [0]
    assert native.cuda.settled(0)
    emulated.recording = True
    devices.forget()
    assert native.cuda.why_not(0, "linear", "base3") == ""  # the record on disk serves
    assert native.cuda.settled(0)
    assert checks == [0]


def test_modes_of_the_first_caller_make_no_difference(emulated: EmulatedLibrary) -> None:
    state = torch.get_rng_state()
    native.cuda.select_kernel("any")
    try:
        torch.set_default_dtype(torch.float64)
        with (
            torch.device("meta"),
            torch.inference_mode(),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            assert self_check.check(emulated, 0) == {}
    finally:
        torch.set_default_dtype(torch.float32)
    assert emulated.selection.name == "any"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_preference_of_the_first_caller_makes_no_difference(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, str]] = set()
    run = emulated.linear

    def watched(call: bytes, index: int, stream: int) -> int:
        seen.add(emulated.choice[:2])
        status: int = run(call, index, stream)
        return status

    monkeypatch.setattr(emulated, "linear", watched)
    emulated.prefer("gemm")
    try:
        assert self_check.check(emulated, 0) == {}
        assert emulated.choice[:2] == ("", "gemm")
    finally:
        emulated.prefer("")
    assert {preferred for _, preferred in seen} == {""}


def test_threads_wait_for_one_check(
    emulated: EmulatedLibrary,
    checks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = self_check.check

    def slow(library: Any, index: int) -> dict[str, str]:
        time.sleep(0.05)
        return check(library, index)

    monkeypatch.setattr(self_check, "check", slow)
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.append(native.serves_cuda(0, "linear", "base3")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4
    assert checks == [0]
