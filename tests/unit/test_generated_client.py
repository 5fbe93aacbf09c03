"""A client that a generator makes of the OpenAPI document has typed methods for each program.

With `openapi-python-client`, in an environment of its own: it wants an older typer than dspool has. Without it these
tests are skipped, and `test_typed_operations` holds what it needs: valid, unique names, unique titles.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
import typed_programs  # noqa: F401  (what the programs below are imported from)
from http_doubles import answered
from test_typed_operations import described, made

from dspool_serve.api.common import answer_json, result_of

httpx = pytest.importorskip("httpx")
pytest.importorskip("openapi_python_client")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    programs = [
        described("answer", "predict"),
        described("people", "Takes_people"),
        described("pet", "Takes_pet"),
    ]
    (folder / "openapi.json").write_text(json.dumps(made(*programs)))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json"]
    done = subprocess.run(
        [*command, "--output-path", "dspool_client", "--meta", "none"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Unable" not in done.stdout
    sys.path.insert(0, str(folder))
    yield importlib.import_module("dspool_client")
    sys.path.remove(str(folder))


def test_a_generated_client_has_typed_methods_for_each_program(generated):
    models = importlib.import_module("dspool_client.models")
    execute = importlib.import_module("dspool_client.api.answer.execute_answer")
    for program in ("people", "pet"):
        importlib.import_module(f"dspool_client.api.{program}.execute_{program}")
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        outputs = {"outputs": {"answer": "a cat", "score": 0.5}}
        return httpx.Response(200, content=answer_json(result_of(answered(outputs))).body)

    client = generated.Client("http://dspool", httpx_args={"transport": httpx.MockTransport(answer)})
    person = models.AnswerInputsPerson(name="Ada", age=36)
    inputs = models.AnswerInputs(picture="https://example.com/cat.png", person=person, note="n", size=2)
    got = execute.sync(client=client, body=models.AnswerRequest(inputs=inputs))
    assert isinstance(got, models.AnswerResponse)
    assert (got.outputs.answer, got.outputs.score) == ("a cat", 0.5)
    assert sent[0]["inputs"]["person"]["name"] == "Ada"
