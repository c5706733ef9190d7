"""Weights of other libraries: Hugging Face BitNet models and GGUF files, both ways.

    config = save_huggingface(model, "folder", storage="packed")
    model = load_huggingface(build_float_model(), "folder")
    save_gguf(model, "model.gguf", type="TQ1_0")
    model = load_gguf(build_float_model(), "model.gguf")

Nothing here runs code from a file: weights are read from safetensors and GGUF only.
"""

from impl.interchange.bitnet_config import BitNetConfig
from impl.interchange.gguf_blocks import decode_blocks, encode_blocks
from impl.interchange.gguf_files import GGUFContents, load_gguf, read_gguf, save_gguf
from impl.interchange.huggingface import from_huggingface, to_huggingface
from impl.interchange.huggingface_files import load_huggingface, read_huggingface, save_huggingface

__all__ = [
    "BitNetConfig",
    "GGUFContents",
    "decode_blocks",
    "encode_blocks",
    "from_huggingface",
    "load_gguf",
    "load_huggingface",
    "read_gguf",
    "read_huggingface",
    "save_gguf",
    "save_huggingface",
    "to_huggingface",
]
