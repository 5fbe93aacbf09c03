"""Each pool program has an operation of its own in the OpenAPI document, with its inputs and outputs."""

from __future__ import annotations

import json

import httpx
import jsonschema
import openapi_spec_validator
import pytest
import typed_programs  # noqa: F401  (what the programs below are imported from)
from http_doubles import FakePool, answered, client_of, served

from dspool.config import PoolConfig
from dspool.core.admission.access import new_token
from dspool.errors import PoolNotReady
from dspool.messages import GetProgramInfo
from dspool.programs.program import Definition, load_program
from dspool.tokens import TokenSource, write
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.api.openapi import document
from dspool_serve.api.typed_operations import DescribedProgram, with_programs

CONFIG = PoolConfig(allowed_imports=("typed_programs",))
PERSON = {"name": "Ada", "age": 36}


def described(program: str, path: str, pool: str = "default") -> DescribedProgram:
    info = load_program(Definition(import_path=f"typed_programs:{path}"), CONFIG).describe()
    return DescribedProgram(pool, program, 1, info["inputs"], info["outputs"])


def made(*programs: DescribedProgram):
    return with_programs(document(ROUTES, version="1"), programs)


def schema_of(whole, name):
    return {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}


def test_a_program_has_typed_operations_in_a_valid_document():
    whole = made(
        described("answer", "predict"), described("who?", "Takes_people"), described("tree", "Takes_node")
    )
    openapi_spec_validator.validate(json.loads(json.dumps(whole)))
    operation = whole["paths"]["/v1/pools/default/programs/answer/execute"]["post"]
    assert operation["operationId"] == "execute_answer"
    assert whole["paths"]["/v1/pools/default/programs/who%3F/stream"]["post"]["operationId"] == "stream_who"
    assert not [part for part in operation["parameters"] if part["in"] == "path"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    assert request == {"$ref": "#/components/schemas/AnswerRequest"}
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/AnswerResponse"}
    assert "execute" in whole["paths"]["/v1/pools/{pool}/programs/{program}/execute"]["post"]["operationId"]
    ids = [op["operationId"] for item in whole["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))


def test_the_types_of_an_operation_are_those_of_its_program():
    whole = made(described("people", "Takes_people"))
    takes = jsonschema.Draft202012Validator(schema_of(whole, "PeopleRequest"))
    takes.validate({"inputs": {"value": [PERSON]}, "timeout_s": 3})
    for wrong in ({"value": [{"name": "Ada"}]}, {"value": "Ada"}, {}, {"value": [], "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            takes.validate({"inputs": wrong})


def test_each_model_has_a_title_of_its_own():
    whole = made(described("answer", "predict"), described("people", "Takes_people"))
    titles = [schema.get("title", name) for name, schema in whole["components"]["schemas"].items()]
    assert len(titles) == len(set(titles))


def test_names_that_would_be_the_same_are_told_apart():
    whole = made(
        described("a b", "Takes_text"), described("a_b", "Takes_text"), described("execute", "Takes_text")
    )
    ids = [op["operationId"] for item in whole["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))
    assert {"execute_ab", "execute_ab2"} <= set(ids)
    assert (
        document(ROUTES, version="1")["components"]["schemas"]["ExecuteRequest"]
        == (whole["components"]["schemas"]["ExecuteRequest"])
    )


def test_with_several_pools_the_pool_is_in_the_name():
    whole = made(described("p", "Takes_text", "one"), described("p", "Takes_text", "two"))
    ids = [op["operationId"] for item in whole["paths"].values() for op in item.values()]
    assert {"execute_one_p", "execute_two_p"} <= set(ids)


class TypedPool(FakePool):
    """`qa` says its types; `others` come and go."""

    def __init__(self):
        super().__init__()
        self.current = {"qa": 1}
        self.infos = 0
        self.away = False

    async def current_versions(self):
        return self.current

    async def run(self, command, **options):
        if isinstance(command, GetProgramInfo):
            self.infos += 1
            if self.away:
                raise PoolNotReady("away")
            one = described(command.program, "Takes_people")
            return answered(
                {"version": self.current[command.program], "inputs": one.inputs, "outputs": one.outputs}
            )
        return await super().run(command, **options)


async def typed_paths(http):
    paths = (await http.get("/openapi.json")).json()["paths"]
    return {path for path in paths if path.startswith("/v1/pools/default/programs/")}


async def test_the_served_document_follows_the_versions_and_asks_once_for_each(monkeypatch):
    monkeypatch.setattr("dspool_serve.api.application.FRESH_S", 0.0)
    pool = TypedPool()
    both = {
        f"/v1/pools/default/programs/{name}/{verb}"
        for name in ("qa", "new")
        for verb in ("execute", "stream")
    }
    async with client_of(pool) as http:
        for _ in range(3):
            assert await typed_paths(http) == {path for path in both if "/qa/" in path}
        assert pool.infos == 1
        pool.current = {"qa": 2, "new": 1}
        assert await typed_paths(http) == both
        assert pool.infos == 3
        pool.current = {"new": 1}
        assert await typed_paths(http) == {path for path in both if "/new/" in path}
        pool.current, pool.away = {"new": 2}, True
        assert await typed_paths(http) == set()
        pool.away = False
        assert len(await typed_paths(http)) == 2


async def test_where_there_are_tokens_strangers_learn_nothing_of_the_programs(tmp_path):
    pool, file = TypedPool(), tmp_path / "tokens.yaml"
    text, token = new_token("rea", "reader", "A" * 43, "00000000")
    write(file, [token])
    app = served(pool, security=Security(TokenSource(file)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://dspool") as http:
        for wrong in ({}, {"authorization": "Bearer dsp_wrong"}, {"authorization": "Basic eDp5"}):
            http.headers = wrong
            assert await typed_paths(http) == set()
        assert pool.infos == 0
        http.headers = {"authorization": f"Bearer {text}"}
        assert len(await typed_paths(http)) == 2


async def test_a_program_shows_its_schemas():
    async with client_of(TypedPool()) as http:
        shown = (await http.get("/v1/pools/default/programs/qa")).json()
    assert shown["inputs"]["properties"]["value"]["type"] == "array"
    assert shown["outputs"]["type"] == "object"
    assert "inputs" not in shown["info"]
