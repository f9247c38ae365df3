"""Tokens and who may ask: read from a file or the environment, compared as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.access import TOKEN_VARIABLE, Access, read_token

TOKEN = "0123456789abcdef"


def test_a_token_comes_from_a_file_or_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(None) == "from-the-environment"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize(
    "held", ["", "short", "with a space in it", "ünïcödé-is-not-ascii", "x" * 513]
)
def test_a_token_that_is_none_or_can_be_guessed_is_refused_without_being_told(
    tmp_path: Path, held: str
):
    (tmp_path / "token").write_text(held, "utf-8")
    with pytest.raises(InputError, match="must hold a token of 16 to 512") as caught:
        read_token(tmp_path / "token")
    assert not held or held not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Host": "127.0.0.1:8000"}, None),
        ({"Host": "localhost:8000"}, None),
        ({"Host": "[::1]:8000"}, None),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}, None),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:9"}, "foreign page"),
        ({"Host": "127.0.0.1:8000", "Origin": "null"}, "foreign page"),
        ({"Host": "127.evil.example"}, "foreign host"),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, "foreign host"),
        ({"Host": "[::"}, "foreign host"),
        ({"Host": "localhost", "Origin": "http://[::"}, "foreign host"),
        ({}, "foreign host"),
    ],
)
def test_without_a_token_a_browsers_foreign_page_is_refused(
    headers: dict[str, str], refused: str | None
):
    assert Access().refusal(headers, {}) == refused


@pytest.mark.parametrize(
    ("headers", "query", "refused"),
    [
        ({"Authorization": f"Bearer {TOKEN}"}, {}, None),
        ({"Authorization": f"bearer {TOKEN}"}, {}, None),
        ({}, {"token": TOKEN}, None),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, {"token": TOKEN}, None),
        ({}, {}, "no token"),
        ({"Authorization": "Bearer"}, {}, "no token"),
        ({"Authorization": f"Basic {TOKEN}"}, {}, "no token"),
        ({}, {"token": TOKEN[:-1]}, "wrong token"),
        ({}, {"token": TOKEN + "0"}, "wrong token"),
        ({"Authorization": "Bearer \udcff"}, {}, "wrong token"),
        ({"Authorization": "Bearer wrong"}, {"token": TOKEN}, "wrong token"),
    ],
)
def test_with_a_token_only_the_token_counts(
    headers: dict[str, str], query: dict[str, str], refused: str | None
):
    assert Access(token=TOKEN).refusal(headers, query) == refused
