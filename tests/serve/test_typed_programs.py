"""A program with types behind the whole service: forms, schemas, typed operations, and the same by Python."""

from __future__ import annotations

import base64
import datetime
import math

import httpx
import jsonschema
import pydantic
import pytest

from dspool.errors import InvalidRequest, ProgramError
from dspool.remote import BlockingRemotePool

pytestmark = pytest.mark.serve

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
PERSON = {"name": "Ada", "born": "1815-12-10"}
PATH = "/v1/pools/default/programs/typed"


class Person(pydantic.BaseModel):
    """The caller's own class."""

    name: str
    born: datetime.date


@pytest.fixture
def http(guarded):
    headers = {"authorization": f"Bearer {guarded.tokens['ada']}"}
    with httpx.Client(
        base_url=guarded.url, verify=guarded.trust, headers=headers, timeout=60, trust_env=False
    ) as http:
        yield http


def test_json_and_forms_become_what_the_program_declares_and_all_comes_back(http):
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    outputs = {
        "given": ["date", url],
        "person": PERSON,
        "score": 0.25,
        "long": 3**100,
        "half": "�",
    }
    asked = {"inputs": {"person": PERSON, "picture": url, "score": 0.25}}
    assert http.post(f"{PATH}/execute", json=asked).json()["outputs"] == outputs
    form = {
        "person": (None, '{"name": "Ada", "born": "1815-12-10"}', "application/json"),
        "picture": ("cat.png", PNG, "image/png"),
        "score": (None, "0.25"),
    }
    assert http.post(f"{PATH}/execute", files=form).json()["outputs"] == outputs
    assert '"cat.png"' not in http.post(f"{PATH}/stream", files=form).text


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"person": {"name": "Ada"}}, "person.born"),
        ({"person": PERSON, "score": "abc"}, "score"),
        ({"person": PERSON, "picture": "http://169.254.169.254/latest"}, "picture"),
    ],
)
def test_what_does_not_fit_is_a_422_that_names_the_field(http, inputs, field):
    answer = http.post(f"{PATH}/execute", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["details"]["field"]) == (422, field)


def test_schemas_and_typed_operations_are_served_to_those_who_have_a_token(http, guarded):
    shown = http.get(PATH).json()
    jsonschema.Draft202012Validator(shown["inputs"]).validate({"person": PERSON})
    paths = http.get("/openapi.json").json()["paths"]
    assert paths[f"{PATH}/execute"]["post"]["operationId"] == "execute_typed"
    del http.headers["authorization"]
    assert f"{PATH}/execute" not in http.get("/openapi.json").json()["paths"]


def test_by_python_the_same_goes_in_and_comes_out(guarded):
    with BlockingRemotePool(guarded.url, token=guarded.tokens["ada"], ca_file=guarded.cert) as pool:
        person = Person(name="Ada", born=datetime.date(1815, 12, 10))
        result = pool.execute("typed", person=person)
        assert (result.person, result.long, result.half) == (PERSON, 3**100, "�")
        with pytest.raises(InvalidRequest) as refused:
            pool.execute("typed", person=person, score=math.nan)
        assert refused.value.field == "inputs.score"
        with pytest.raises(InvalidRequest) as refused:
            pool.execute("typed", person=person, score="nan")
        assert refused.value.field == "score"
        with pytest.raises(ProgramError) as failed:
            pool.execute("typed", person=person, odd=True)
        assert failed.value.field == "score"
        pool.session("s").set_variable("any", 1)
        assert "born" in str(pool.session("s").program_info("typed")["inputs"])
