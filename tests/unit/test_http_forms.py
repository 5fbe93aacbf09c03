"""Inputs as `multipart/form-data`: files become what the program declares, and what is ambiguous is refused."""

from __future__ import annotations

import base64
import json

import dspy
import pytest
import typed_programs  # noqa: F401  (what the programs below are imported from)
from http_doubles import FakePool, assert_problem, client_of

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest
from dspool.messages.limits import MAX_BODY_VALUES
from dspool.programs.program import Definition, load_program

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) + b"\r\n--not-the-boundary\r\n"
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
FILE = {"file_data": URL, "filename": "cat.png"}
RUN = "/v1/pools/default/programs/qa/execute"


async def sent(**form):
    pool = FakePool()
    async with client_of(pool) as http:
        del http.headers["content-type"]
        answer = await http.post(RUN, **form)
        assert answer.status_code == 200, answer.text
        return answer.json()["outputs"]


async def test_texts_json_and_files_of_a_form_are_inputs():
    files = {
        "picture": ("cat.png", PNG, "image/png"),
        "person": (None, json.dumps({"name": "Ada", "age": 36}), "application/json"),
        "question": (None, "What is it? é"),
    }
    outputs = await sent(files=files)
    assert outputs == {"picture": FILE, "person": {"name": "Ada", "age": 36}, "question": "What is it? é"}


async def test_parts_of_one_name_are_a_list():
    files = [
        ("pictures", ("cat.png", PNG, "image/png")),
        ("pictures", ("b", b"", None)),
        ("tag", (None, "a")),
    ]
    outputs = await sent(files=files)
    empty = {"file_data": "data:application/octet-stream;base64,", "filename": "b"}
    assert outputs == {"pictures": [FILE, empty], "tag": "a"}


async def test_streams_and_sessions_take_forms_as_well():
    pool = FakePool()
    async with client_of(pool) as http:
        del http.headers["content-type"]
        for place in (
            "programs/qa/stream",
            "sessions/ada/programs/qa/execute",
            "sessions/ada/programs/qa/stream",
        ):
            answer = await http.post(
                f"/v1/pools/default/{place}", files={"picture": ("cat.png", PNG, "image/png")}
            )
            assert answer.status_code == 200, answer.text
            assert pool.asked[-1]["command"].inputs == {"picture": FILE}
        assert_problem(
            await http.post("/v1/pools/default/programs/qa/batch", files={"a": ("b", b"c")}),
            415,
            "unsupported_media_type",
        )


FORM = "multipart/form-data; boundary=x"
HEAD = b'content-disposition: form-data; name="a"'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=", b"--x--"),
        ("multipart/form-data; boundary=x; boundary=y", b"--x--"),
        (FORM, b""),
        (FORM, b"{}"),
        (FORM, b"--x\r\n" + HEAD + b"\r\n\r\nv\r\n--x"),
        (FORM, b"before\r\n--x\r\n" + HEAD + b"\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\n\r\nv\r\n--x--\r\nafter"),
        (FORM, b"--x\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\n" + HEAD + b"\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b'; name="b"\r\n\r\nv\r\n--x--'),
        (FORM, b'--x\r\ncontent-disposition: form-data; name=""\r\n\r\nv\r\n--x--'),
        (FORM, b"--x\r\ncontent-disposition: attachment\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\n\r\n\xff\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\ncontent-transfer-encoding: base64\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\ncontent-type: application/json\r\n\r\n{\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\ncontent-type: a;b/c\r\n\r\nv\r\n--x--"),
        (FORM, b"--x\r\n" + HEAD + b"\r\nfoo: " + b"o" * 5000 + b"\r\n\r\nv\r\n--x--"),
    ],
)  # fmt: skip
async def test_a_form_that_cannot_be_read_in_one_way_is_refused(kind, body):
    async with client_of(FakePool()) as http:
        answer = await http.post(RUN, content=body, headers={"content-type": kind})
        assert_problem(answer, 400, "malformed_request")


async def test_a_form_that_is_sent_again_with_its_key_is_the_same_whatever_its_boundary():
    pool = FakePool()
    async with client_of(pool) as http:
        del http.headers["content-type"]

        async def send(name):
            files = {"picture": (name, PNG, "image/png")}
            return await http.post(RUN, files=files, headers={"idempotency-key": "k"})

        first, again = await send("a.png"), await send("a.png")
        assert first.json() == again.json()
        assert again.headers["idempotency-replayed"] == "true"
        assert pool.runs == 1
        assert_problem(await send("b.png"), 422, "idempotency_key_reused")


async def test_a_form_is_bounded_as_every_body_is():
    async with client_of(FakePool(), max_body_bytes=1000) as http:
        del http.headers["content-type"]
        answer = await http.post(RUN, files={"picture": ("cat.png", bytes(2000), "image/png")})
        assert_problem(answer, 413, "payload_too_large")


async def test_the_json_of_all_parts_together_is_bounded_as_that_of_a_body():
    part = (None, json.dumps([1] * (2 * MAX_BODY_VALUES // 3)), "application/json")
    async with client_of(FakePool()) as http:
        del http.headers["content-type"]
        assert (await http.post(RUN, files=[("a", part)])).status_code == 200
        for names in ("ab", "aa", "abc"):
            answer = await http.post(RUN, files=[(name, part) for name in names])
            assert_problem(answer, 413, "payload_too_large")


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("image", dspy.Image(URL)),
        ("images", [dspy.Image(URL)]),
        ("maybe_image", dspy.Image(URL)),
        ("file", dspy.File(file_data=URL, filename="cat.png")),
        ("raw", PNG),
    ],
)
def test_a_file_becomes_what_the_program_declares(kind, made):
    loaded = load_program(
        Definition(import_path=f"typed_programs:Takes_{kind}"),
        PoolConfig(allowed_imports=("typed_programs",)),
    )
    assert loaded.check_inputs({"value": FILE})["value"] == made
    text = load_program(
        Definition(import_path="typed_programs:Takes_text"), PoolConfig(allowed_imports=("typed_programs",))
    )
    with pytest.raises(InvalidRequest, match="valid string"):
        text.check_inputs({"value": FILE})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"user-agent": "curl/8"}, 200),
        ({"user-agent": "Mozilla/5.0", "sec-fetch-site": "same-origin"}, 200),
        ({"user-agent": "Mozilla/5.0"}, 415),
        ({"user-agent": "Mozilla/5.0", "sec-fetch-site": "cross-site"}, 403),
        ({"user-agent": "curl/8", "origin": "http://evil.example"}, 403),
    ],
)
async def test_no_page_of_another_origin_sends_a_form(headers, status):
    pool = FakePool()
    async with client_of(pool) as http:
        del http.headers["content-type"]
        answer = await http.post(RUN, files={"a": ("b", b"c")}, headers=headers)
        assert answer.status_code == status
        assert bool(pool.asked) is (status == 200)
