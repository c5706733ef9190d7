from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple

import pytest

from bitbench.measure import fitness, fitness_gpu, host
from bitbench.measure.findings import Finding, Level
from bitbench.measure.fitness import GIB, verdict

Usage = namedtuple("Usage", "total used free")


def test_the_worst_finding_decides() -> None:
    def found(*levels: Level) -> list[Finding]:
        return [Finding("x", level, "") for level in levels]

    assert verdict([]) is Level.FIT
    assert verdict(found(Level.FIT, Level.DEGRADED)) is Level.DEGRADED
    assert verdict(found(Level.UNFIT, Level.DEGRADED, Level.FIT)) is Level.UNFIT


@pytest.mark.parametrize(("gib", "level"), [(16, Level.FIT), (2, Level.DEGRADED), (0.5, Level.UNFIT)])
def test_memory(monkeypatch: pytest.MonkeyPatch, gib: float, level: Level) -> None:
    monkeypatch.setattr(host, "memory_available", lambda: int(gib * GIB))
    (finding,) = fitness.memory()
    assert finding.level is level
    assert bool(finding.remedy) == bool(finding.why) == (level is not Level.FIT)


@pytest.mark.parametrize(("gib", "level"), [(50, Level.FIT), (1, Level.DEGRADED), (0.01, Level.UNFIT)])
def test_disk(monkeypatch: pytest.MonkeyPatch, gib: float, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(gib * GIB)))
    assert fitness.disk()[0].level is level


def test_unwritable_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert fitness.disk()[0].level is Level.UNFIT


def answer(monkeypatch: pytest.MonkeyPatch, stdout: str = "", stderr: str = "", code: int = 0) -> None:
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(fitness.subprocess, "run", lambda *_, **__: done)


NATIVE = '{"native": {"library": "lib.so", "isa": "avx2", "isas": ["avx2"]}, "torch": "2", "cuda": false}'


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, NATIVE)
    assert fitness.kernels()[-1].level is Level.FIT
    assert "avx2" in fitness.kernels()[-1].found
    answer(monkeypatch, '{"native": {"library": null, "why_not": "not built"}, "torch": "2", "cuda": false}')
    assert fitness.kernels()[-1].level is Level.DEGRADED
    assert "not built" in fitness.kernels()[-1].found
    answer(monkeypatch, stderr="Traceback\nImportError: no torch", code=1)
    assert fitness.kernels()[-1].level is Level.UNFIT
    assert "no torch" in fitness.kernels()[-1].found


@pytest.mark.parametrize(
    ("cuda", "built", "present", "level", "word"),
    [
        (True, "12.8", True, Level.FIT, "usable GPU"),
        (False, None, False, Level.FIT, "CPU only"),
        (False, None, True, Level.DEGRADED, "without CUDA"),
        (False, "13.0", True, Level.DEGRADED, "CUDA 13.0"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, built: str | None, present: bool, level: Level, word: str
) -> None:
    monkeypatch.setattr(fitness_gpu, "present", lambda: present)
    finding = fitness._torch({"torch": "2.13", "cuda": cuda, "built": built})
    assert finding.level is level
    assert word in finding.found + finding.why


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise OSError("no /proc")

    monkeypatch.setattr(fitness, "CHECKS", {"load": broken})
    (finding,) = fitness.examine()
    assert finding.level is Level.DEGRADED
    assert "no /proc" in finding.found
