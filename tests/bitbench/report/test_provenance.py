from __future__ import annotations

from bitbench.report.provenance import time_spent
from bitbench.store.schema import RunEnd


def test_each_end_of_a_run_says_where_its_time_went() -> None:
    stages = {"time": 70.0, "timed": 65.0, "build": 30.0}
    suite = RunEnd(finished="", wall_s=100.0, stages_s=stages, stops={"p": "launches"})
    budget = RunEnd(finished="", wall_s=10.0, stages_s={"start": 10.0}, stops={"p": "width", "q": "budget"})
    assert time_spent([]) == []
    assert time_spent([suite, budget]) == [
        "Time spent: 100 s: 65 s in timed blocks (65%), 30.0 s build, 5.0 s untimed calls between blocks.",
        "Time spent: 10 s: 10.0 s start. Further launches ended with narrow intervals at 1 point, with the "
        "budget at 1.",
    ]
