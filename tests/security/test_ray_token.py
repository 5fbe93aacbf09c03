"""The token of a Ray cluster of our own, as a Ray sees it that was imported long before."""

import os

import pytest
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

from dspool.runtime.cluster import own_token

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def seen_by_ray():
    loader = AuthenticationTokenLoader.instance()
    token = loader.get_raw_token() if loader.has_token() else None
    return get_authentication_mode(), token


def of_environment():
    return {name: os.environ.get(name) for name in NAMES}


@pytest.fixture
def operator(monkeypatch, tmp_path):
    """Sets the operator's variables; nothing of the test stays in Ray."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def given(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    given()
    yield given
    monkeypatch.undo()  # before Ray looks again: a cluster of this process may need its token still
    with own_token(tmp_path):
        pass  # Ray looks again when it ends


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-operator"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent/token"},
    ],
)
def test_a_cluster_of_our_own_has_a_token_of_its_own_whatever_was_set(operator, tmp_path, variables):
    operator(**variables)
    with own_token(tmp_path) as path:
        assert seen_by_ray() == (AuthenticationMode.TOKEN, path.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
        # The token itself is in no variable, which every child would have.
        assert of_environment() == {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": None,
            "RAY_AUTH_TOKEN_PATH": str(path),
        }
    assert not path.exists()
    assert of_environment() == dict.fromkeys(NAMES) | variables
    assert not (tmp_path / "home").exists()


def test_each_cluster_has_another_token(operator, tmp_path):
    seen = set()
    for _ in range(2):
        with own_token(tmp_path):
            seen.add(seen_by_ray()[1])
    assert len(seen) == 2
    assert all(len(token) == 64 for token in seen)


def test_the_operators_token_holds_again_afterwards(operator, tmp_path):
    operator(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of-the-operator")
    with own_token(tmp_path):
        pass
    assert seen_by_ray() == (AuthenticationMode.TOKEN, "of-the-operator")
