"""The tree of errors, and what each means to a caller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import dspool.errors
import dspool_serve.access.csrf  # noqa: F401  what they import defines the errors that only HTTP has
from docs._generators.markdown import sentence
from docs._generators.markdown import table as markdown_table
from dspool.errors import PoolError
from dspool_serve.http.problems import TABLE

_LATER = "Try again later"
ADVICE: Final = {
    "pool_error": "Look into the log of the service; the message says what failed.",
    "config_error": "Correct the value that the message names.",
    "caller_error": "Correct the request as the message says.",
    "invalid_request": "Correct the field that the message names.",
    "unsupported_media_type": "Send `Content-Type: application/json` with the body, uncompressed.",
    "payload_too_large": "Send less, or raise `service.max_body_bytes`.",
    "not_allowed": "Use a token of the role that the message names, or allow it in the configuration.",
    "unauthenticated": "Send `Authorization: Bearer` with a token that exists and has not expired.",
    "conflict": "Look at what is there now, then decide.",
    "unknown_name": "Look for the name in the list of its kind.",
    "unknown_pool": "`GET /v1/pools` lists the pools.",
    "unknown_program": "`GET .../programs` lists the programs.",
    "unknown_session": "Create the session again: it was never created, was ended, or expired (`session_ttl_s`).",
    "unknown_worker": "`dspool status` lists the workers.",
    "rejected": f"{_LATER}, after `retry_after_s`.",
    "queue_full": f"{_LATER}, after `retry_after_s`; if it stays, add workers or slots.",
    "rate_limited": f"{_LATER}, after `retry_after_s`, or ask for a higher rate or quota.",
    "poison_request": "Find out in the workers' log why they die of it. It is taken again after `retry_after_s`, or "
    "when another version of the program is current; `retry.refuse_poison_s` sets the time.",
    "quota_exceeded": "`details.limit` names the limit: end sessions, delete variables or programs, or ask for more. "
    "Room is there at once.",
    "pool_paused": f"{_LATER}, or `dspool resume`.",
    "pool_not_ready": f"{_LATER}; `dspool status` says why no worker is warm.",
    "pool_closed": "Connect again when the pool runs.",
    "too_many_sessions": "End sessions, add workers, or raise `max_sessions_per_worker`.",
    "deadline_exceeded": "`phase` says where the time went. `queue`: add workers or slots. `run`: give it more time.",
    "cancelled": "Nothing: the caller asked for it, or went away.",
    "model_error": "`status` is what the model's service answered.",
    "model_unreachable": "Look at `endpoint` and the network between workers and model.",
    "model_rate_limited": f"{_LATER}, after `retry_after_s`, or ask the model's provider for more.",
    "model_auth_failed": "Look at the variable that `api_key_env` names, on the nodes that run workers.",
    "model_refused": "`details.reason` says why. `refused`, `filtered`: ask otherwise; `details.refusal` has the "
    "model's words. `truncated`: raise `max_tokens`, or ask for less.",
    "program_error": "`details.exception` is the kind of exception. Look at the program and its inputs.",
    "sandbox_unavailable": 'Install Deno where workers run: `pip install "dspool[sandbox]"`.',
    "worker_lost": "Run it again if that does no harm: it had begun. A program with `idempotent: true` is run again "
    "by itself.",
    "change_went_back": "`details.gradual` has the steps and the reason: how to go on says [step by step, and back by "
    "itself](../how-to/change.md#step-by-step-and-back-by-itself).",
    "worker_start_failed": "`dspool status` names the warm-up step and its error; `dspool doctor` looks further.",
    "unreachable": "Look whether it was done before you send it again without an `Idempotency-Key`.",
    "ingress_failed": "Look whether it was done before you send it again without an `Idempotency-Key`.",
    "stale_lease": "Send it again: the session has moved.",
    "store_failed": "Look at the database that `store_url` names. The change was not acknowledged.",
    "internal_error": "Report it, with the service's log.",
    "not_found": "Look at the path: the [routes](http.md) are listed.",
    "method_not_allowed": "Use a method that the header `Allow` names.",
    "malformed_request": "Send a body that is JSON, and names and headers that can be read.",
    "csrf": "Reload the dashboard.",
    "request_too_slow": "Send the body faster, or raise `service.body_timeout_s`.",
    "idempotency_in_progress": "Wait for the first request, then send this one again.",
    "idempotency_outcome_unknown": "Look whether it was done; then use a new key.",
    "idempotency_key_reused": "Use a new key for a new request.",
}
"""What to do about each code. A test holds it complete."""


def tree() -> str:
    return f"```text\n{_drawing()}\n```\n"


def table() -> str:
    """Every code, those that only HTTP has included."""
    kinds = _kinds()
    rows = []
    for code, (status, title) in TABLE.items():
        kind = kinds[code]
        name = f"`{kind.__name__}`<br>`{code}`" if kind.__module__ == dspool.errors.__name__ else f"`{code}`"
        meaning = sentence(meanings().get(kind.__name__) or title)
        rows.append((name, str(status), kind.outcome, meaning, ADVICE[code]))
    return markdown_table(("error", "HTTP", "outcome", "what it means", "what to do"), rows)


def meanings() -> dict[str, str]:
    """What the drawing of the tree says about each class."""
    found = {}
    for line in _drawing().splitlines():
        if said := re.match(r"[│├└─ ]*(?P<name>[A-Z]\w+) +(?P<meaning>\S.*)", line):
            meaning = re.sub(r"^\((.*)\)$", r"\1", said["meaning"].partition("; outcome")[0])
            found[said["name"]] = meaning[0].upper() + meaning[1:]
    return found


def _drawing() -> str:
    _, _, drawing = (dspool.errors.__doc__ or "").partition("\n\n")
    return drawing.strip()


def _kinds() -> dict[str, type[PoolError]]:
    """The class of each code. Ray makes subclasses of its own, which are not ours."""
    found: dict[str, type[PoolError]] = {}
    for kind in _with_all_below(PoolError):
        if kind.__module__.startswith("dspool"):
            found.setdefault(kind.code, kind)
    return found


def _with_all_below(kind: type[PoolError]) -> Iterator[type[PoolError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_all_below(below)
