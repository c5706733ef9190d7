"""``.github/actions/comment/post.py`` against a small GitHub of our own."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from bitbench.report.comment import marker

SCRIPT = Path(__file__).resolve().parents[1] / ".github" / "actions" / "comment" / "post.py"
SHA = "5d6e7f8" + "0" * 33
TEXT = f"{marker('gate')}\n## No regression\n"
RUN = {"head_sha": SHA, "head_branch": "change", "head_repository": {"owner": {"login": "stranger"}}}


@pytest.fixture(scope="module")
def post() -> ModuleType:
    spec = importlib.util.spec_from_file_location("post_comment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Forge:
    """Pull requests and comments, and what was written."""

    def __init__(self) -> None:
        self.pulls = [
            {"number": 7, "head": {"label": "stranger:change", "sha": SHA}},
            {"number": 8, "head": {"label": "stranger:other", "sha": SHA}},
        ]
        self.comments: list[dict[str, Any]] = []
        self.written: list[tuple[str, str, str]] = []
        self.tokens: set[str | None] = set()
        self.refuse = False

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.refuse:
            return 403, {"message": "no"}
        url = urlparse(path)
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if method == "GET" and url.path == "/repos/me/lib/pulls":
            assert query["state"] == "open"
            return 200, [pull for pull in self.pulls if pull["head"]["label"] == query["head"]]  # type: ignore[index]
        if method == "GET" and url.path == "/repos/me/lib/issues/7/comments":
            size, page = int(query["per_page"]), int(query["page"])
            return 200, self.comments[(page - 1) * size : page * size]
        if method in ("POST", "PATCH"):
            self.written.append((method, url.path, body["body"]))
            return 200, {"html_url": "https://example.org/comment"}
        return 404, {}


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Forge]:
    made = Forge()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            made.tokens.add(self.headers.get("Authorization"))
            status, answer = made.answer(self.command, self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST = do_PATCH = reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"workflow_run": RUN}))
    monkeypatch.setenv("GITHUB_API_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(event))
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/lib")
    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def comment(tmp_path: Path) -> Path:
    path = tmp_path / "comment.md"
    path.write_text(TEXT)
    return path


def said_by(kind: str, text: str, number: int) -> dict[str, Any]:
    return {"id": number, "user": {"type": kind}, "body": text}


def test_a_first_comment_is_made_on_the_forks_pull_request(
    post: ModuleType, forge: Forge, comment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert post.main([str(comment)]) == 0
    assert forge.written == [("POST", "/repos/me/lib/issues/7/comments", TEXT)]
    assert forge.tokens == {"Bearer t0ken"}
    assert "https://example.org/comment" in capsys.readouterr().out


def test_an_earlier_one_is_replaced_wherever_it_stands(post: ModuleType, forge: Forge, comment: Path) -> None:
    forge.comments = [said_by("User", "hello", n) for n in range(150)]
    forge.comments[120] = said_by("Bot", f"{marker('gate')}\nold", 42)
    assert post.main([str(comment)]) == 0
    assert forge.written == [("PATCH", "/repos/me/lib/issues/comments/42", TEXT)]


def test_nobody_elses_comment_is_touched(post: ModuleType, forge: Forge, comment: Path) -> None:
    forge.comments = [
        said_by("User", TEXT, 1),  # a person quoting the marker
        said_by("Bot", f"{marker('another gate')}\nold", 2),
        said_by("Bot", "unrelated", 3),
        {"id": 4, "user": None, "body": None},  # a deleted account
    ]
    assert post.main([str(comment)]) == 0
    assert [method for method, _, _ in forge.written] == ["POST"]


def test_a_newer_commit_gets_no_old_comment(
    post: ModuleType, forge: Forge, comment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge.pulls[0]["head"]["sha"] = "f" * 40  # type: ignore[index]
    assert post.main([str(comment)]) == 0
    assert forge.written == []
    assert "nothing to comment on" in capsys.readouterr().out


def test_a_fork_that_is_gone_gets_none(
    post: ModuleType, forge: Forge, comment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "event.json").write_text(json.dumps({"workflow_run": {**RUN, "head_repository": None}}))
    assert post.main([str(comment)]) == 0
    assert forge.written == []
    assert "nothing to comment on" in capsys.readouterr().out


def test_nobody_is_notified(post: ModuleType, forge: Forge, comment: Path) -> None:
    comment.write_text(f"{TEXT}cc @everyone\n")
    assert post.main([str(comment)]) == 0
    assert "@everyone" not in forge.written[0][2]
    assert "everyone" in forge.written[0][2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"buy now\n", "does not begin with the marker"),
        (f"x{TEXT}".encode(), "does not begin with the marker"),
        (b"<!-- bitbench gate: --><b>", "does not begin with the marker"),
        (TEXT.encode() + b"\xff", "is not UTF-8"),
        (TEXT.encode() + b"x" * 65_536, "a comment may have 65536"),
        (TEXT.encode() + b"x" * 400_000, "longer than the 65536 characters"),
        (b"", "does not begin with the marker"),
    ],
)
def test_what_is_no_comment_is_refused(
    post: ModuleType,
    forge: Forge,
    comment: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    said: str,
) -> None:
    comment.write_bytes(content)
    assert post.main([str(comment)]) == 1
    assert said in capsys.readouterr().err
    assert forge.written == []


def test_a_link_is_not_followed(post: ModuleType, forge: Forge, comment: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.md"
    link.symlink_to(comment)
    assert post.main([str(link)]) == 1
    assert post.main([str(tmp_path / "gone.md")]) == 1
    assert forge.written == []


def test_a_refusal_of_github_turns_the_step_red(
    post: ModuleType, forge: Forge, comment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge.refuse = True
    assert post.main([str(comment)]) == 1
    assert "was answered 403" in capsys.readouterr().err


def test_the_wrong_event_is_named(
    post: ModuleType, forge: Forge, comment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "event.json").write_text("{}")
    assert post.main([str(comment)]) == 2
    assert "'workflow_run' is missing" in capsys.readouterr().err
    assert post.main([]) == 2
