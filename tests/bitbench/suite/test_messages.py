"""Golden messages: each mistake, and word for word what the user is told.

Every case changes one place of a sound suite. A failure here means that a message changed: read it
as a user would before accepting it.
"""

# ruff: noqa: E501 - messages are kept as they are printed

from __future__ import annotations

from itertools import pairwise

import pytest

from bitbench.errors import Exit
from bitbench.suite.load import parse_suite
from bitbench.suite.problems import SuiteError

SOUND = """\
schema: 1
name: demo
baseline: linear
layers:
  linear: {kind: linear}
  ternary: {kind: ternary}
workloads:
  - kind: linear
    shapes: [[64, 64]]
    tokens: [1, 16]
    cache: [hot, cold]
claims:
  - id: small
    says: small
    metric: memory.weight_ratio
    where: {layer: ternary}
    at_least: 19.5
"""

MISTAKES: list[tuple[str, str, str]] = [
    (
        "baseline: linear",
        "baselin: linear",
        """\
demo.yaml:1: the key 'baseline' is missing
    The layer that ratios are given against.
demo.yaml:3: baselin: unknown key 'baselin'
    did you mean 'baseline'? allowed: schema, name, title, baseline, shapes, layers, workloads, claims, launches, seed, threads, device, cites""",
    ),
    (
        "baseline: linear",
        "baseline: liner",
        """\
demo.yaml:3: baseline: this suite has no layer 'liner'
    did you mean 'linear'? its layers: linear, ternary""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternay}",
        """\
demo.yaml:6: layers.ternary.kind: unknown layer kind 'ternay'
    did you mean 'ternary'? known: linear, torch_int8, binary, ternary, latent_free, k_ternary, torch_int_mm, ort_matmul_nbits, ggml, litespark""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {format: base3}",
        """\
demo.yaml:6: layers.ternary: a layer needs a kind
    known: linear, torch_int8, binary, ternary, latent_free, k_ternary, torch_int_mm, ort_matmul_nbits, ggml, litespark""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: ternary",
        """\
demo.yaml:6: layers.ternary: a layer is a mapping such as {kind: linear}, not 'ternary'""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternary, format: base4}",
        """\
demo.yaml:6: layers.ternary.format: the text 'base4' is not possible here
    did you mean 'base3'? allowed: base3, two_bit""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternary, formt: base3}",
        """\
demo.yaml:6: layers.ternary.formt: unknown key 'formt'
    did you mean 'format'? allowed: kind, require_backend, timeout, form, group_size, scale_dtype, isa, dtype, activation_bits, format, rule, scale, ste""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternary, require_backend: avx51, timeout: 30}",
        """\
demo.yaml:6: layers.ternary.require_backend: a layer of kind ternary is never served by 'avx51'
    did you mean 'avx512'? it can be: native, torch, avx512, avx2, neon_i8mm, neon, portable""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternary, timeout: 0}",
        "demo.yaml:6: layers.ternary.timeout: must be more than 0.0, not 0",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: k_ternary, k: 0}",
        """\
demo.yaml:6: layers.ternary.k: must be at least 1, not 0""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: k_ternary, k: two}",
        """\
demo.yaml:6: layers.ternary.k: must be a whole number, not the text 'two'""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: k_ternary, group_size: 7}",
        """\
demo.yaml:6: layers.ternary.group_size: must be a positive multiple of 8, not 7
    the nearest: 8""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ternary: {kind: ternary}\n  linear: {kind: linear}",
        """\
demo.yaml:7: layers.linear: the key 'linear' was given before, on line 5
    remove one of the two, or rename it""",
    ),
    (
        "  ternary: {kind: ternary}",
        "  ter nary: {kind: ternary}",
        """\
demo.yaml:6: layers.ter nary: the text 'ter nary' cannot be a name
    names start with a letter or digit and hold letters, digits and . _ + - only, 64 at most
demo.yaml:16: claims[0].where.layer: this suite has no layer 'ternary'
    did you mean 'ter nary'? its layers: linear, ter nary""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: lama-3.2-1b",
        """\
demo.yaml:9: workloads[0].shapes: unknown shape set 'lama-3.2-1b'
    did you mean 'llama-3.2-1b'? known: smollm2-135m, llama-3.2-1b, llama-3.1-8b, bitnet-2b-4t, squares; or give a list of [out, in]""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: [[64, 0], [-3, 64]]",
        """\
demo.yaml:9: workloads[0].shapes[0]: in_features must be from 1 to 1048576, not 0
demo.yaml:9: workloads[0].shapes[1]: out_features must be from 1 to 1048576, not -3""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: [[64, 64, 3]]",
        """\
demo.yaml:9: workloads[0].shapes[0]: a shape is [out_features, in_features], two whole numbers, not [64, 64, 3]""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: [64, 64]",
        """\
demo.yaml:9: workloads[0].shapes: must be a list of [out, in]
    write [[64, 64]]""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: []",
        """\
demo.yaml:9: workloads[0].shapes: the list of shapes is empty
    give at least one [out, in]""",
    ),
    (
        "shapes: [[64, 64]]",
        "shapes: [[64, '64']]",
        """\
demo.yaml:9: workloads[0].shapes[0][1]: must be a whole number, not the text '64'
    remove the quotes""",
    ),
    (
        "    shapes: [[64, 64]]\n",
        "",
        """\
demo.yaml:8: workloads[0]: the key 'shapes' is missing
    A named set, or a list of ``[out_features, in_features]``.""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, '16']",
        """\
demo.yaml:10: workloads[0].tokens[1]: must be a whole number, not the text '16'
    remove the quotes""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: 1",
        """\
demo.yaml:10: workloads[0].tokens: must be a list, not 1""",
    ),
    (
        "cache: [hot, cold]",
        "cache: [warm]",
        """\
demo.yaml:11: workloads[0].cache[0]: the text 'warm' is not possible here
    allowed: hot, cold""",
    ),
    (
        "kind: linear\n    sh",
        "kind: linear\n    require_backend: nativ\n    sh",
        """\
demo.yaml:9: workloads[0].require_backend: a layer of kind linear, ternary is never served by 'nativ'
    did you mean 'native'? it can be: torch, native, avx512, avx2, neon_i8mm, neon, portable""",
    ),
    (
        "kind: linear\n    sh",
        "kind: liner\n    sh",
        """\
demo.yaml:8: workloads[0].kind: unknown workload kind 'liner'
    did you mean 'linear'? known: linear, conv2d, block, decode, perplexity, image_accuracy, pretrain, classify, train_step, self_proof""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    exclude: [{token: 16}, {tokens: 8}]",
        """\
demo.yaml:11: workloads[0].exclude[0].token: excludes nothing: no point has 'token'
    did you mean 'tokens'? known: shape, tokens, cache, measure
demo.yaml:11: workloads[0].exclude[1].tokens: excludes nothing: tokens is never 8 here
    there it is one of: 1, 16""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    exclude: [{tokens: [1, 16]}, {measure: memory}]",
        """\
demo.yaml:11: workloads[0].exclude: every point of this workload is excluded
    remove an exclusion, or the entry""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    zip: [[tokens, cash]]",
        """\
demo.yaml:11: workloads[0].zip: zip names 'cash', which is not a list of this workload""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16, 3]\n    zip: [[tokens, cache]]",
        """\
demo.yaml:11: workloads[0].zip: zipped lists must have one length: tokens has 3, cache has 2""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    include: [{shapes: [[0, 3]]}, {tokns: [1]}]",
        """\
demo.yaml:11: workloads[0].include[0].shapes[0]: out_features must be from 1 to 1048576, not 0
demo.yaml:11: workloads[0].include[1].tokns: unknown key 'tokns'
    did you mean 'tokens'? allowed: kind, layers, launches, zip, include, exclude, when, threads, neighbours, require_backend, load, timeout, shapes, tokens, cache, bias, memory""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    when: {device: gpu}",
        """\
demo.yaml:11: workloads[0].when.device: the text 'gpu' is not possible here
    allowed: cpu, cuda""",
    ),
    (
        "tokens: [1, 16]",
        "tokens: [1, 16]\n    layers: [linear, ternery]",
        """\
demo.yaml:11: workloads[0].layers[1]: this suite has no layer 'ternery'
    did you mean 'ternary'? its layers: linear, ternary""",
    ),
    (
        "metric: memory.weight_ratio",
        "metric: memory.wieght_ratio",
        """\
demo.yaml:15: claims[0].metric: unknown metric 'memory.wieght_ratio'
    did you mean 'memory.weight_ratio'? known: time.latency, time.mean, time.speedup, time.speedup_best_float, time.eager, roofline.share, decode.tokens_per_second, decode.prefill_tokens_per_second, inference.images_per_second, decode.blocks_share, decode.head_share, decode.rest_share, decode.ceiling, cpu.utilisation, cpu.neighbours, gpu.utilisation, gpu.memory_utilisation, gpu.power_w, gpu.energy_j, gpu.calls_per_s, gpu.sm_mhz, memory.codes_bytes, memory.scales_bytes, memory.bias_bytes, memory.buffers_bytes, memory.slack_bytes, memory.weight_bytes, memory.layer_bytes, memory.file_bytes, memory.peak_bytes, memory.training_bytes, memory.training_peak_bytes, memory.bits_per_weight, memory.format_bits, memory.weight_ratio, memory.weight_ratio_bf16, memory.layer_ratio, memory.file_ratio, memory.model_bytes, memory.model_ratio and 14 more""",
    ),
    (
        "    cache: [hot, cold]\n",
        "    cache: [hot, cold]\n  - {kind: classify, images: mnist, threads: 2}\n",
        """\
demo.yaml:12: workloads[1].threads: nothing is timed here, and 'threads' changes nothing else
    remove 'threads', or have the workload time something""",
    ),
    (
        "    cache: [hot, cold]\n",
        "    cache: [hot, cold]\n  - {kind: classify, images: mnist, include: [{hidden: 8}, {neighbours: all}]}\n",
        """\
demo.yaml:12: workloads[1].include[1].neighbours: nothing is timed here, and 'neighbours' changes nothing else
    remove 'neighbours', or have the workload time something""",
    ),
    (
        "    cache: [hot, cold]\n",
        "    cache: [hot, cold]\n    neighbours: 0\n",
        """\
demo.yaml:12: workloads[0].neighbours: must be a whole number from 1 on, or all, not 0""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary}\n    of: {thread: 1}",
        """\
demo.yaml:17: claims[0].of.thread: no point has 'thread'
    known: layer, workload, shape, tokens, cache, measure""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary}\n    of: {tokens: 512}",
        """\
demo.yaml:17: claims[0].of: no case that the claim is about has another like it with tokens=512
    `of` names another layer of the same point, or what another point of the workload differs in""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternery}",
        """\
demo.yaml:16: claims[0].where.layer: this suite has no layer 'ternery'
    did you mean 'ternary'? its layers: linear, ternary""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary, workload: decode}",
        """\
demo.yaml:16: claims[0].where.workload: this suite has no workload 'decode'
    its workloads: linear""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary, tokns: 1}",
        """\
demo.yaml:16: claims[0].where.tokns: selects no case: no point has 'tokns'
    did you mean 'tokens'? known: layer, workload, shape, tokens, cache, measure""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary, tokens: 8}",
        """\
demo.yaml:16: claims[0].where.tokens: selects no case: tokens is never 8 here
    there it is one of: 1, 16""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary, shape: [64, 65]}",
        """\
demo.yaml:16: claims[0].where.shape: selects no case: shape is never 64x65 here
    there it is one of: 64x64""",
    ),
    (
        "where: {layer: ternary}",
        "where: {layer: ternary}\n    of: {layer: binary}",
        """\
demo.yaml:17: claims[0].of.layer: this suite has no layer 'binary'
    its layers: linear, ternary""",
    ),
    (
        "    at_least: 19.5\n",
        "",
        """\
demo.yaml:13: claims[0]: a claim needs exactly one of at_least, at_most and between
    this one has none""",
    ),
    (
        "    at_least: 19.5\n",
        "    at_least: 19.5\n    at_most: 20\n",
        """\
demo.yaml:13: claims[0]: a claim needs exactly one of at_least, at_most and between
    this one has at_least and at_most""",
    ),
    (
        "    at_least: 19.5\n",
        "    between: [20, 19]\n",
        """\
demo.yaml:17: claims[0].between: must be [low, high] with low <= high, not [20.0, 19.0]""",
    ),
    (
        "    at_least: 19.5\n",
        "    at_least: '19.5'\n",
        """\
demo.yaml:17: claims[0].at_least: must be a number, not the text '19.5'
    remove the quotes""",
    ),
    (
        "    at_least: 19.5\n",
        "    at_least: 19.5\n  - id: small\n    says: again\n    metric: time.latency\n    at_most: 1\n",
        """\
demo.yaml:18: claims[1].id: the id 'small' was given before, to claims[0]
    ids name claims in reports: each is used once""",
    ),
    (
        "schema: 1",
        "schema: 2",
        """\
demo.yaml:1: schema: version 2 is newer than this bitbench reads, which is 1
    update bitbench, or write the suite in the older format""",
    ),
    (
        "schema: 1",
        "schema: '1'",
        """\
demo.yaml:1: schema: the text '1' is not possible here
    did you mean '1'? allowed: 1""",
    ),
    (
        "schema: 1\n",
        "",
        """\
demo.yaml:1: the key 'schema' is missing
    Version of the suite format: 1.""",
    ),
    (
        "name: demo",
        "name: no",
        """\
demo.yaml:2: name: must be text, not false
    YAML reads yes, no, on and off as true and false: put the word in quotes""",
    ),
    (
        "name: demo",
        "name: demo\nlaunches: 0\nthreads: many",
        """\
demo.yaml:3: launches: must be at least 1, not 0
demo.yaml:4: threads: must be a whole number, not the text 'many'""",
    ),
    (
        "name: demo",
        "name: demo\nlayers: 3",
        """\
demo.yaml:5: layers: the key 'layers' was given before, on line 3
    remove one of the two, or rename it""",
    ),
    (
        "layers:\n",
        "layers: [\n",
        """\
demo.yaml:6: this is not YAML: while parsing a flow sequence expected ',' or ']', but got '<scalar>'
    check indentation, brackets and quotes above""",
    ),
    (
        "  - kind: linear\n",
        "\t- kind: linear\n",
        """\
demo.yaml:8: this is not YAML: while scanning for the next token found character '\\t' that cannot start any token
    indent with spaces, not tabs""",
    ),
]


def test_the_suite_that_is_broken_here_is_sound() -> None:
    assert parse_suite(SOUND).name == "demo"


@pytest.mark.parametrize(("found", "written", "message"), MISTAKES, ids=[m[1].strip()[:50] for m in MISTAKES])
def test_message(found: str, written: str, message: str) -> None:
    assert found in SOUND
    with pytest.raises(SuiteError) as caught:
        parse_suite(SOUND.replace(found, written, 1), "demo.yaml")
    head, _, body = str(caught.value).partition("\n")
    assert body == message
    count = len(caught.value.problems)
    assert head == f"{count} problem{'s' if count > 1 else ''} in suite demo.yaml; nothing was run"
    assert caught.value.exit_code is Exit.USAGE


def test_all_mistakes_are_told_at_once_in_file_order() -> None:
    text = SOUND.replace("baseline: linear", "baseline: liner").replace("kind: ternary", "kind: ternay")
    text = text.replace("[64, 64]", "[64, 0]").replace("memory.weight_ratio", "memory.ratio")
    with pytest.raises(SuiteError) as caught:
        parse_suite(text)
    assert [p.line for p in caught.value.problems] == [3, 6, 9, 15]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing but a comment\n", "the file is empty"),
        ("--- 3\n", "the file holds a single value, not a mapping"),
        ("- a\n", "the file holds a list, not a mapping"),
        ("a: &x [*x]\n", "this is not YAML: an alias stands for itself"),
        ("a: !!python/object:os.system {}\n", "python/object:os.system' means nothing here"),
        ("a: !secret b\n", "this is not YAML: could not determine a constructor"),
        ("a: *b\n", "this is not YAML: found undefined alias 'b'"),
        ("a: b: c\n", "this is not YAML: mapping values are not allowed here"),
        ("a: \x00\n", "this is not YAML: unacceptable character"),
        ("schema: 1\n---\nschema: 1\n", "this is not YAML: expected a single document"),
        ("? [1, 2]\n: 3\n", "a key must be text"),
        ("[" * 5000, "nested too deeply"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdefghijkl")),
            "more than 200000 values, aliases written out",
        ),
    ],
)
def test_what_is_no_suite_at_all(text: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite(text, "demo.yaml")
    assert f"demo.yaml:{caught.value.problems[0].line}: " in str(caught.value)
    assert message in str(caught.value)
