from __future__ import annotations

from bitbench.report.overview import describe_layer
from bitbench.report.tables import Cell, Column, Table, absent, without_empty


def test_columns_of_which_nothing_was_measured_go() -> None:
    columns = [Column("layer"), Column("measured"), Column("failed"), Column("never")]
    rows = [
        [Cell("a"), Cell("1"), absent("oom"), absent()],
        [Cell("b"), absent(), absent(), absent()],
    ]
    found = without_empty(Table("t", "T", columns, rows))
    assert [column.title for column in found.columns] == ["layer", "measured", "failed"]
    assert [[cell.text for cell in row] for row in found.rows] == [["a", "1", "n/a"], ["b", "n/a", "n/a"]]


def test_a_layer_is_described_by_what_is_unusual_about_it() -> None:
    spec: dict[str, object] = {
        "kind": "k_ternary",
        "form": "packed",
        "activation_bits": 8,
        "scale_dtype": "float32",
        "group_size": 64,
        "ste": "identity",
        "refit": True,
        "k": 3,
        "rule": None,
    }
    assert describe_layer(spec) == "k-ternary, k 3, groups of 64, 8-bit activations"
    unusual = {**spec, "scale_dtype": "float16", "refit": False, "form": "training"}
    assert describe_layer(unusual) == (
        "k-ternary, training form, k 3, groups of 64, 8-bit activations, refit False, scale dtype float16"
    )
