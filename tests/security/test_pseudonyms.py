"""What stands for sessions and principals in logs, events and spans tells nobody who they are."""

import hashlib
import re

import pytest

from dspool.errors import StoreFailed
from dspool.store.store import SessionStore
from dspool.telemetry import pseudonyms
from dspool.telemetry.pseudonyms import make_key, principal_hash, read_key, session_hash, try_read_key
from dspool.testing.doubles import FakeStore

SESSION = "ada/chat-1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.setattr(pseudonyms, "_keys", {})


def guesses(name):
    """What somebody without the key could compute of a name."""
    for length in (6, 8, 16, 32):
        for algorithm in (hashlib.blake2s, hashlib.blake2b):
            yield algorithm(name.encode(), digest_size=length).hexdigest()
            for person in (b"asker", b"session", b"principa", b"principal"[:8]):
                yield algorithm(name.encode(), digest_size=length, person=person).hexdigest()
    yield hashlib.sha256(name.encode()).hexdigest()


@pytest.mark.parametrize("hashed", [session_hash, principal_hash])
async def test_nobody_without_the_key_finds_a_name_by_trying_names(hashed):
    store = FakeStore()
    for has_key in (False, True):
        if has_key:
            await make_key("p", store.get_record, store.put_record)
        pseudonym = hashed(SESSION, "p")
        assert re.fullmatch("[0-9a-f]{32}", pseudonym), "128 bits"
        assert pseudonym not in set(guesses(SESSION)) | set(guesses("p/" + SESSION))
    assert session_hash(SESSION, "p") != principal_hash(SESSION, "p")


async def test_a_session_keeps_its_pseudonym_over_restarts_and_in_every_process_of_its_pool(tmp_path):
    url = f"sqlite:///{tmp_path}/d.db"
    first = SessionStore(url)
    await first.open()
    await make_key("p", first.get_record, first.put_record)
    pseudonym = session_hash(SESSION, "p")
    await first.close()

    pseudonyms._keys.clear()
    assert session_hash(SESSION, "p") != pseudonym, "without the key there is no way to it"
    second = SessionStore(url)
    await second.open()
    await make_key("p", second.get_record, second.put_record)
    assert session_hash(SESSION, "p") == pseudonym
    pseudonyms._keys.clear()
    assert await read_key("p", second.get_record)
    assert session_hash(SESSION, "p") == pseudonym
    # Another pool of the same database has a key of its own.
    await make_key("q", second.get_record, second.put_record)
    assert session_hash(SESSION, "q") != pseudonym
    await second.close()


async def test_a_process_whose_store_is_away_starts_with_pseudonyms_that_nobody_else_can_make(monkeypatch):
    store = FakeStore()
    store.down = StoreFailed("away")
    assert not await try_read_key("p", store.get_record)
    here = session_hash(SESSION, "p")
    monkeypatch.setattr(pseudonyms, "_own_key", b"another process's")
    assert session_hash(SESSION, "p") != here


def test_a_sealed_name_is_read_with_the_pools_key_and_with_no_other(monkeypatch):
    monkeypatch.setitem(pseudonyms._keys, "p", b"k" * 32)
    text = pseudonyms.sealed(SESSION, "p")
    assert SESSION not in text
    assert pseudonyms.sealed(SESSION, "p") == text
    assert pseudonyms.unsealed(text, "p") == SESSION
    assert pseudonyms.unsealed(text[:-1], "p") is None
    assert pseudonyms.unsealed("no such text", "p") is None
    monkeypatch.setitem(pseudonyms._keys, "p", b"o" * 32)
    assert pseudonyms.unsealed(text, "p") is None
