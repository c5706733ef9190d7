"""Small readable networks with the linear layer left open: each file is one whole network."""

from impl.models.bert import BertConfig, BertEncoder
from impl.models.gpt import GPT, GPTConfig
from impl.models.llama import KVCache, Llama, LlamaConfig
from impl.models.mlp import MLP
from impl.models.resnet import ResNet

__all__ = [
    "GPT",
    "MLP",
    "BertConfig",
    "BertEncoder",
    "GPTConfig",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "ResNet",
]
