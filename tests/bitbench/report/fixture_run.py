"""Writes a plausible run folder: every workload, every status, numbers from a small model.

The times follow bytes over bandwidth plus operations over peak, times a launch effect and block
noise from a seeded generator, so that the folder is the same each time.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from bitbench.store.schema import Case, Check, CodeIdentity, Record, RunInfo, Status, TelemetrySample
from bitbench.suite.expand import expand
from bitbench.suite.load import load_suite

RUN = "20260102-030405-llm-f1x7"
LAUNCHES = 5
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "dtype": "float32"},
    "linear-bf16": {"kind": "linear", "dtype": "bfloat16"},
    "linear-int8": {"kind": "torch_int8"},
    "binary": {"kind": "binary", "activation_bits": 8, "form": "packed"},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1, "form": "packed"},
    "ternary": {"kind": "ternary", "format": "base3", "activation_bits": 8, "form": "packed"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit", "activation_bits": 8, "form": "packed"},
    "k2": {"kind": "k_ternary", "k": 2, "activation_bits": 8, "form": "packed"},
    "k3-g64": {"kind": "k_ternary", "k": 3, "group_size": 64, "activation_bits": 8, "form": "packed"},
}
# bits a weight, operations a second, scales a row, mean nll a token, launch spread
MODEL: dict[str, tuple[float, float, int, float, float]] = {
    "linear": (32.0, 8e10, 0, 2.993, 0.004),
    "linear-bf16": (16.0, 2.5e11, 0, 2.994, 0.004),
    "linear-int8": (8.0, 4e11, 1, 3.01, 0.006),
    "binary": (1.0, 5e11, 1, 12.4, 0.005),
    "binary-w1a1": (1.0, 1.6e12, 1, 15.2, 0.005),
    "ternary": (1.6, 5.2e11, 1, 6.02, 0.005),
    "ternary-2bit": (2.0, 5.5e11, 1, 6.02, 0.005),
    "k2": (3.2, 3e11, 2, 3.9, 0.007),
    "k3": (4.8, 2.3e11, 3, 3.5, 0.007),
    "k3-g64": (4.8, 2.1e11, 96, 3.2, 0.05),
}
SHAPES = [[2048, 2048], [8192, 2048]]
MEMORY_SHAPES = [[2048, 2048], [8192, 2048], [4096, 4096]]
POINTS = [(1, "hot"), (1, "cold"), (16, "hot"), (16, "cold"), (512, "hot")]
CLAIMS: list[dict[str, Any]] = [
    {
        "id": "twenty-fold",
        "says": "packed ternary weights, scales included, take at least 19.5 times less memory than fp32",
        "metric": "memory.weight_ratio",
        "where": {"layer": "ternary", "workload": "linear", "shape": [4096, 4096]},
        "at_least": 19.5,
        "gating": True,
    },
    {
        "id": "fast-when-cold",
        "says": "a ternary layer whose weights come from memory is at least 5 times faster at one token",
        "metric": "time.speedup",
        "where": {"layer": "ternary", "tokens": 1, "cache": "cold"},
        "at_least": 5.0,
    },
    {
        "id": "near-lossless",
        "says": "k-ternary weights in groups of 64 keep perplexity within 5 % of the float weights",
        "metric": "quality.perplexity_ratio",
        "where": {"layer": "k3-g64"},
        "at_most": 1.05,
    },
    {
        "id": "wide-interval",
        "says": "three components in groups take at most 1.9 times as long as torch's int8 at 512 tokens",
        "metric": "time.latency",
        "where": {"layer": "k3-g64", "tokens": 512},
        "of": {"layer": "linear-int8"},
        "at_most": 1.9,
    },
    {
        "id": "never-measured",
        "says": "training reaches one bit a byte",
        "metric": "training.bits_per_byte",
        "where": {"layer": "ternary"},
        "at_most": 1.0,
    },
]
# Everything that can go wrong, each once: (workload, params, layer) -> status and reason.
HOT = {"shape": [8192, 2048], "cache": "hot"}
FAILURES: list[tuple[dict[str, Any], str, Status, str]] = [
    ({**HOT, "tokens": 512}, "linear-bf16", Status.OOM, "needed 5.2 GiB, 3.9 GiB were free"),
    ({**HOT, "tokens": 512}, "binary-w1a1", Status.TIMEOUT, "no answer for 120 s"),
    ({**HOT, "tokens": 16}, "binary-w1a1", Status.CRASH, "worker died of SIGSEGV"),
    ({**HOT, "tokens": 16}, "linear-int8", Status.ERROR, "RuntimeError: <b>engine</b> | not found"),
    ({**HOT, "tokens": 16}, "k2", Status.INCORRECT, "largest error 0.2 exceeds 1e-05"),
    ({**HOT, "tokens": 1}, "k3-g64", Status.FALLBACK, "served by the torch reference, not by avx2"),
    ({"shape": [2048, 2048], "cache": "cold", "tokens": 1}, "binary", Status.INVALID, "too small to be cold"),
    (
        {"model": "smollm2-135m", "text": "sotu", "tokens": 2048},
        "linear-int8",
        Status.UNSUPPORTED,
        "no bf16 head",
    ),
]


def write_run(
    folder: Path, *, quick: bool = False, launches: int = LAUNCHES, claims: list[dict[str, Any]] | None = None
) -> Path:
    """Write ``folder``/RUN and return its path."""
    path = folder / RUN
    path.mkdir(parents=True)
    launches = 2 if quick else launches
    cases = _cases(launches)
    info = _info(quick, launches, CLAIMS if claims is None else claims)
    records = [record for launch in range(launches) for record in _launch(cases, launch)]
    telemetry = [
        TelemetrySample(
            t=float(t),
            launch="launch-0",
            cpu_percent=80.0 + t,
            cpu_mhz=2600.0 - t,
            load_1m=1.5,
            memory_used=4 << 30,
        )
        for t in range(5)
    ]
    (path / "run.json").write_text(info.model_dump_json(indent=1) + "\n")
    for name, lines in (("cases", cases), ("samples", records), ("telemetry", telemetry)):
        text = "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    return path


def write_suite_run(folder: Path, suite_path: Path) -> Path:
    """A finished run of a whole suite, every case measured: as large as a real run of it."""
    suite = load_suite(suite_path)
    plan = expand(suite)
    info = _info(False, plan.launches, [])
    info = info.model_copy(update={"suite": suite.model_dump(mode="json"), "run": f"{suite.name}-whole"})
    path = folder / info.run
    path.mkdir(parents=True)
    effects = [
        {layer: math.exp(random.Random(f"{launch}{layer}").gauss(0, 0.02)) for layer in suite.layers}
        for launch in range(plan.launches)
    ]
    records = [
        _measure(case, plan.cases, launch, effects[launch][case.layer], random.Random(f"{launch}{case.id}"))
        for case in plan.cases
        for launch in range(case.launches)
    ]
    (path / "run.json").write_text(info.model_dump_json() + "\n")
    for name, lines in (("cases", plan.cases), ("samples", records)):
        text = "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    (path / "telemetry.jsonl").write_text("")
    return path


def write_training_run(folder: Path) -> Path:
    """A finished run of the suite ``training``: three seeds, two layers."""
    path = folder / "20251231-000000-training-aaaa"
    path.mkdir(parents=True)
    info = _info(False, 3, []).model_copy(update={"run": path.name, "created": "2025-12-31T00:00:00Z"})
    suite = {**info.suite, "name": "training", "title": "Training from scratch"}
    suite["layers"] = {name: LAYERS[name] for name in ("linear", "ternary")}
    info = info.model_copy(update={"suite": suite})
    cases = [
        Case(
            id=f"train{layer}", point="train", workload="pretrain", entry=0, phase="once", replicate="seeds",
            launches=3, layer=layer, params={"model": "gpt-2m"}, numerics=layer,
        )
        for layer in ("linear", "ternary")
    ]  # fmt: skip
    records = [
        Record(
            case=case.id, launch=seed, status=Status.OK,
            metrics={"training.bits_per_byte": (1.90 if case.layer == "linear" else 2.01) + 0.004 * seed},
        )
        for case in cases
        for seed in range(3)
    ]  # fmt: skip
    (path / "run.json").write_text(info.model_dump_json() + "\n")
    (path / "cases.jsonl").write_text("".join(case.model_dump_json() + "\n" for case in cases))
    (path / "samples.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    (path / "telemetry.jsonl").write_text("")
    return path


def _info(quick: bool, launches: int, claims: list[dict[str, Any]]) -> RunInfo:
    suite = {
        "schema": 1,
        "name": "llm",
        "title": "Low-bit linear layers for language models",
        "baseline": "linear",
        "layers": LAYERS,
        "workloads": [
            {"kind": "linear", "shapes": SHAPES, "tokens": [1, 16, 512], "cache": ["hot", "cold"]},
            {"kind": "decode", "model": "smollm2-135m"},
            {"kind": "perplexity", "model": "smollm2-135m", "text": "sotu"},
        ],
        "claims": claims,
        "launches": launches,
        "seed": 0,
        "threads": None,
        "shapes": {},
        "device": "auto",
        "cites": ["training"],
    }
    return RunInfo(
        run=RUN,
        created="2026-01-02T03:04:05Z",
        suite_path="suites/llm.yaml",
        suite=suite,
        quick=quick,
        threads=2,
        environment={
            "hostname": "bench-1",
            "cpu": {"model": "Example CPU <8260> @ 2.40GHz", "physical_cores": 2, "isa": ["avx2", "avx512f"]},
            "memory": {"total_bytes": 8 << 30},
            "gpus": [],
            "device": "cpu",
            "peaks": {
                "read_bytes_per_s": 1.2e10,
                "fp32_per_s": 8e10,
                "bf16_per_s": 2.5e11,
                "int8_per_s": 4e11,
            },
            "python": "3.11.2",
            "packages": {"torch": "2.13.0", "numpy": "2.3.0"},
        },
        code=CodeIdentity(bitbench="0.1.0", impl="0.1.0", commit="0123abcd" * 5, native={"isa": "avx512"}),
    )


def _cases(launches: int) -> list[Case]:
    cases: list[Case] = []

    def point(
        workload: str, entry: int, phase: Any, replicate: Any, params: dict[str, Any], count: int
    ) -> None:
        name = f"p{len(cases):04x}"
        for layer in LAYERS:
            cases.append(
                Case(
                    id=f"c{len(cases):07x}", point=name, workload=workload, entry=entry, phase=phase,
                    replicate=replicate, launches=count, layer=layer, params=params,
                    numerics="ternary" if layer == "ternary-2bit" else layer,
                )
            )  # fmt: skip

    for shape in MEMORY_SHAPES:
        point("linear", 0, "once", "exact", {"shape": shape, "measure": "memory"}, 1)
    for shape in SHAPES:
        for tokens, cache in POINTS:
            point(
                "linear", 0, "timed", "launches", {"shape": shape, "tokens": tokens, "cache": cache}, launches
            )
    point("decode", 1, "timed", "launches", {"model": "smollm2-135m"}, launches)
    params = {"model": "smollm2-135m", "text": "sotu", "tokens": 2048}
    point("perplexity", 2, "once", "documents", params, 1)
    return cases


def _launch(cases: list[Case], launch: int) -> list[Record]:
    rng = random.Random(launch)
    effect = {layer: math.exp(rng.gauss(0, MODEL[layer][4])) for layer in LAYERS}
    records = []
    for case in cases:
        if launch >= case.launches or (case.workload, case.layer) == ("decode", "linear-int8"):
            continue  # that one is left unmeasured, as if the run had been interrupted
        failure = next((f for f in FAILURES if f[1] == case.layer and f[0] == case.params), None)
        if failure is not None and (failure[2] is not Status.CRASH or launch == 1):
            records.append(
                Record(case=case.id, launch=launch, status=failure[2], reason=failure[3], wall_s=0.1)
            )
        else:
            records.append(_measure(case, cases, launch, effect[case.layer], rng))
    return records


def _measure(case: Case, cases: list[Case], launch: int, effect: float, rng: random.Random) -> Record:
    bits, peak, scales, nll, _ = MODEL[case.layer]
    check = Check(passed=True, max_error=1e-7, tolerance=1e-5, compared=4096)
    if case.params.get("measure") == "memory":
        return Record(
            case=case.id, launch=0, status=Status.OK, metrics=_memory(case.params["shape"], bits, scales)
        )
    if case.workload == "perplexity":
        spread = 0.02 * (nll - 2.99)
        documents = [nll + a + b * spread for a, b in ((-0.11, 1.0), (0.02, -0.6), (0.06, 0.2), (0.03, -0.6))]
        shared = next(c.id for c in cases if c.workload == "perplexity" and c.numerics == case.numerics)
        return Record(
            case=case.id, launch=0, status=Status.OK,
            metrics={"quality.perplexity": math.exp(sum(documents) / 4), "quality.tokens": 2048.0},
            replicates={"quality.nll": documents}, shared_from="" if shared == case.id else shared,
        )  # fmt: skip
    if case.workload == "decode":
        seconds = 0.004 + 0.035 * bits / 32 + 0.001
        metrics = {
            "decode.blocks_share": 0.035 * bits / 32 / seconds,
            "decode.head_share": 0.004 / seconds,
            "decode.rest_share": 0.001 / seconds,
            "decode.ceiling": 8.0,
            "memory.model_bytes": 28.3e6 * 4 + 106e6 * bits / 8,
            "memory.model_ratio": 538e6 / (28.3e6 * 4 + 106e6 * bits / 8),
            "cpu.utilisation": 0.9,
        }
    else:
        rows, columns = case.params["shape"]
        tokens = case.params["tokens"]
        bandwidth = 1.2e10 if case.params["cache"] == "cold" else 4e10
        memory = rows * columns * bits / 8 / bandwidth
        seconds = 2e-6 + max(memory, 2 * tokens * rows * columns / peak)
        metrics = {"cpu.utilisation": 0.95, "roofline.share": 0.8}
    blocks = [max(1, round(8e9 * seconds * effect * math.exp(rng.gauss(0, 0.004)))) for _ in range(12)]
    return Record(
        case=case.id, launch=launch, status=Status.OK, calls=8, samples_ns=blocks,
        kernel=f"{case.layer}_avx512", before=check, after=check, metrics=metrics, wall_s=1.0,
    )  # fmt: skip


def _memory(shape: list[int], bits: float, scales: int) -> dict[str, float]:
    rows, columns = shape
    codes = rows * math.ceil(columns * bits / 8)
    scale_bytes = rows * scales * 4
    weight, fp32 = codes + scale_bytes, rows * columns * 4
    layer = weight + 64
    return {
        "memory.codes_bytes": codes,
        "memory.scales_bytes": scale_bytes,
        "memory.bias_bytes": 0,
        "memory.buffers_bytes": 64,
        "memory.slack_bytes": 0,
        "memory.weight_bytes": weight,
        "memory.layer_bytes": layer,
        "memory.file_bytes": layer + 300,
        "memory.peak_bytes": 2.0 * layer,
        "memory.bits_per_weight": 8 * weight / (rows * columns),
        "memory.format_bits": bits,
        "memory.weight_ratio": fp32 / weight,
        "memory.weight_ratio_bf16": fp32 / 2 / weight,
        "memory.layer_ratio": fp32 / layer,
        "memory.file_ratio": (fp32 + 300) / (layer + 300),
    }
