"""No body is read for long before it is known to be small enough, also not for an `Idempotency-Key`."""

from __future__ import annotations

import time

import pytest

from dspool.messages.limits import MAX_LONG_NUMBERS
from dspool_serve.api.idempotency import fingerprint
from dspool_serve.http.requests import Request, holds_too_much
from tests.security.corpus import of, request_of
from tests.security.hostile_inputs import asked, many
from tests.security.loop_steps import LIMIT_S, speed


async def nothing():
    return {}


def of_an_execution(content_type=b"application/json"):
    headers = [(b"content-type", content_type)]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, nothing)


def test_no_body_takes_long_to_be_told_from_another():
    slow = {}
    for entry in of("body"):
        body = request_of(entry)
        seconds = []
        for _ in range(3):
            began = time.thread_time()
            fingerprint(of_an_execution(), body)
            seconds.append(time.thread_time() - began)
        if min(seconds) > LIMIT_S * speed():
            slow[entry.name] = min(seconds)
    assert not slow


@pytest.mark.parametrize("media", [b"text/plain", b"application/json"])
def test_no_form_takes_long_to_be_told_from_another(media):
    """What is one byte in a form is six as JSON."""
    content = b"\1" * 1_048_000 if media == b"text/plain" else b'"%b"' % (b'\\"' * 524_000)
    head = b'--X\r\nContent-Disposition: form-data; name="c"\r\nContent-Type: %b\r\n\r\n' % media
    request = of_an_execution(b"multipart/form-data; boundary=X")
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        fingerprint(request, head + content + b"\r\n--X--\r\n")
        seconds.append(time.thread_time() - began)
    assert min(seconds) < LIMIT_S * speed()


@pytest.mark.parametrize("number", [b"1e300", b"1E-300", b"1e+100", b"9" * 100, b"0." + b"3" * 100])
def test_numbers_that_take_long_to_read_are_few(number):
    some, more = (
        asked(b'"%b",' % (b" " * 20_000) + b",".join([number] * count))
        for count in (MAX_LONG_NUMBERS, MAX_LONG_NUMBERS + 1)
    )
    assert not holds_too_much(some)
    assert holds_too_much(more)


@pytest.mark.parametrize(
    "value",
    [
        many(b"1.5e-99", 19_000 * 8),
        many(b"0.12345678901234567", 19_000 * 20),
        b'"' + b"1e300," * 50_000 + b'"',
        b'"' + b"3" * 500_000 + b'"',
        b'"\\"' + b"1e300," * 50_000 + b'\\\\"',
    ],
)
def test_what_honest_bodies_hold_is_not_too_much(value):
    assert not holds_too_much(asked(value))


def test_two_bodies_that_are_too_much_are_two():
    first, second = asked(many(b"[]")), asked(many(b"{}"))
    assert holds_too_much(first)
    assert fingerprint(of_an_execution(), first) != fingerprint(of_an_execution(), second)
    assert fingerprint(of_an_execution(), first) == fingerprint(of_an_execution(), first)
