"""Only JSON as it is: what a body is said to be, and how it is packed."""

import bz2
import gzip
import lzma
import zlib

import msgspec
import pytest

from dspool_serve.access.csrf import require_json
from dspool_serve.http.problems import MalformedRequest, UnsupportedBody
from dspool_serve.http.requests import Request, decode

JSON = {b"content-type": b"application/json", b"content-length": b"2"}


async def nothing():
    pytest.fail("it was read")


def asked(**headers):
    sent = {**JSON, **{name.replace("_", "-").encode(): headers[name] for name in headers}}
    return Request({"headers": list(sent.items())}, nothing)


CODINGS = [
    b"gzip",
    b"GZIP",
    b"br",
    b"deflate",
    b"zstd",
    b"xz",
    b"compress",
    b"gzip, identity",
    b"x",
    b"gzip,br",
    b"\xff",
]


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_body_is_refused_unread_with_what_is_accepted(coding):
    request = asked(content_encoding=coding)
    with pytest.raises(UnsupportedBody, match="only `identity`: send the body as it is") as refused:
        require_json(request)
    assert refused.value.details == {"accept_encoding": "identity"}
    with pytest.raises(UnsupportedBody):
        await request.body(1000)


@pytest.mark.parametrize("coding", [b"identity", b" Identity ", b"", b"identity,", b"identity, identity"])
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
    with pytest.raises(UnsupportedBody, match="UTF-8"):
        require_json(asked(content_type=b"application/json;charset=" + charset))


def test_a_byte_order_mark_is_no_part_of_the_json():
    assert decode(msgspec.json.Decoder(dict), b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_utf_16_that_is_not_said_to_be_so_is_told_as_what_it_is(encoding):
    with pytest.raises(MalformedRequest, match="it looks like UTF-16"):
        decode(msgspec.json.Decoder(dict), '{"a": 1}'.encode(encoding))


ONE = b'{"a": 1}'
PACKED = {
    "gzip": gzip.compress(ONE),
    "zstd": b"\x28\xb5\x2f\xfd\x20\x08\x41\x00",
    "xz": lzma.compress(ONE),
    "bzip2": bz2.compress(ONE),
    "compress": b"\x1f\x9d\x90\x7b",
    **{f"deflate {level}": zlib.compress(ONE, level) for level in (0, 1, 5, 6, 9)},
}


@pytest.mark.parametrize("packed", PACKED)
def test_a_compressed_body_that_is_not_said_to_be_one_is_told_as_what_it_is(packed):
    with pytest.raises(MalformedRequest, match="the body is compressed, and no header says so"):
        decode(msgspec.json.Decoder(dict), PACKED[packed])


@pytest.mark.parametrize("body", [b"\x0b\x03\x80" + ONE + b"\x03", b"\x8b\x03\x80" + ONE + b"\x03"])
def test_a_body_that_may_be_compressed_with_brotli_is_told_so(body):
    with pytest.raises(MalformedRequest, match="if it is compressed"):
        decode(msgspec.json.Decoder(dict), body)


@pytest.mark.parametrize("space", [b" ", b"\t", b"\r\n"])
def test_json_may_begin_with_white_space(space):
    assert decode(msgspec.json.Decoder(dict), space + ONE) == {"a": 1}


def test_bytes_of_another_encoding_within_are_no_utf_8():
    with pytest.raises(MalformedRequest, match="not valid JSON"):
        decode(msgspec.json.Decoder(dict), '{"a": "ÿ"}'.encode("latin-1"))
