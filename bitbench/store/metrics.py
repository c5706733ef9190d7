"""Every figure that a case can carry: its unit, which way is better, what it means.

A metric absent from this table cannot be recorded, claimed or reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Metric:
    unit: str
    better: Direction
    meaning: str


MEASURED_BYTES = frozenset({"memory.peak_bytes", "memory.training_peak_bytes"})
"""Figures of memory that are measured. All others are counted: exact, and the same everywhere."""

WITHOUT_RATIO = frozenset({"quality.accuracy", "quality.accuracy_change"})
"""Shares of single things that are right or wrong: two of them are compared by their difference."""

METRICS: dict[str, Metric] = {
    "time.latency": Metric("s", "lower", "time of one call, median of blocks, mean over launches"),
    "time.mean": Metric("s", "lower", "time of one call, mean of blocks: with what the scheduler took"),
    "time.speedup": Metric("x", "higher", "latency of the baseline layer / latency of this layer"),
    "time.speedup_best_float": Metric(
        "x", "higher", "latency of the fastest nn.Linear dtype here / latency of this layer"
    ),
    "time.eager": Metric(
        "s", "lower", "time of one call launched from the host, where its latency is of a replayed graph"
    ),
    "roofline.share": Metric("", "higher", "reached share of the measured limit that binds"),
    "decode.tokens_per_second": Metric("tokens/s", "higher", "batch-1 decoding rate"),
    "decode.prefill_tokens_per_second": Metric("tokens/s", "higher", "rate of reading a prompt, batch 1"),
    "inference.images_per_second": Metric("images/s", "higher", "images classified, at the point's batch"),
    "decode.blocks_share": Metric("", "neither", "share of a token's time in transformer blocks"),
    "decode.head_share": Metric("", "neither", "share of a token's time in the output head"),
    "decode.rest_share": Metric("", "neither", "share of a token's time outside blocks and head"),
    "decode.ceiling": Metric("x", "higher", "speed-up if converted layers took no time at all"),
    "cpu.utilisation": Metric("", "neither", "processor time / (wall time x threads), timed blocks"),
    "cpu.neighbours": Metric("", "neither", "processes that kept a core busy each meanwhile"),
    "gpu.utilisation": Metric("", "higher", "share of time a kernel ran on the GPU"),
    "gpu.memory_utilisation": Metric("", "neither", "share of time GPU memory was read or written"),
    "gpu.power_w": Metric(
        "W", "lower", "mean power of the GPU, the layer at work alone where the entry says `load`"
    ),
    "gpu.energy_j": Metric("J", "lower", "energy of the GPU a call, by its counter over >= 2 s"),
    "gpu.calls_per_s": Metric("1/s", "higher", "calls a second of a layer kept at work alone for seconds"),
    "gpu.sm_mhz": Metric("MHz", "neither", "mean SM clock of the GPU, as its power"),
    "memory.codes_bytes": Metric("B", "lower", "packed weight codes, or the float weight"),
    "memory.scales_bytes": Metric("B", "lower", "scales of the codes"),
    "memory.bias_bytes": Metric("B", "lower", "bias"),
    "memory.buffers_bytes": Metric("B", "lower", "all other tensors, the packing header included"),
    "memory.slack_bytes": Metric("B", "lower", "live storage beyond what the tensors show"),
    "memory.weight_bytes": Metric("B", "lower", "codes + scales"),
    "memory.layer_bytes": Metric("B", "lower", "live storage of the whole layer, slack included"),
    "memory.file_bytes": Metric("B", "lower", "the layer saved as a safetensors file"),
    "memory.peak_bytes": Metric("B", "lower", "rise of the process's high-water mark over a call"),
    "memory.training_bytes": Metric("B", "lower", "a layer being trained, and its optimizer's state"),
    "memory.training_peak_bytes": Metric(
        "B", "lower", "these and the rise of the high-water mark over a step"
    ),
    "memory.bits_per_weight": Metric("bit", "lower", "8 x (codes + scales) / number of weights"),
    "memory.format_bits": Metric("bit", "lower", "bits per weight of the format before scales"),
    "memory.weight_ratio": Metric("x", "higher", "fp32 weight bytes / (codes + scales) bytes"),
    "memory.weight_ratio_bf16": Metric("x", "higher", "bf16 weight bytes / (codes + scales) bytes"),
    "memory.layer_ratio": Metric("x", "higher", "bytes of the fp32 layer of torch / whole-layer bytes"),
    "memory.file_ratio": Metric("x", "higher", "file of the fp32 layer of torch / this layer's file"),
    "memory.model_bytes": Metric("B", "lower", "live storage of the whole model"),
    "memory.model_ratio": Metric("x", "higher", "fp32 whole-model bytes / whole-model bytes"),
    "quality.perplexity": Metric("", "lower", "exp of the mean negative log likelihood a token"),
    "quality.perplexity_ratio": Metric("x", "lower", "perplexity / perplexity of the baseline"),
    "quality.tokens": Metric("tokens", "neither", "held-out tokens scored"),
    "quality.nll": Metric("nat", "lower", "mean negative log likelihood a token, per document"),
    "quality.accuracy": Metric("", "higher", "share of test images classified right after conversion"),
    "quality.accuracy_change": Metric(
        "", "higher", "accuracy less that of the baseline, of the same images: -0.01 is one point lost"
    ),
    "quality.images": Metric("images", "neither", "test images scored"),
    "quality.right": Metric("", "higher", "whether an image is classified right, 1 or 0"),
    "training.bits_per_byte": Metric("bit", "lower", "held-out bits per byte after training"),
    "training.accuracy": Metric("", "higher", "share of held-out images classified right after training"),
    "training.packed_accuracy": Metric(
        "", "higher", "the same of the network packed, its low-bit weights in codes"
    ),
    "training.packed_agreement": Metric(
        "", "higher", "share of held-out images that the network classifies alike before and after packing"
    ),
    "training.loss": Metric("nat", "lower", "training loss at the last step"),
    "training.seconds": Metric("s", "lower", "wall time of the training run"),
}
