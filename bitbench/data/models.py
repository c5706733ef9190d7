"""Pretrained models by name, loaded into the networks of :mod:`impl.models`.

A causal language model is a catalog name, ``tiny-random`` (small blocks of seeded noise, to exercise
the workloads without a download), one of :data:`bitbench.data.architectures.ARCHITECTURES` (known by
shape, its weights drawn) or the path of a GGUF file of the llama architecture.
Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitbench.data.architectures import ARCHITECTURES
from bitbench.data.catalog import entry, names
from bitbench.data.fetch import ensure
from bitbench.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from bitbench.errors import UserError
from bitbench.plugins import did_you_mean, join_names

if TYPE_CHECKING:
    from gguf import GGUFReader
    from torch import Tensor

    from impl.models.bert import BertEncoder
    from impl.models.llama import Llama

TINY = "tiny-random"
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "num_layers": 3,
    "num_heads": 4, "num_kv_heads": 2, "context": 512,
}  # fmt: skip
SEED = 20

# GGUF tensor names of a llama block -> ours. The query and key rows of such files are already
# permuted for interleaved rotary positions, which is what impl.models.llama computes.
_GGUF_BLOCK = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "feed_forward_norm",
    "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}

_BERT_BLOCK = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "feed_forward_norm",
}


@dataclass(frozen=True)
class CausalLM:
    """A language model in float32, ready for inference."""

    name: str
    identity: str
    """Changes with the weights: a sha256, or the recipe of a built-in model."""
    model: Llama
    tokenizer: Tokenizer
    drawn: bool = False
    """The linear layers of the blocks have a shape only (they are on the meta device): in float32 they
    might not fit beside what is made of them. Whoever builds a model from this one draws them."""


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder in float32, ready for inference."""

    name: str
    model: BertEncoder
    encode: Callable[[str], list[int]]
    """Text to ids, with the model's own marks around it."""

    def embeddings(self, texts: list[str]) -> Tensor:
        """Unit-length embeddings ``[len(texts), hidden]``, float32."""
        from impl.models.bert import embed_texts

        return embed_texts(self.model, self.encode, texts)


def check_causal_lm(name: str, *, scored: bool = False) -> str:
    """``name`` if it names a causal language model. Torch-free, reads no weights.

    ``scored``: its predictions are to be judged, so that it must have weights of its own.

    Raises:
        ValueError: unknown name, no such file, or no weights to score.
    """
    known = [*names("causal-lm"), TINY, *ARCHITECTURES]
    if name in known:
        if scored and name in ARCHITECTURES:
            raise ValueError(
                f"{name!r} has random weights, whose predictions mean nothing: decode it, and score "
                f"one of {join_names(names('causal-lm'))} or a .gguf file"
            )
        return name
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ValueError(f"there is no file {name}")
        return name
    raise ValueError(
        f"unknown model {name!r}; {did_you_mean(name, known)} known: {join_names(known)}, "
        "or the path of a .gguf file"
    )


def catalog_names(name: str) -> list[str]:
    """What must be fetched before the model or text called ``name`` can be loaded."""
    return [name] if name in (*names("causal-lm"), *names("text")) else []


def parameter_counts(name: str) -> tuple[int, int]:
    """Numbers in the model, and in the linear layers of its blocks; for a local file, a guess from
    its size at 4.5 bits a number. Torch-free."""
    if name == TINY:
        return 145_856, 129_024
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].parameters, ARCHITECTURES[name].block_linear_parameters
    if name in names("causal-lm"):
        item = entry(name)
        return item.parameters or 0, item.block_linear_parameters or 0
    numbers = int(Path(name).stat().st_size * 8 / 4.5)
    return numbers, numbers


def load_causal_lm(name: str) -> CausalLM:
    """Load a causal language model, fetching it first where the catalog knows it.

    Raises:
        UserError: unknown name, unsupported file, no network.
    """
    if name == TINY:
        return _tiny_random()
    if name in ARCHITECTURES:
        return _shape_only(name)
    if name in names("causal-lm"):
        item = entry(name)
        return load_gguf(ensure(name) / item.files[0].keep_as, name, item.files[0].sha256)
    try:
        path = Path(check_causal_lm(name))
    except ValueError as problem:
        raise UserError(str(problem)) from None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return load_gguf(path, name, digest)


def load_gguf(path: Path, name: str, identity: str) -> CausalLM:
    """A llama-architecture GGUF file, every tensor dequantised to float32.

    Raises:
        UserError: not a GGUF file, another architecture, or an unsupported tokenizer.
    """
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from impl.models.llama import Llama

    try:
        reader = GGUFReader(path)
        config = _llama_config(reader)
        tokenizer = BPETokenizer.from_gguf(reader)
    except (ValueError, KeyError, OSError) as problem:
        raise UserError(
            f"{path} cannot be read as a llama GGUF file: {problem}",
            "Models of another architecture or tokenizer are not supported.",
        ) from None
    state = {}
    for item in reader.tensors:
        numbers = np.require(dequantize(item.data, item.tensor_type), np.float32, ["C", "W"])
        state[_gguf_name(item.name)] = torch.from_numpy(numbers)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    with torch.device("meta"):
        model = Llama(config)
    _assign(model, state)
    return CausalLM(name, identity, model, tokenizer)


def _llama_config(reader: GGUFReader) -> Any:
    from impl.models.llama import LlamaConfig

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    if value("general.architecture") != "llama":
        raise ValueError(f"architecture {value('general.architecture')!r}, only 'llama' is known")
    tensors = {item.name: item for item in reader.tensors}
    return LlamaConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),  # GGUF lists the fastest dimension first
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_layers=value("llama.block_count"),
        num_heads=value("llama.attention.head_count"),
        num_kv_heads=value("llama.attention.head_count_kv"),
        context=value("llama.context_length"),
        rope_theta=value("llama.rope.freq_base"),
        norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in tensors,
    )


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, index, part = stem.split(".", 2)
        return f"blocks.{index}.{_GGUF_BLOCK[part]}.weight"
    return {"token_embd": "embedding", "output_norm": "norm", "output": "head"}[stem] + ".weight"


def _assign(model: Llama, state: dict[str, Tensor], *, strict: bool = True) -> None:
    """Give a model built on the meta device its tensors without copying them. Not ``strict``: what
    ``state`` lacks stays on the meta device."""
    from impl.models.llama import rotary_table

    model.load_state_dict(state, assign=True, strict=strict)
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    config = model.config
    model.rotation = rotary_table(config.context, config.head_dim, config.rope_theta)
    model.requires_grad_(False).eval()


def _tiny_random() -> CausalLM:
    import torch

    from impl.models.llama import Llama, LlamaConfig

    model = Llama(LlamaConfig(**TINY_SHAPE))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # deviation 1/sqrt(in): activations keep their size
                start = torch.empty(parameter.shape).normal_(
                    0, parameter.shape[1] ** -0.5, generator=generator
                )
                parameter.copy_(start)
    model.requires_grad_(False).eval()
    recipe = f"{TINY}:{sorted(TINY_SHAPE.items())}:{SEED}"
    return CausalLM(TINY, hashlib.sha256(recipe.encode()).hexdigest(), model, ByteTokenizer())


def _shape_only(name: str) -> CausalLM:
    """Embedding, head and norms with numbers, the linear layers of the blocks without."""
    import torch

    from impl.models.llama import Llama, LlamaConfig

    config = LlamaConfig(**ARCHITECTURES[name].config)
    with torch.device("meta"):
        model = Llama(config)
    generator = torch.Generator().manual_seed(SEED)
    state = {}
    for key, parameter in model.named_parameters():  # a tied head is not named twice
        if parameter.dim() == 1:
            state[key] = torch.ones(parameter.shape)
        elif not key.startswith("blocks."):
            # Uniform is four times quicker to draw than normal; its deviation is 1/sqrt(hidden).
            bound = (3 / config.hidden_size) ** 0.5
            state[key] = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
    _assign(model, state, strict=False)
    recipe = f"{name}:{sorted(ARCHITECTURES[name].config.items())}:{SEED}"
    return CausalLM(name, hashlib.sha256(recipe.encode()).hexdigest(), model, ByteTokenizer(), drawn=True)


def load_encoder(name: str) -> Encoder:
    """Load a sentence encoder of the catalog, fetching it first.

    Raises:
        UserError: unknown name, no network.
    """
    import json

    from safetensors.torch import load_file
    from tokenizers import Tokenizer as Engine

    from impl.models.bert import BertConfig, BertEncoder

    if entry(name).holds != "encoder":
        raise UserError(
            f"{name!r} holds a {entry(name).holds}, not an encoder", f"encoders: {names('encoder')}"
        )
    folder = ensure(name)
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        context=shape["max_position_embeddings"],
        token_types=shape["type_vocab_size"],
        norm_eps=shape["layer_norm_eps"],
    )
    model = BertEncoder(config)
    model.load_state_dict(_bert_state(load_file(folder / "model.safetensors")))
    model.requires_grad_(False).eval()
    engine = Engine.from_file(str(folder / "tokenizer.json"))
    engine.no_padding()
    engine.enable_truncation(config.context)
    return Encoder(name, model, lambda text: list(engine.encode(text).ids))


def _bert_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published BERT; the pooler, which mean pooling does not use, is left out."""
    embeddings = {
        "word_embeddings": "words", "position_embeddings": "positions",
        "token_type_embeddings": "types", "LayerNorm": "norm",
    }  # fmt: skip
    state = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if stem.startswith("embeddings.") and leaf in ("weight", "bias"):
            state[f"{embeddings[stem.removeprefix('embeddings.')]}.{leaf}"] = tensor
        elif stem.startswith("encoder.layer."):
            index, part = stem.removeprefix("encoder.layer.").split(".", 1)
            state[f"blocks.{index}.{_BERT_BLOCK[part]}.{leaf}"] = tensor
    return state
