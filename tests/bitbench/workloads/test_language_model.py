"""The two workloads on a pretrained model, end to end on the built-in tiny one."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layer_specs import layer
from torch import nn

from bitbench.data.models import load_causal_lm
from bitbench.errors import UserError
from bitbench.layers import registry
from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.measure.clock import Budget
from bitbench.measure.timers import GraphTimer
from bitbench.measure.warmup import settle
from bitbench.store.metrics import METRICS
from bitbench.workloads import conversions
from bitbench.workloads.base import Context, PointPlan, Session, Unsupported, WorkloadKind
from bitbench.workloads.decode import DecodeSpec, DecodeSubject, DecodeWorkload
from bitbench.workloads.language_model import build_model
from bitbench.workloads.perplexity import PerplexitySpec, PerplexityWorkload
from bitbench.workloads.watches import Split

TINY = "tiny-random"


class SignSpec(LayerSpec):
    kind: str = "sign"
    wrong: bool = False
    """Compute something else than the reference says."""


class SignLinear(nn.Module):
    """A toy low-bit layer: signs in int8 and one scale a row."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, wrong: bool) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ (self.codes.float() * self.scales).T
        return y * 1.5 if self.wrong else y


class Sign(LayerKind):
    """A layer kind for these tests, which counts its conversions."""

    name = "sign"
    spec = SignSpec

    def __init__(self) -> None:
        self.conversions = 0

    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return LayerCost(
            in_features * out_features, 4 * out_features, 8.0, in_features * out_features, "fp32"
        )

    def numerics(self, spec: Any) -> dict[str, Any]:
        return {}

    def unsupported(self, spec: Any, device: str) -> str | None:
        return None if device == "cpu" else f"not on {device}"

    def random(self, spec: Any, in_features: int, out_features: int, *, bias: bool, seed: int) -> nn.Module:
        assert not bias
        codes = torch.ones(out_features, in_features, dtype=torch.int8)
        return SignLinear(codes, torch.ones(out_features, 1), spec.wrong)

    def convert(self, spec: Any, linear: nn.Linear) -> nn.Module:
        self.conversions += 1
        codes = torch.where(linear.weight >= 0, 1, -1).to(torch.int8)
        return SignLinear(codes, linear.weight.abs().mean(1, keepdim=True), spec.wrong)

    def trainable(self, spec: Any, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        raise Unsupported("not trainable")

    def reference(self, spec: Any, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        return x.double() @ (module.codes[rows].double() * module.scales[rows].double()).T

    def tolerance(self, spec: Any, in_features: int) -> float:
        return 1e-5

    def kernel(self, module: nn.Module) -> str:
        return "sign/test"

    def fallback(self, spec: Any, kernel: str) -> str | None:
        return "a test says so" if spec.wrong else None


@pytest.fixture
def sign(monkeypatch: pytest.MonkeyPatch) -> Sign:
    kind = Sign()
    monkeypatch.setitem(registry.REGISTRY._loaded, "sign", kind)
    # int8 codes are a quarter of float32, and scales come on top: let them count as compact.
    monkeypatch.setattr(conversions, "COMPACT", 0.4)
    return kind


def context(tmp_path: Path, layers: dict[str, LayerSpec], baseline: str = "linear") -> Context:
    return Context("cpu", 1, 0, tmp_path, layers, baseline)


def opened(kind: WorkloadKind, spec: Any, tmp_path: Path, layers: dict[str, LayerSpec]) -> Session:
    [point] = kind.points(spec)
    return kind.open(spec, point.params, context(tmp_path, layers))


LINEAR = {"kind": "linear"}


class TestPerplexity:
    spec = PerplexitySpec(kind="perplexity", model=TINY, text="synthetic", windows=3, length=40)

    def test_points_are_documents_measured_once(self) -> None:
        kind = PerplexityWorkload()
        assert kind.points(self.spec) == [
            PointPlan({"model": TINY, "text": "synthetic", "tokens": 120}, "once", "documents")
        ]
        assert kind.quick(self.spec).windows == 1
        assert kind.data(self.spec) == []
        real = PerplexitySpec(kind="perplexity", model="smollm2-135m", text="sotu")
        assert kind.data(real) == ["smollm2-135m", "sotu"]
        seconds = kind.estimate(real, kind.points(real)[0], layer(**LINEAR))
        assert 3 < seconds < 30
        assert kind.estimate(self.spec, kind.points(self.spec)[0], layer(**LINEAR)) < 0.5

    def test_the_float_model_scores_its_own_likelihood(self, tmp_path: Path) -> None:
        """Window by window from the full sequence's probabilities, computed another way."""
        session = opened(PerplexityWorkload(), self.spec, tmp_path, {})
        outcome = session.measure("linear", layer(**LINEAR), 0)
        lm = load_causal_lm(TINY)
        from bitbench.data.texts import load_text

        ids = lm.tokenizer.encode(load_text("synthetic"))
        for window, found in enumerate(outcome.replicates["quality.nll"]):
            piece = torch.tensor(ids[window * 40 : window * 40 + 41])
            with torch.no_grad():
                probabilities = lm.model(piece[None, :-1])[0].double().softmax(-1)
            each = [-math.log(probabilities[t, piece[t + 1]]) for t in range(40)]
            assert found == pytest.approx(sum(each) / 40, rel=1e-5)
        mean = sum(outcome.replicates["quality.nll"]) / 3
        assert outcome.metrics["quality.perplexity"] == pytest.approx(math.exp(mean))
        assert outcome.metrics["quality.tokens"] == 120
        assert set(outcome.metrics) | set(outcome.replicates) <= set(METRICS)
        assert outcome.kernel == "torch/linear/float32/cpu"

    def test_bfloat16_differs_little_and_signs_a_lot(self, tmp_path: Path, sign: Sign) -> None:
        session = opened(PerplexityWorkload(), self.spec, tmp_path, {})
        score = {
            name: session.measure(name, layer(**fields), 0).metrics["quality.perplexity"]
            for name, fields in (
                ("float", LINEAR),
                ("bf16", {"kind": "linear", "dtype": "bfloat16"}),
                ("sign", {"kind": "sign"}),
                ("again", LINEAR),
            )
        }
        assert score["again"] == score["float"]  # converting one layer leaves the shared model alone
        assert 0 < abs(score["bf16"] / score["float"] - 1) < 0.02
        assert abs(score["sign"] / score["float"] - 1) > 0.02

    @pytest.mark.parametrize(
        ("fields", "message"),
        [({"length": 600}, "beyond the context"), ({"windows": 5000, "length": 100}, "need 500001 tokens")],
    )
    def test_windows_that_do_not_fit_are_refused(
        self, tmp_path: Path, fields: dict[str, int], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            opened(PerplexityWorkload(), self.spec.model_copy(update=fields), tmp_path, {})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"model": "smollm"}, "unknown model 'smollm'"),
            ({"text": "soto"}, "did you mean 'sotu'"),
            ({"windows": 0}, "greater than or equal to 1"),
            ({"lenght": 3}, "Extra inputs"),
        ],
    )
    def test_a_bad_entry_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PerplexitySpec.model_validate(self.spec.model_dump() | fields)


class TestDecode:
    spec = DecodeSpec(kind="decode", model=TINY, prompt_tokens=6, tokens=5)

    def test_points_are_timed(self) -> None:
        kind = DecodeWorkload()
        assert kind.points(self.spec) == [PointPlan({"model": TINY, "tokens": 5}, "timed", "launches")]
        assert kind.quick(DecodeSpec(kind="decode", model=TINY)).tokens == 8
        assert kind.quick(self.spec).tokens == 5
        assert kind.data(DecodeSpec(kind="decode", model="smollm2-135m")) == ["smollm2-135m"]
        real = DecodeSpec(kind="decode", model="smollm2-135m")
        assert 0.5 < kind.estimate(real, kind.points(real)[0], layer(**LINEAR)) < 5

    def test_decoding_is_greedy_and_repeats_after_reset(self, tmp_path: Path) -> None:
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        subject = session.build("linear", layer(**LINEAR))
        assert subject.max_calls == 5
        subject.reset()
        first = [int(subject.call()) for _ in range(5)]
        subject.reset()
        assert [int(subject.call()) for _ in range(5)] == first
        # the same tokens by running the whole sequence again for each
        lm = load_causal_lm(TINY)
        ids = session.prompt  # type: ignore[attr-defined]
        with torch.no_grad():
            for token in (None, *first):
                if token is not None:
                    assert int(lm.model(ids[:, :-1])[0, -1].argmax()) == int(ids[0, -1])
                ids = torch.cat([ids, lm.model(ids)[:, -1].argmax(-1, keepdim=True)], 1)
        assert ids[0, 7:12].tolist() == first

    def test_more_calls_than_the_cache_holds_are_refused(self, tmp_path: Path) -> None:
        subject = opened(DecodeWorkload(), self.spec, tmp_path, {}).build("linear", layer(**LINEAR))
        for _ in range(5):
            subject.call()
        with pytest.raises(ValueError, match="do not fit into 11"):
            subject.call()

    def test_the_check_compares_every_projection_of_three_blocks(self, tmp_path: Path, sign: Sign) -> None:
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        check = session.build("sign", layer(kind="sign")).check()
        assert check.passed
        assert check.compared == 3 * (64 + 32 + 32 + 64 + 160 + 160 + 64)
        assert sign.conversions == 21
        wrong = session.build("wrong", layer(kind="sign", wrong=True))
        check = wrong.check()
        assert not check.passed
        assert check.max_error == pytest.approx(0.5, abs=0.01)
        assert wrong.fallback() == "a test says so"

    def test_a_layer_that_gives_nan_fails_its_check(self, tmp_path: Path, sign: Sign) -> None:
        subject = opened(DecodeWorkload(), self.spec, tmp_path, {}).build("sign", layer(kind="sign"))
        with torch.no_grad():
            subject.converted.layers["blocks.0.attention.query"].scales[3] = math.nan  # type: ignore[attr-defined]
        check = subject.check()
        assert not check.passed
        assert check.max_error == math.inf

    def test_metrics_split_the_time_and_weigh_the_model(self, tmp_path: Path, sign: Sign) -> None:
        layers = {"linear": layer(**LINEAR), "sign": layer(kind="sign")}
        session = opened(DecodeWorkload(), self.spec, tmp_path, layers)
        subjects = {name: session.build(name, spec) for name, spec in layers.items()}
        for subject in subjects.values():
            subject.timed(0.5)
        found = {name: subject.metrics() for name, subject in subjects.items()}
        for metrics in found.values():
            assert set(metrics) <= set(METRICS)
            shares = [metrics[f"decode.{part}_share"] for part in ("blocks", "head", "rest")]
            assert all(0 <= share <= 1 for share in shares)
            assert sum(shares) == pytest.approx(1, abs=0.2)
            assert metrics["decode.ceiling"] >= 1
        assert found["linear"]["memory.model_ratio"] == 1
        numbers, converted = 145_856, 129_024
        norms_and_rotation = 4 * 64 * 7 + 8 * 512 * 8
        float_bytes = 4 * (numbers - 64 * 7) + norms_and_rotation
        assert found["linear"]["memory.model_bytes"] == float_bytes
        signs = float_bytes - 3 * converted + 4 * 3 * (64 + 32 + 32 + 64 + 160 + 160 + 64)
        assert found["sign"]["memory.model_bytes"] == signs
        assert found["sign"]["memory.model_ratio"] == pytest.approx(float_bytes / signs)

    def test_the_ceiling_is_of_the_timed_steps(self, tmp_path: Path, sign: Sign) -> None:
        """Half of a step of 0.2 s lies in the converted layers; the baseline takes 0.3 s."""
        layers = {"linear": layer(**LINEAR), "sign": layer(kind="sign")}
        session = opened(DecodeWorkload(), self.spec, tmp_path, layers)
        baseline, low_bit = (session.build(name, spec) for name, spec in layers.items())
        baseline.timed(0.3)
        low_bit.timed(0.2)
        low_bit._instrumented = lambda: Split(0.1, 0.05, 0.2, 0.1)  # type: ignore[attr-defined]
        assert low_bit.metrics()["decode.ceiling"] == pytest.approx(3)
        low_bit._instrumented = lambda: Split(0.1, 0.05, 0.2, 0.25)  # type: ignore[attr-defined]
        assert "decode.ceiling" not in low_bit.metrics(), "less than nothing would remain"

    @pytest.mark.parametrize("beside", [True, False])
    def test_without_a_time_of_the_baseline_there_is_no_ceiling(
        self, tmp_path: Path, sign: Sign, beside: bool
    ) -> None:
        layers = {"linear": layer(**LINEAR), "sign": layer(kind="sign")}
        session = opened(DecodeWorkload(), self.spec, tmp_path, layers)
        if beside:  # it was built, and then failed
            session.build("linear", layers["linear"])
        subject = session.build("sign", layers["sign"])
        subject.timed(0.5)
        assert "decode.ceiling" not in subject.metrics()

    def test_the_split_is_taken_all_over_the_block(self, tmp_path: Path, sign: Sign) -> None:
        spec = self.spec.model_copy(update={"tokens": 36})
        session = opened(DecodeWorkload(), spec, tmp_path, {})
        subject = session.build("sign", layer(kind="sign"))
        assert isinstance(subject, DecodeSubject)
        marked: list[int] = []
        plain = subject._marked_step

        def spy(*arguments: Any) -> dict[str, float]:
            marked.append(subject.cache.length - spec.prompt_tokens)
            return plain(*arguments)

        subject._marked_step = spy  # type: ignore[method-assign]
        split = subject._instrumented()
        assert marked == [n for n in (3, 9, 15, 21, 27, 33) for _ in range(2)]
        assert 0 < split.converted < split.total
        assert 0 < split.head < split.total
        assert subject.cache.length == spec.prompt_tokens

    def test_every_block_decodes_the_same_tokens(self, tmp_path: Path, sign: Sign) -> None:
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        for name, spec in (("linear", layer(**LINEAR)), ("sign", layer(kind="sign"))):
            assert session.build(name, spec).block_calls == self.spec.tokens

    def test_the_steps_of_a_block_are_one_graph_on_a_gpu(self, tmp_path: Path, sign: Sign) -> None:
        """Captured from the prompt on, step after step, and never beyond the cache."""
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        subject = session.build("sign", layer(kind="sign"))
        assert isinstance(subject, DecodeSubject)
        assert not subject.replayable, "on a processor nothing is"
        lengths: list[int] = []

        class Gpu:
            def event(self) -> Any:
                at = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
                at.since = lambda earlier: 5e6
                return at

            def capture(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
                for _ in range(calls):
                    lengths.append(subject.cache.length)
                    call()
                return lambda: None

        timer = GraphTimer(Gpu(), size=subject.block_calls)  # type: ignore[arg-type]
        warmth = settle(subject, timer, Budget(seconds=0.1), step=timer.size)
        assert warmth.call_ns == 5e6 // self.spec.tokens
        first = self.spec.prompt_tokens
        assert lengths == list(range(first, first + self.spec.tokens)), "captured once"

    def test_a_graph_has_no_parts_to_time(self, tmp_path: Path, sign: Sign) -> None:
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        subject = session.build("sign", layer(kind="sign"))
        assert isinstance(subject, DecodeSubject)
        subject.on_gpu = True
        assert set(subject.metrics()) == {"memory.model_bytes", "memory.model_ratio"}

    def test_embedding_and_head_are_one_copy(self, tmp_path: Path, sign: Sign) -> None:
        session = opened(DecodeWorkload(), self.spec, tmp_path, {})
        models = [
            session.build(name, spec).model  # type: ignore[attr-defined]
            for name, spec in (("linear", layer(**LINEAR)), ("sign", layer(kind="sign")))
        ]
        assert models[0] is not models[1]
        pointers = {m.embedding.weight.data_ptr() for m in models} | {
            m.head.weight.data_ptr() for m in models
        }
        assert len(pointers) == 1

    def test_a_prompt_longer_than_the_text_repeats_it_and_the_context_is_a_limit(
        self, tmp_path: Path
    ) -> None:
        long = self.spec.model_copy(update={"prompt_tokens": 400})
        session = opened(DecodeWorkload(), long, tmp_path, {})
        assert session.prompt.shape == (1, 400)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="exceed the context"):
            opened(DecodeWorkload(), self.spec.model_copy(update={"prompt_tokens": 510}), tmp_path, {})


class TestConversions:
    def test_are_kept_and_shared_between_the_workloads(self, tmp_path: Path, sign: Sign) -> None:
        spec = layer(kind="sign")
        score = opened(PerplexityWorkload(), TestPerplexity.spec, tmp_path, {}).measure("sign", spec, 0)
        assert sign.conversions == 21
        [kept] = (tmp_path / "conversions").glob("*.safetensors")
        before = kept.stat().st_mtime_ns
        again = opened(PerplexityWorkload(), TestPerplexity.spec, tmp_path, {}).measure("sign", spec, 0)
        assert opened(DecodeWorkload(), TestDecode.spec, tmp_path, {}).build("sign", spec).check().passed
        assert sign.conversions == 21  # read, not converted
        assert kept.stat().st_mtime_ns == before
        assert again.replicates == score.replicates
        assert not list((tmp_path / "conversions").glob("*.tmp"))

    def test_depend_on_the_layer_and_the_weights(self, tmp_path: Path, sign: Sign) -> None:
        from dataclasses import replace

        lm = load_causal_lm(TINY)
        where = context(tmp_path, {})
        build_model(lm, layer(kind="sign"), where)
        build_model(lm, layer(kind="sign", wrong=True), where)
        build_model(replace(lm, identity="other weights"), layer(kind="sign"), where)
        assert sign.conversions == 3 * 21
        assert len(list((tmp_path / "conversions").glob("*.safetensors"))) == 3

    @pytest.mark.parametrize(
        "fields", [LINEAR, {"kind": "linear", "dtype": "bfloat16"}, {"kind": "torch_int8"}]
    )
    def test_that_are_only_casts_are_not_kept(self, tmp_path: Path, fields: dict[str, str]) -> None:
        converted = build_model(load_causal_lm(TINY), layer(**fields), context(tmp_path, {}))
        assert not list((tmp_path / "conversions").glob("*.safetensors"))
        with torch.no_grad():
            assert converted.model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float32

    def test_a_layer_that_cannot_run_here_says_why(self, tmp_path: Path, sign: Sign) -> None:
        where = Context("cuda", 1, 0, tmp_path, {}, "linear")
        with pytest.raises(Unsupported, match="not on cuda"):
            build_model(load_causal_lm(TINY), layer(kind="sign"), where)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "binary", "activation_bits": 8},
        {"kind": "ternary", "format": "base3", "activation_bits": 8},
        {"kind": "ternary", "format": "two_bit", "activation_bits": None},
        {"kind": "k_ternary", "k": 2, "group_size": 32, "activation_bits": 8},
        {"kind": "torch_int8"},
        {"kind": "linear", "dtype": "bfloat16"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_real_layers_decode_and_score(tmp_path: Path, fields: dict[str, Any]) -> None:
    spec = layer(**fields)
    for _ in range(2):  # converted, then read from the cache
        session = opened(DecodeWorkload(), TestDecode.spec, tmp_path, {"x": spec})
        subject = session.build("x", spec)
        check = subject.check()
        assert check.passed, check
        assert subject.metrics()["memory.model_ratio"] > 1.5
        assert subject.kernel
    outcome = opened(PerplexityWorkload(), TestPerplexity.spec, tmp_path, {}).measure("x", spec, 0)
    assert math.isfinite(outcome.metrics["quality.perplexity"])


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.workloads.registry import get\n"
        "for kind, fields in (('decode', {}), ('perplexity', {'text': 'sotu'})):\n"
        "    kind = get(kind); spec = kind.spec(kind=kind.name, model='smollm2-135m', **fields)\n"
        "    from bitbench.layers.registry import get as layer\n"
        "    one = layer('linear').spec(kind='linear')\n"
        "    for s in (spec, kind.quick(spec)):\n"
        "        print([kind.estimate(s, p, one) for p in kind.points(s)], kind.data(s))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
