"""What a model is asked with typed inputs, and answers of a model that have no form in JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from dspool.config import PoolConfig
from dspool.errors import ProgramError
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import SessionHost
from dspool.testing.lm_server import LMServer

PNG_64 = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
PNG_URL = f"data:image/png;base64,{PNG_64}"
PERSON = {"name": "Ada", "age": 36}
ANSWER = "[[ ## answer ## ]]\na cat\n\n[[ ## score ## ]]\n0.5\n\n[[ ## completed ## ]]"


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture(scope="module")
def host(server: LMServer) -> SessionHost:
    config = PoolConfig(
        lm_profiles={"test": {"model": "openai/test", "endpoint": server.url}},
        default_lm="test",
        allowed_imports=("typed_programs",),
    )
    host = SessionHost(config)
    for name in ("FromSignature", "OpenFromSignature", "predict"):
        host.deploy(Deployment(name, 1, import_path=f"typed_programs:{name}"))
    host.deploy(Deployment("Asks", 1, import_path="typed_programs:Asks"))
    host.deploy(Deployment("spec", 1, spec={"signature": "question -> score: float, answer"}))
    host.deploy(
        Deployment("json", 1, spec={"signature": "question -> score: float, answer", "adapter": "json"})
    )
    return host


@pytest.mark.parametrize(
    "picture", [PNG_64, PNG_URL, {"url": PNG_URL}, {"file_data": PNG_URL, "filename": "a.png"}]
)
@pytest.mark.parametrize("program", ["Asks", "predict"])
async def test_an_image_reaches_the_model_as_an_image_and_never_as_text(
    host, server, program, picture, monkeypatch
):
    server.text = ANSWER
    inputs = {"picture": picture, "person": PERSON, "note": "n", "size": 2}
    outputs = (await host.run_async(ExecuteProgram(program, inputs), None)).value["outputs"]
    assert outputs == {"answer": "a cat", "score": 0.5}
    content = server.seen[-1]["messages"][-1]["content"]
    texts = [part["text"] for part in content if part["type"] == "text"]
    images = [part for part in content if part["type"] == "image_url"]
    assert [image["image_url"]["url"] for image in images] == [PNG_URL]
    assert PNG_64 not in "".join(texts)
    assert '"name": "Ada"' in "".join(texts)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("spec", "[[ ## score ## ]]\nnan\n\n[[ ## answer ## ]]\na\n\n[[ ## completed ## ]]"),
        ("spec", "[[ ## score ## ]]\n-Infinity\n\n[[ ## answer ## ]]\na\n\n[[ ## completed ## ]]"),
        ("json", '{"score": NaN, "answer": "a"}'),
    ],
)
@pytest.mark.parametrize("kind", [ExecuteProgram, StreamProgram])
async def test_a_number_of_a_model_that_is_not_finite_is_no_null(host, server, program, text, kind):
    server.text = text

    async def emit(event: StreamEvent) -> None:
        json.dumps(event.value, allow_nan=False)

    with pytest.raises(ProgramError) as refused:
        await host.run_async(kind(program, {"question": "q"}), None, emit)
    details = refused.value.details
    # What is no JSON at all is not read.
    assert details.get("field") == "score" or (program == "json" and details["reason"] == "unparsable")


@pytest.mark.parametrize("kind", [ExecuteProgram, StreamProgram])
async def test_half_a_pair_in_an_answer_of_a_model_is_replaced_and_the_rest_is_sent(host, server, kind):
    server.text = "[[ ## score ## ]]\n1\n\n[[ ## answer ## ]]\nhalf \ud83d\n\n[[ ## completed ## ]]"
    told = []

    async def emit(event: StreamEvent) -> None:
        told.append(event.value)
        json.dumps(event.value, ensure_ascii=False).encode()

    outputs = (await host.run_async(kind("spec", {"question": "q"}), None, emit)).value["outputs"]
    assert outputs == {"score": 1.0, "answer": "half �"}
