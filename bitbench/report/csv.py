"""Every figure of every case as one flat table, for those who want to compute on."""

from __future__ import annotations

from typing import Any

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import shape_text
from bitbench.store.metrics import METRICS

_HEAD = ["run", "case", "workload", "layer", "status"]
_TAIL = [
    *("metric", "value", "low", "high", "confidence", "least", "most", "unit", "n", "replicate"),
    *("verdict", "against", "kernel", "reason", "notes"),
]
_VERDICTS = {"time.speedup": "verdict", "time.speedup_best_float": "verdict_best_float"}


def render(summary: Summary) -> str:
    """CSV with a row for each (case, metric); a case without figures has one row that says why."""
    import pandas as pd

    params = list(dict.fromkeys(key for case in summary.cases for key in case.case.params))
    rows = [row for case in summary.cases for row in _rows(case, summary)]
    frame = pd.DataFrame(rows, columns=[*_HEAD, *params, *_TAIL])
    frame["n"] = frame["n"].astype("Int64")  # a whole number although some rows have none
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _rows(case: CaseSummary, summary: Summary) -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "run": summary.run.info.run,
        "case": case.case.id,
        "workload": case.case.workload,
        "layer": case.case.layer,
        "status": case.status,
        **{key: shape_text(value) for key, value in case.case.params.items()},
        "kernel": "; ".join(case.kernels),
        "reason": case.reason,
        "notes": "; ".join(case.notes),
    }
    rows = []
    for metric, series in case.series.items():
        found = case.value(metric)
        if found is None:
            continue
        verdict = getattr(case, _VERDICTS[metric]) if metric in _VERDICTS else None
        rows.append(
            {
                **common,
                "metric": metric,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "confidence": found.confidence if found.has_interval else None,
                "least": min(series.values.values()),
                "most": max(series.values.values()),
                "unit": METRICS[metric].unit,
                "n": found.n,
                "replicate": "exact" if found.exact else case.case.replicate,
                "verdict": verdict.word.value if verdict is not None else None,
                "against": verdict.against if verdict is not None else None,
            }
        )
    return rows or [common]
