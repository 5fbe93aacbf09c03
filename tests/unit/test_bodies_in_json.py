"""Only JSON as it is: what a body is said to be, and how it is packed."""

import gzip
from types import SimpleNamespace

import msgspec
import pytest

from dspool_serve.access.csrf import NotJson, require_json
from dspool_serve.http.problems import MalformedRequest
from dspool_serve.http.requests import decode

JSON = {b"content-type": b"application/json", b"content-length": b"2"}


def asked(**headers):
    return SimpleNamespace(
        headers={**JSON, **{name.replace("_", "-").encode(): headers[name] for name in headers}}
    )


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"br", b"deflate", b"zstd", b"gzip, identity", b"x"])
def test_a_compressed_body_is_refused_with_what_is_accepted(coding):
    with pytest.raises(NotJson, match="send the JSON as it is"):
        require_json(asked(content_encoding=coding))


@pytest.mark.parametrize("coding", [b"identity", b" Identity ", b""])
def test_a_body_that_is_said_to_be_as_it_is_is_taken(coding):
    require_json(asked(content_encoding=coding))
    require_json(asked())


def test_without_a_body_nothing_is_asked_of_it():
    require_json(asked(content_length=b"0", content_encoding=b"gzip"))


@pytest.mark.parametrize("charset", [b"utf-8", b'"UTF-8"', b"utf8", b"us-ascii"])
def test_a_body_that_is_said_to_be_utf_8_is_taken(charset):
    require_json(asked(content_type=b"application/json; charset=" + charset))


@pytest.mark.parametrize(
    "charset", [b"utf-16", b"latin-1", b'"ISO-8859-1"', b"utf-32le", b"windows-1252; x=y"]
)
def test_a_body_in_another_encoding_is_refused_with_what_is_accepted(charset):
    with pytest.raises(NotJson, match="UTF-8"):
        require_json(asked(content_type=b"application/json;charset=" + charset))


def test_a_byte_order_mark_is_no_part_of_the_json():
    assert decode(msgspec.json.Decoder(dict), b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_utf_16_that_is_not_said_to_be_so_is_told_as_what_it_is(encoding):
    with pytest.raises(MalformedRequest, match="it looks like UTF-16"):
        decode(msgspec.json.Decoder(dict), '{"a": 1}'.encode(encoding))


@pytest.mark.parametrize(
    "body", [gzip.compress(b'{"a": 1}'), b"\x28\xb5\x2f\xfd\x20\x08\x41\x00"], ids=["gzip", "zstd"]
)
def test_a_compressed_body_that_is_not_said_to_be_one_is_told_as_what_it_is(body):
    with pytest.raises(MalformedRequest, match="is compressed"):
        decode(msgspec.json.Decoder(dict), body)


def test_bytes_of_another_encoding_within_are_no_utf_8():
    with pytest.raises(MalformedRequest, match="not valid JSON"):
        decode(msgspec.json.Decoder(dict), '{"a": "ÿ"}'.encode("latin-1"))
