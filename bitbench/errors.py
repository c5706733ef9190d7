"""Errors that reach the user as one message, and the exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Documented exit codes."""

    OK = 0
    FAILED = 1  # a gating claim failed, or a regression
    USAGE = 2  # wrong usage or configuration: nothing ran
    TOOL = 3  # the tool failed, or nothing was measured
    INCONCLUSIVE = 4  # under --strict
    INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. Shown without a traceback.

    ``message`` names the value and the limit, ``remedy`` what to do.
    """

    exit_code: Exit = Exit.USAGE

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class ToolError(UserError):
    """The tool could not do its work although it was asked correctly."""

    exit_code = Exit.TOOL
