"""A typed operation for each pool program in the OpenAPI document, made from what its workers say of it.

The document is made anew when a version changes. A program that no worker describes in time has only the generic route.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from dspool.errors import PoolError
from dspool.messages import GetProgramInfo
from dspool_serve.api.common import PART_S, POOL, encode, or_none
from dspool_serve.pools import ClusterPool, Pools

_GENERIC: Final = POOL + "/programs/{program}/"
_VERBS: Final = ("execute", "stream")
_AT_ONCE: Final = 4
"""Programs that are asked for at the same time: each takes a slot for a moment."""


class DescribedProgram(NamedTuple):
    """A version of a pool program, with its inputs and outputs as JSON Schema."""

    pool: str
    program: str
    version: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class TypedDocument:
    """The OpenAPI document with the programs of all pools, as far as they are known."""

    def __init__(self, pools: Pools, document: bytes) -> None:
        self._pools, self._document = pools, document
        self._known: dict[tuple[str, str, int], DescribedProgram] = {}
        self._made: tuple[list[DescribedProgram], bytes] = ([], document)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def current(self) -> bytes:
        """With the versions that answer now."""
        found = await asyncio.gather(*(self._of_pool(self._pools.get(name)) for name in self._pools.names()))
        programs = [program for some in found for program in some]
        self._known = {(one.pool, one.program, one.version): one for one in programs}
        if programs != self._made[0]:
            made = with_programs(msgspec.json.decode(self._document), programs)
            self._made = programs, encode(made)
        return self._made[1]

    async def _of_pool(self, pool: ClusterPool) -> list[DescribedProgram]:
        versions = await or_none(pool.current_versions()) or {}
        asked = [self._described(pool, name, version) for name, version in sorted(versions.items())]
        return [found for found in await asyncio.gather(*asked) if found is not None]

    async def _described(self, pool: ClusterPool, name: str, version: int) -> DescribedProgram | None:
        known = self._known.get((pool.name, name, version))
        if known is not None:
            return known
        async with self._turns:
            try:
                info = (await pool.run(GetProgramInfo(name), timeout_s=PART_S)).value
            except PoolError:
                return None
        if not isinstance(info, dict) or "inputs" not in info or "outputs" not in info:
            return None
        # A worker may be one version ahead for a moment: it says which one it describes.
        return DescribedProgram(
            pool.name, name, info.get("version", version), info["inputs"], info["outputs"]
        )


def with_programs(document: dict[str, Any], programs: Iterable[DescribedProgram]) -> dict[str, Any]:
    """`document` and an operation for each way to run each of `programs`, with models of their own."""
    programs = list(programs)
    several = len({one.pool for one in programs}) > 1
    schemas, paths = document["components"]["schemas"], document["paths"]
    taken = {_snake(name) for name in schemas}
    for one in programs:
        prefix = _unique(_pascal(f"{one.pool} {one.program}" if several else one.program), taken)
        schemas.update(_models(one, prefix, schemas["ExecuteRequest"], schemas["ExecuteResponse"]))
        for verb in _VERBS:
            path = f"/v1/pools/{quote(one.pool, safe='')}/programs/{quote(one.program, safe='')}/{verb}"
            paths[path] = {"post": _operation(paths[_GENERIC + verb]["post"], verb, one, prefix)}
    return document


def _models(one: DescribedProgram, prefix: str, request: Any, response: Any) -> dict[str, Any]:
    inputs, outputs = f"{prefix}Inputs", f"{prefix}Outputs"
    models = {
        f"{prefix}Request": _with(request, "inputs", inputs, f"Inputs of {one.program!r}."),
        f"{prefix}Response": _with(response, "outputs", outputs, f"The answer of {one.program!r}."),
    }
    for name, schema in ((inputs, one.inputs), (outputs, one.outputs)):
        for inner, defined in (schema.get("$defs") or {}).items():
            # By its title, if there is one, generators name a class: it must be as unique.
            own = _definition(name, inner)
            models[own] = {**_rooted(defined, name), "title": own}
        parts = {key: part for key, part in schema.items() if key not in ("$defs", "$schema")}
        models[name] = {**_rooted(parts, name), "title": name}
    return models


def _with(struct: Any, field: str, model: str, description: str) -> Any:
    made = copy.deepcopy(struct)
    made.pop("title", None)
    made["description"] = description
    made["properties"][field] = {"$ref": f"#/components/schemas/{model}"}
    return made


def _rooted(schema: Any, model: str) -> Any:
    """`schema` with references into the document instead of into itself."""
    if isinstance(schema, list):
        return [_rooted(part, model) for part in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        name = _definition(model, reference.removeprefix("#/$defs/"))
        schema = {**schema, "$ref": f"#/components/schemas/{name}"}
    mapping = (schema.get("discriminator") or {}).get("mapping") if isinstance(schema, dict) else None
    if isinstance(mapping, dict):
        names = {
            tag: f"#/components/schemas/{_definition(model, target.removeprefix('#/$defs/'))}"
            for tag, target in mapping.items()
        }
        schema = {**schema, "discriminator": {**schema["discriminator"], "mapping": names}}
    return {
        key: part if key in ("discriminator", "default", "const", "enum") else _rooted(part, model)
        for key, part in schema.items()
    }


def _definition(model: str, name: str) -> str:
    return model + _pascal(name)


def _operation(generic: dict[str, Any], verb: str, one: DescribedProgram, prefix: str) -> dict[str, Any]:
    made = copy.deepcopy(generic)
    made["operationId"] = f"{verb}_{_snake(prefix)}"
    made["summary"] = f"{'Stream' if verb == 'stream' else 'Run'} {one.program!r}"
    made["tags"] = [one.program]
    made["x-dspool-version"] = one.version
    made["parameters"] = [part for part in made["parameters"] if part["in"] != "path"]
    request = {"$ref": f"#/components/schemas/{prefix}Request"}
    bodies = made["requestBody"]["content"]
    bodies["application/json"] = {"schema": request}
    if "contentMediaType" not in repr(one.inputs):
        bodies.pop("multipart/form-data", None)
    answer = {"$ref": f"#/components/schemas/{prefix}Response"}
    (media,) = made["responses"]["200"]["content"].values()
    media.pop("examples", None)
    if verb == "stream":
        media.pop("example", None)
        media["x-events"]["final"] = answer
    else:
        media["schema"] = answer
    return made


def _pascal(name: str) -> str:
    parts = re.findall(r"[A-Za-z0-9]+", name)
    made = "".join(part[0].upper() + part[1:] for part in parts)
    return made if made[:1].isalpha() else f"Program{made}"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _unique(name: str, taken: set[str]) -> str:
    """`name`, with a number if it is taken. Generators write names in ways of their own: case does not tell apart."""
    made, number = name, 1
    while _snake(made) in taken or _snake(f"{made}Request") in taken or _snake(f"{made}Response") in taken:
        number += 1
        made = f"{name}{number}"
    taken.add(_snake(made))
    return made


__all__ = ["DescribedProgram", "TypedDocument", "with_programs"]
