"""Only JSON as it is: what a body is said to be, and how it is packed."""

from types import SimpleNamespace

import pytest

from dspool_serve.access.csrf import NotJson, require_json

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
