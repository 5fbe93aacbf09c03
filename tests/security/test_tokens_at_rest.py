"""The file of tokens: whose it may be, how it is read and written, and that a revoked token never comes back."""

from __future__ import annotations

import os
import threading

import pytest

from dspool import tokens
from dspool.errors import ConfigError
from dspool.tokens import TokenSource, issue, read, revoke


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "tokens.yaml"
    issue(file, "ada", "admin")
    monkeypatch.setattr(tokens.os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read(file)


def test_a_file_that_was_refused_for_its_mode_counts_as_soon_as_that_is_right(tmp_path):
    file, now = tmp_path / "tokens.yaml", [0.0]
    text, _ = issue(file, "ada", "admin")
    source = TokenSource(file, clock=lambda: now[0])
    revoke(file, "ada")
    file.chmod(0o644)
    now[0] += 1
    assert source.current().recognise(text.encode(), now=0.0) is not None
    # The content and its time stay what they are.
    file.chmod(0o600)
    now[0] += 1
    assert source.current().recognise(text.encode(), now=0.0) is None


def test_a_link_stays_one_and_what_it_leads_to_is_changed(tmp_path):
    """As with secrets that are mounted into containers."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "tokens.yaml"
    link.symlink_to(tmp_path / "real" / "tokens.yaml")
    issue(link, "ada", "admin")
    issue(link, "bob", "caller")
    revoke(link, "ada")
    assert link.is_symlink()
    assert [token.name for token in read(tmp_path / "real" / "tokens.yaml")] == ["bob"]


def test_a_token_that_was_revoked_while_another_was_made_stays_revoked(tmp_path, monkeypatch):
    file = tmp_path / "tokens.yaml"
    issue(file, "ada", "admin")
    reading, go = threading.Event(), threading.Event()
    real = tokens.read

    def slowly(file):
        found = real(file)
        if threading.current_thread() is maker:
            reading.set()
            go.wait()
        return found

    monkeypatch.setattr(tokens, "read", slowly)
    maker = threading.Thread(target=issue, args=(file, "bob", "caller"))
    maker.start()
    reading.wait()
    revoker = threading.Thread(target=revoke, args=(file, "ada"))
    revoker.start()
    go.set()
    maker.join()
    revoker.join()
    assert [token.name for token in real(file)] == ["bob"]
