"""The gate as JUnit XML: what continuous-integration servers list and chart."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from bitbench.analysis.comparison import Compared
from bitbench.analysis.gate import GateResult, GateRow, Outcome, Role
from bitbench.analysis.verdicts import Word
from bitbench.report.compared import case_name, failure, word

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, such as the escapes in a crashed compiler's log."""


def junit(result: GateResult, *, name: str = "bitbench gate", strict: bool = False) -> str:
    """The gate's rows as test cases of one suite per role, and the outcome as one more.

    A row that fails the gate is a *failure*; one that is only shown, or that stayed inconclusive,
    is *skipped* with the reason; a broken gate (self-proof failed, nothing measured) is an *error*.
    ``strict``: an inconclusive outcome is a failure, as the exit status says.
    """
    root = ElementTree.Element("testsuites", name=_legal(name))
    suites = [_suite(f"{name}: {role.value}", rows) for role in Role if (rows := _of(result, role))]
    suites.append(_verdict(result, name, strict))
    for suite in suites:
        for key in ("failures", "errors", "skipped"):
            tag = {"failures": "failure", "errors": "error", "skipped": "skipped"}[key]
            suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite.findall("testcase"))))
        root.append(suite)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _of(result: GateResult, role: Role) -> list[GateRow]:
    return [row for row in result.rows if row.role is role]


def _suite(name: str, rows: list[GateRow]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_legal(name))
    for row in rows:
        compared = row.compared
        case = ElementTree.SubElement(
            suite, "testcase", classname=_legal(compared.case.workload), name=_legal(case_name(compared))
        )
        _properties(case, row)
        if row.fails:
            _outcome(case, "failure", failure(row), type=word(compared))
        elif (why := _skipped(row)) is not None:
            _outcome(case, "skipped", why)
    return suite


def _skipped(row: GateRow) -> str | None:
    """Why a row that does not fail does not count as passed either; None where it does."""
    said = word(row.compared)
    reason = f"{said}: {row.compared.verdict.reason}" if row.compared.verdict.reason else said
    if row.role is Role.SHOWN:
        return f"only shown ({row.why}); {reason}" if row.why else f"only shown; {reason}"
    if row.role is Role.CONTROL and row.compared.verdict.word is not Word.SAME:
        return f"a control should be same; it is {reason}"
    if row.compared.verdict.word in (Word.INCONCLUSIVE, Word.NOT_COMPARABLE):
        return reason
    return None


def _verdict(result: GateResult, name: str, strict: bool) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_legal(f"{name}: outcome"))
    case = ElementTree.SubElement(suite, "testcase", classname="gate", name="outcome")
    if result.outcome is Outcome.BROKEN:
        _outcome(case, "error", result.reason, type=result.outcome.value)
    elif result.outcome is Outcome.FAILED:
        _outcome(case, "failure", result.reason, type=result.outcome.value)
    elif result.outcome is Outcome.INCONCLUSIVE:
        if strict:
            _outcome(case, "failure", result.reason, type=result.outcome.value)
        else:
            _outcome(case, "skipped", result.reason)
    told = "\n".join([result.reason, *result.warnings])
    ElementTree.SubElement(case, "system-out").text = _legal(told)
    return suite


def _outcome(case: ElementTree.Element, tag: str, message: str, **attributes: str) -> None:
    ElementTree.SubElement(case, tag, {**attributes, "message": _legal(message)})


def _properties(case: ElementTree.Element, row: GateRow) -> None:
    properties = ElementTree.SubElement(case, "properties")
    for key, value in {
        "verdict": word(row.compared),
        "role": row.role.value,
        **_numbers(row.compared),
    }.items():
        ElementTree.SubElement(properties, "property", name=key, value=_legal(value))
    if row.threshold:
        ElementTree.SubElement(properties, "property", name="threshold", value=f"{row.threshold:.6g}")


def _numbers(compared: Compared) -> dict[str, str]:
    effect = compared.verdict.effect
    found = {
        "base": compared.base.value if compared.base else None,
        "head": compared.head.value if compared.head else None,
        "effect": effect.value if effect else None,
        "effect.low": effect.low if effect else None,
        "effect.high": effect.high if effect else None,
        "p": compared.verdict.p,
        "detectable": compared.verdict.detectable,
    }
    return {key: f"{value:.9g}" for key, value in found.items() if value is not None}


def _legal(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
