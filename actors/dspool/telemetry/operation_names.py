"""Kept operations as they are shown: names of sessions and principals for who may know them, hashes for others."""

from __future__ import annotations

from msgspec.structs import replace

from dspool.core.metrics.operation_records import (
    EndedOperation,
    FoundOperations,
    KeptOperation,
    OperationFilters,
    OperationPage,
    OperationQuery,
)
from dspool.telemetry.pseudonyms import principal_hash, session_hash, unsealed


def query_of(filters: OperationFilters, pool: str) -> OperationQuery:
    """What the filters mean: names become their hashes, which is what the records have."""
    session, principal = filters.get("session"), filters.get("principal")
    hashes: OperationFilters = {
        "session": None if session is None else session_hash(session, pool),
        "principal": None if principal is None else principal_hash(principal, pool),
    }
    return replace(OperationQuery(**filters), **hashes)


def operation_page(
    found: FoundOperations, pool: str, *, names: bool = True, viewer: str | None = None
) -> OperationPage:
    """What was found, with `names` of sessions and principals; without, only those of `viewer` are named."""
    viewer_hash = None if viewer is None else principal_hash(viewer, pool)

    def is_named(one: EndedOperation) -> bool:
        return names or (viewer_hash is not None and one.principal == viewer_hash)

    return OperationPage(
        [kept_operation(one, pool, names=is_named(one)) for one in found.operations],
        found.next_cursor,
        found.kept,
        found.oldest_at,
        found.left_out,
    )


def kept_operation(one: EndedOperation, pool: str, *, names: bool) -> KeptOperation:
    def name(sealed: str | None) -> str | None:
        return unsealed(sealed, pool) if names and sealed is not None else None

    return KeptOperation(
        id=one.id,
        ended_at=one.ended_at,
        duration_s=one.duration_s,
        wait_s=one.wait_s,
        run_s=one.run_s,
        command=one.command,
        program=one.program,
        version=one.version or None,
        outcome=one.outcome,
        code=one.code,
        exception=one.exception,
        at=one.at,
        worker=one.worker,
        attempts=one.attempts,
        trace_id=one.trace_id,
        session=name(one.session_sealed),
        session_hash=one.session,
        principal=name(one.principal_sealed),
    )
