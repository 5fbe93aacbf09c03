"""What goes in and out over HTTP about the versions of pool programs, as `schema` has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from dspool.core.lifecycle.version_diff import VersionDifference
from dspool.messages.programs import MadeBy
from dspool.supervisor.canary import Rollout
from dspool_serve.api.schema import Cursor, JSONObject, ProgramRequest, Schema


class DeployRequest(ProgramRequest, forbid_unknown_fields=True):
    """The next version of a program; `state` or `kwargs` alone go into the current one. No body at all: the current one
    with its source as it is now."""

    program_dir: Annotated[
        str | None,
        Meta(description="a program that DSPy saved whole, within allowed_program_dirs; it runs code"),
    ] = None
    new: Annotated[
        bool | None,
        Meta(
            description="false refuses a name that the pool does not have, so that a mistyped one makes no program; "
            "true takes it as a new program, and so does null, for clients that do not send it"
        ),
    ] = None


class ProgramVersion(Struct, omit_defaults=True):
    """One version of a pool program, without what it holds."""

    version: int
    kind: Literal["spec", "state", "import_path", "program_dir"]
    summary: Annotated[str, Meta(description="the signature's fields, the import path or the directory")]
    source: Annotated[str, Meta(description="digest of the source that it is made of")] = ""
    state: Annotated[str, Meta(description="digest of its saved state")] = ""
    made_by: MadeBy | None = None
    made_at: Annotated[float | None, Meta(description="wall-clock seconds; null: not known")] = None
    by: Annotated[str, Meta(description="who asked for it; for admins")] = ""


class PoolProgram(Struct):
    """A pool program: the version that answers, and those it can be rolled back to."""

    program: str
    version: Annotated[int, Meta(description="current version")]
    versions: list[int]
    deployments: Annotated[list[ProgramVersion], Meta(description="newest first")] = []


class PoolProgramList(Struct):
    programs: list[PoolProgram]
    next_cursor: Cursor = None


class PoolProgramInfo(Struct):
    """A pool program as its workers describe it."""

    program: str
    version: int
    versions: list[int]
    info: JSONObject
    inputs: Schema = {}
    outputs: Schema = {}


class Deployed(Struct):
    """The version of a pool program that every warm worker now answers with."""

    program: str
    version: int


class VersionComparison(Struct):
    """In what two versions of a pool program differ, and what both did while the later one was tried."""

    program: str
    old: ProgramVersion
    new: ProgramVersion
    differences: Annotated[list[VersionDifference], Meta(description="values are cut, and secrets not shown")]
    rollout: Annotated[
        Rollout | None,
        Meta(description="the last in which both ran at the same time; null: none is remembered"),
    ] = None


class RollbackRequest(Struct, forbid_unknown_fields=True):
    """Go back to `version`, or to the one before the current one."""

    version: Annotated[int, Meta(ge=1)] | None = None
