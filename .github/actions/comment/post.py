"""Post a gate's comment on the pull request of a finished workflow run; replace the earlier one.

Usage: ``post.py COMMENT.md``, in a workflow started by ``workflow_run``. Reads GITHUB_EVENT_PATH,
GITHUB_REPOSITORY, GITHUB_TOKEN and GITHUB_API_URL. Needs nothing but Python's own library.

The comment was written by a run that may have executed a stranger's code. It is data: the pull
request is the one whose head the event names, whatever the file says, and nobody is notified by it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

LIMIT = 65_536
"""Characters that GitHub takes."""
MARKER = re.compile(r"<!-- bitbench gate: [\w./ -]+ -->")
PER_PAGE = 100
SECONDS = 30


class Refused(Exception):
    """The file is no comment of a gate, or GitHub did not take it."""


def read_comment(path: Path) -> tuple[str, str]:
    """Marker and text of the comment. Raises :class:`Refused` where it is not one."""
    if path.is_symlink() or not path.is_file():
        raise Refused(f"{path.name} is missing or no plain file")
    if path.stat().st_size > 4 * LIMIT:
        raise Refused(f"{path.name} is longer than the {LIMIT} characters that a comment may have")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path.name} is not UTF-8: {error}") from error
    first = text.partition("\n")[0]
    if not MARKER.fullmatch(first):
        raise Refused(f"{path.name} does not begin with the marker of a gate's comment")
    # A zero-width space after each @: the text notifies nobody.
    text = text.replace("@", "@\u200b")
    if len(text) > LIMIT:
        raise Refused(f"{path.name} has {len(text)} characters; a comment may have {LIMIT}")
    return first, text


class GitHub:
    """The few calls that are needed."""

    def __init__(self, url: str, repository: str, token: str) -> None:
        self._root = f"{url.rstrip('/')}/repos/{repository}"
        self._token = token

    def pull_of(self, run: dict[str, Any]) -> int | None:
        """Number of the open pull request whose head is the commit that the run was of.

        The event lists no pull requests for forks; branch and commit it always names.
        """
        fork = run["head_repository"]
        if fork is None:  # deleted since
            return None
        head = f"{fork['owner']['login']}:{run['head_branch']}"
        query = urllib.parse.urlencode({"state": "open", "head": head, "per_page": PER_PAGE})
        for pull in self._call("GET", f"/pulls?{query}"):
            if pull["head"]["sha"] == run["head_sha"]:
                return int(pull["number"])
        return None

    def earlier(self, number: int, marker: str) -> int | None:
        """Id of the comment with that marker which a workflow wrote, or None."""
        page = 1
        while True:
            found = self._call("GET", f"/issues/{number}/comments?per_page={PER_PAGE}&page={page}")
            for comment in found:
                # Anyone may write the marker; only a bot's comment is ours to replace.
                ours = (comment.get("user") or {}).get("type") == "Bot"
                if ours and (comment.get("body") or "").startswith(marker):
                    return int(comment["id"])
            if len(found) < PER_PAGE:
                return None
            page += 1

    def write(self, number: int, comment: int | None, text: str) -> str:
        """Make or replace the comment; returns its address."""
        if comment is None:
            made = self._call("POST", f"/issues/{number}/comments", {"body": text})
        else:
            made = self._call("PATCH", f"/issues/comments/{comment}", {"body": text})
        return str(made["html_url"])

    def _call(self, method: str, path: str, data: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self._root + path,
            method=method,
            data=None if data is None else json.dumps(data).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(f"{method} {path} was answered {error.code} {error.reason}") from error
        except OSError as error:
            raise Refused(f"{method} {path} failed: {error}") from error


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: post.py COMMENT.md", file=sys.stderr)
        return 2
    try:
        event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
        run = event["workflow_run"]
        marker, text = read_comment(Path(arguments[0]))
        api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
        github = GitHub(api, os.environ["GITHUB_REPOSITORY"], os.environ["GITHUB_TOKEN"])
        number = github.pull_of(run)
        if number is None:
            print(f"no open pull request has {run['head_sha']} as its head: nothing to comment on")
            return 0
        print(github.write(number, github.earlier(number, marker), text))
    except KeyError as error:
        print(f"::error::not the environment of a workflow_run: {error} is missing", file=sys.stderr)
        return 2
    except Refused as error:
        print(f"::error::{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
