"""``tsv``: label and speed-up of each timed case, tab separated."""

from __future__ import annotations

from collections.abc import Mapping

from bitbench.report.reporters import Reporter, Source


class Tsv(Reporter):
    name = "tsv"

    def files(self, source: Source) -> Mapping[str, str]:
        lines = ["case\tspeedup\tlow\thigh"]
        for case in source.summary.cases:
            found = case.value("time.speedup")
            if found is not None:
                bounds = (found.low, found.high) if found.has_interval else ("", "")
                lines.append("\t".join(str(part) for part in (case.case.label, found.value, *bounds)))
        return {"speedups.tsv": "\n".join(lines) + "\n"}
