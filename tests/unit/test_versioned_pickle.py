"""What one version of dspool pickled, another one reads: one that has a field more, or a field less."""

from __future__ import annotations

import inspect
import pickle
import sys

import pytest
from msgspec import Struct

import dspool.messages
from dspool.config import PoolConfig
from dspool.config.parts import LimitsConfig
from dspool.messages import Member, Membership, PoolStatus
from dspool.messages.versioned_pickle import Message, rebuilt
from dspool.runtime.installed import StartCommand
from dspool.runtime.unfinished import Unfinished

WIRE_ONLY = {"Command", "AnyCommand"}
"""Their subclasses travel as msgpack alone."""


def reread(value: object, **state: object) -> object:
    """`value` as another process reads it, from one that has these entries of its state besides."""
    rebuild, arguments = value.__reduce__()[:2]
    kind, fields = arguments
    return rebuild(kind, {**fields, **state})


def test_a_message_comes_back_as_it_was():
    member = Member("a-w0-ff", 0, "127.0.0.1", 1, 2)
    seen = Membership(3, (member,), programs={"qa": 1})
    assert pickle.loads(pickle.dumps(seen)) == seen


def test_a_field_that_only_the_sender_knows_is_dropped():
    member = Member("a-w0-ff", 0, "127.0.0.1", 1, 2)
    assert reread(member, colour="red") == member


def test_a_field_that_only_the_receiver_knows_has_its_default():
    fields = {"worker_id": "a-w0-ff", "ordinal": 0, "host": "127.0.0.1", "port": 1, "slots": 2}
    assert rebuilt(Member, fields) == Member("a-w0-ff", 0, "127.0.0.1", 1, 2)
    status = {"name": "p", "state": "ready", "ready": True, "desired": 1, "actual": 1, "spares": 0}
    assert rebuilt(PoolStatus, {**status, "membership_version": 1}).version == ""


def test_every_message_between_actors_is_read_by_other_versions():
    kinds = [
        kind
        for name in dspool.messages.__all__
        if inspect.isclass(kind := getattr(dspool.messages, name)) and issubclass(kind, Struct)
    ]
    commands = tuple(kind for kind in kinds if issubclass(kind, dspool.messages.Command))
    assert len(kinds) > 20
    assert [kind for kind in kinds if not issubclass(kind, Message) and kind not in commands] == []


def change_state(config: PoolConfig, monkeypatch: pytest.MonkeyPatch, **limits: object) -> PoolConfig:
    """`config` as a version would pickle it whose limits have other fields; None takes one away."""
    kind = type(config.limits)
    whole = kind.__getstate__

    def state(self: LimitsConfig) -> dict:
        found = whole(self)
        fields = {**found["__dict__"], **limits}
        return {**found, "__dict__": {name: value for name, value in fields.items() if value is not None}}

    with monkeypatch.context() as other:
        other.setattr(kind, "__getstate__", state)
        data = pickle.dumps(config)
    return pickle.loads(data)


def test_a_configuration_of_another_version_has_the_defaults_of_what_that_one_did_not_know(
    monkeypatch, tmp_path
):
    config = PoolConfig(state_dir=tmp_path, pool_size=3, limits={"max_sessions": 7, "max_session_mb": 5})
    assert pickle.loads(pickle.dumps(config)) == config
    fewer = change_state(config, monkeypatch, max_session_mb=None)
    assert (fewer.pool_size, fewer.limits.max_sessions) == (3, 7)
    assert fewer.limits.max_session_mb == LimitsConfig().max_session_mb
    assert "max_session_mb" in fewer.limits.model_fields_set


def test_what_only_another_version_has_in_its_configuration_is_dropped(monkeypatch, tmp_path):
    config = PoolConfig(state_dir=tmp_path)
    more = change_state(config, monkeypatch, max_colours=3)
    assert more == config
    assert not hasattr(more.limits, "max_colours")


def test_an_exchange_that_was_cut_off_is_read_by_a_version_with_fewer_or_more_fields(monkeypatch, tmp_path):
    from dspool.runtime import unfinished

    kept: dict[bytes, bytes] = {}
    kv = unfinished.internal_kv
    monkeypatch.setattr(kv, "_internal_kv_put", lambda key, value, namespace: kept.update({key: value}))
    monkeypatch.setattr(kv, "_internal_kv_get", lambda key, namespace: kept.get(key))
    code = StartCommand(python=sys.executable, command="python")
    change = Unfinished(PoolConfig(state_dir=tmp_path), b"secret", ("supervisor",), None, code)
    unfinished.note(change)
    assert unfinished.noted("default") == change
    (key,) = kept
    fields = pickle.loads(kept[key])
    del fields["code"]
    kept[key] = pickle.dumps({**fields, "colour": "red"})
    assert unfinished.noted("default") == change._replace(code=None)
