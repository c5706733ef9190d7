"""Training from scratch: paired across layers, scored on bytes never trained on."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_specs import layer

from bitbench.errors import UserError
from bitbench.store.metrics import METRICS
from bitbench.workloads.base import Context, Outcome, PointPlan, Unsupported
from bitbench.workloads.pretrain import (
    HELD_OUT_WINDOWS,
    PretrainSession,
    PretrainSpec,
    PretrainWorkload,
    held_out_windows,
)

SPEC = PretrainSpec(
    kind="pretrain", model="gpt-pico", text="synthetic", steps=30, batch=8, context=32, lr=5e-3
)


def session(tmp_path: Path, **changes: Any) -> PretrainSession:
    made = PretrainWorkload().open(
        SPEC.model_copy(update=changes), {}, Context("cpu", 1, 0, tmp_path, {}, "linear")
    )
    assert isinstance(made, PretrainSession)
    return made


def measure(tmp_path: Path, seed: int = 0, fields: dict[str, Any] | None = None, **changes: Any) -> Outcome:
    return session(tmp_path, **changes).measure("x", layer(**(fields or {"kind": "linear"})), seed)


def test_points_ask_for_one_record_a_seed() -> None:
    kind = PretrainWorkload()
    params = {"model": "gpt-pico", "text": "synthetic", "steps": 30}
    assert kind.points(SPEC) == [PointPlan(params, "once", "seeds", launches=3)]
    quick = kind.quick(PretrainSpec(kind="pretrain", text="sotu"))
    assert (quick.seeds, quick.steps) == (1, 20)
    assert kind.data(SPEC) == []
    assert kind.data(quick) == ["sotu"]
    default = PretrainSpec(kind="pretrain", text="sotu")
    seconds = kind.estimate(default, kind.points(default)[0], layer(kind="ternary"))
    assert kind.estimate(default, kind.points(default)[0], layer(kind="linear")) < seconds < 120
    assert kind.estimate(SPEC, kind.points(SPEC)[0], layer(kind="linear")) < 2


def test_training_lowers_the_held_out_bits(tmp_path: Path) -> None:
    short, long = (measure(tmp_path, steps=steps).metrics for steps in (1, 60))
    assert short["training.bits_per_byte"] == pytest.approx(8, abs=1)  # 256 symbols: eight bits
    assert long["training.bits_per_byte"] < 5
    assert long["training.loss"] / math.log(2) < 5
    assert set(long) <= set(METRICS)
    assert long["training.seconds"] > 0


def test_a_seed_gives_the_same_number_and_another_seed_another(tmp_path: Path) -> None:
    one, same, other = (measure(tmp_path, seed, steps=5).metrics for seed in (4, 4, 5))
    assert one["training.bits_per_byte"] == same["training.bits_per_byte"]
    assert one["training.bits_per_byte"] != other["training.bits_per_byte"]
    shifted = measure(tmp_path, 0, steps=5, first_seed=4).metrics
    assert shifted["training.bits_per_byte"] == one["training.bits_per_byte"]


def test_layers_of_one_seed_start_equal_and_see_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the networks were asked, and what they started from, whatever their layers draw."""
    from impl.models.gpt import GPT

    seen: dict[str, list[torch.Tensor]] = {}
    starts: dict[str, torch.Tensor] = {}
    name = ""
    loss = GPT.loss

    def spy(self: GPT, ids: torch.Tensor) -> torch.Tensor:
        starts.setdefault(name, self.blocks[0].up.weight.detach().clone())
        seen.setdefault(name, []).append(ids.clone())
        return loss(self, ids)

    monkeypatch.setattr(GPT, "loss", spy)
    for name, fields in (  # noqa: B007 - the spy reads it
        ("linear", {"kind": "linear"}),
        ("ternary", {"kind": "ternary"}),
        ("k2", {"kind": "k_ternary", "k": 2}),
    ):
        measure(tmp_path, 1, fields, steps=3)
    for other in ("ternary", "k2"):
        assert torch.equal(starts["linear"], starts[other])
        assert all(torch.equal(a, b) for a, b in zip(seen["linear"], seen[other], strict=True))
    assert not torch.equal(seen["linear"][0], seen["linear"][1])


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "linear", "dtype": "bfloat16"},
        {"kind": "binary", "activation_bits": 8},
        {"kind": "ternary", "activation_bits": 8},
        {"kind": "k_ternary", "k": 2, "activation_bits": 8},
        {"kind": "latent_free", "activation_bits": 8},
    ],
    ids=lambda fields: str(fields["kind"]),
)
def test_quantised_layers_learn(tmp_path: Path, fields: dict[str, Any]) -> None:
    metrics = measure(tmp_path, 0, fields, steps=40).metrics
    assert metrics["training.bits_per_byte"] < 6
    float_bits = measure(tmp_path, 0, steps=40).metrics["training.bits_per_byte"]
    assert metrics["training.bits_per_byte"] != float_bits


def test_what_cannot_be_trained_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="inference"):
        measure(tmp_path, 0, {"kind": "torch_int8"})


def test_held_out_windows_share_no_scored_byte() -> None:
    data = torch.arange(100_000)
    windows = held_out_windows(data, 64)
    assert windows.shape == (HELD_OUT_WINDOWS, 65)
    scored = windows[:, 1:].flatten()
    assert len(scored.unique()) == len(scored)
    assert windows[-1, -1] > 90_000  # spread over all of it
    few = held_out_windows(torch.arange(200), 64)
    assert few.shape == (3, 65)


def test_bad_entries_are_refused(tmp_path: Path) -> None:
    for fields, message in (
        ({"model": "gpt-nono"}, "did you mean 'gpt-nano'"),
        ({"text": "shakespeare"}, "unknown text"),
        ({"lr": 0.0}, "greater than 0"),
        ({"step": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainSpec.model_validate(SPEC.model_dump() | fields)
    short = tmp_path / "short.txt"
    short.write_text("a few words only, twenty bytes or so")
    with pytest.raises(UserError, match="has a part of 4 bytes"):
        session(tmp_path, text=str(short))


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.workloads.registry import get\n"
        "from bitbench.layers.registry import get as layer\n"
        "kind = get('pretrain'); spec = kind.spec(kind='pretrain', text='synthetic')\n"
        "one = layer('linear').spec(kind='linear')\n"
        "print([kind.estimate(spec, p, one) for p in kind.points(kind.quick(spec))], kind.data(spec))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
