"""Tokens at rest: a file that only its owner can read, or a variable. A changed file is read again."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import secrets
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml

from dspool import private_files
from dspool.config.secret_values import FILE_SUFFIX, is_mounted, said_by, text_of
from dspool.core.admission.access import ROLES, Role, Token, Tokens, new_token
from dspool.errors import ConfigError

log = logging.getLogger("dspool.tokens")

VARIABLE = "DSPOOL_TOKENS"
"""Tokens as JSON, in the form of the file: for containers whose secrets come as variables."""
RECHECK_S = 1.0
"""A changed file counts after this long at most."""
_DAY_S = 86400.0
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


_FROM_VARIABLE = (VARIABLE, f"the file that {VARIABLE}{FILE_SUFFIX} names")
_EXPECTED = (
    "tokens are a mapping, `{tokens: [{id, name, role, sha256}]}`, or just the list, in YAML or JSON, as `dspool token "
    "new` writes them to a file; a token itself or a path does not belong there"
)
_LARGE, _WHOLE = "a number above 0", "a whole number from 1"
RULES = {
    "id": "8 hexadecimal digits",
    "name": "1 to 63 letters, digits and `_.@-`, with a letter or digit first",
    "role": " or ".join(ROLES),
    "sha256": "64 hexadecimal digits in lower case",
    "expires_at": "a number of seconds since 1970, or null",
    "weight": _LARGE,
    "max_running": _WHOLE,
    "rate_per_s": _LARGE,
    "burst": "a number from 1",
    "quota_per_day": _WHOLE,
    "max_sessions": _WHOLE,
    "max_session_mb": _LARGE,
    "max_stored_mb": _LARGE,
    "max_answers_mb": _LARGE,
    "priority": "interactive or batch",
}
"""What each field of a token must be."""
_NEEDED = ("id", "name", "role", "sha256")
_TYPES = get_type_hints(Token, include_extras=True)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[Token] = []


class TokenSource:
    """The tokens of `file` (if any) and of the variable `DSPOOL_TOKENS`.

    Raises:
        ConfigError: at construction, when they cannot be read.
    """

    def __init__(
        self,
        file: Path | None,
        variable: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._from_variable = parse(variable, VARIABLE) if variable else []
        self._clock = clock
        self._stamp = _stamp(file)
        self._tokens = self._read()
        self._recheck_at = clock() + RECHECK_S

    def __len__(self) -> int:
        return len(self._tokens)

    def current(self) -> Tokens:
        """The tokens now. A file that became unreadable or wrong changes nothing: the log says why."""
        now = self._clock()
        if self._file is not None and now >= self._recheck_at:
            self._recheck_at = now + RECHECK_S
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._tokens = self._read()
                except ConfigError as refused:
                    log.error("the tokens stay as they were: %s", refused.message)
        return self._tokens

    def _read(self) -> Tokens:
        return Tokens([*self._from_variable, *(read(self._file) if self._file is not None else [])])


def read(file: Path) -> list[Token]:
    """The tokens in `file`.

    Raises:
        ConfigError: it is missing or malformed, or others than its owner can open it.
    """
    try:
        # A FIFO in its place would hold us for ever.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{file} is no plain file", key="service.tokens_file")
            # A secret that a container engine mounted has the owner and mode that it gave it.
            mounted = is_mounted(file)
            if status.st_uid not in (os.geteuid(), 0) and not mounted:
                raise ConfigError(
                    f"{file} belongs to another user (id {status.st_uid}), who could write tokens into it",
                    key="service.tokens_file",
                )
            if status.st_mode & (_WRITABLE if mounted else stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"{file} may be opened by others (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 it",
                    key="service.tokens_file",
                )
            text = stream.read()
    except OSError as failed:
        raise ConfigError(
            f"the tokens in {file} cannot be read: {failed.strerror}", key="service.tokens_file"
        ) from failed
    return parse(text, str(file))


def parse(text: str | bytes, source: str) -> list[Token]:
    """Tokens from YAML or JSON: `tokens: [{id, name, role, sha256, ...}]`, or just the list.

    Raises:
        ConfigError: says which token and field, and never shows a value.
    """
    key = VARIABLE if source in _FROM_VARIABLE else "service.tokens_file"
    try:
        content: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as broken:
        # The error itself quotes the line, and PyYAML lets those of its constructors out.
        mark = getattr(broken, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{source} is not YAML or JSON{where}; {_EXPECTED}", key=key) from None
    content = {"tokens": content} if isinstance(content, list) else content or {}
    try:
        tokens = msgspec.convert(content, _File).tokens
    except msgspec.ValidationError:
        raise ConfigError(f"{source}: {_wrong(content)}", key=key) from None
    for number, token in enumerate(tokens, 1):
        if odd := next((name for name in RULES if _is_odd(getattr(token, name))), None):
            raise ConfigError(f"{source}: `{odd}` of token {number} must be {RULES[odd]}", key=key)
    for id, times in Counter(token.id for token in tokens).items():
        if times > 1:
            raise ConfigError(f"{source}: two tokens have the id {id}", key=key)
    return tokens


def _is_odd(value: Any) -> bool:
    """A number that is none, or a line break at the end: patterns and bounds let both through."""
    return (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, str) and value.endswith("\n")
    )


def _wrong(content: Any) -> str:
    """What is wrong with it, and where. No value and no unknown name: either may be a secret."""
    if not isinstance(content, dict):
        return f"it is {_kind(content)}, not a mapping or a list; {_EXPECTED}"
    if content.keys() - {"tokens"}:
        return f"it has keys besides `tokens`; {_EXPECTED}"
    if not isinstance(content["tokens"], list):
        return f"`tokens` is {_kind(content['tokens'])}, not a list; {_EXPECTED}"
    for number, token in enumerate(content["tokens"], 1):
        if not isinstance(token, dict):
            return f"token {number} is {_kind(token)}, not a mapping; {_EXPECTED}"
        if missing := [name for name in _NEEDED if name not in token]:
            return f"token {number} lacks `{missing[0]}`"
        if token.keys() - RULES.keys():
            return f"token {number} has a field that there is not; there are {', '.join(RULES)}"
        for name, value in token.items():
            try:
                msgspec.convert(value, _TYPES[name])
            except msgspec.ValidationError:
                return f"`{name}` of token {number} must be {RULES[name]}"
    return "it cannot be read"


def _kind(value: Any) -> str:
    kinds = {
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        dict: "a mapping",
        list: "a list",
    }
    return "nothing" if value is None else kinds.get(type(value), "something else")


def issue(
    file: Path, name: str, role: Role, *, days: float | None = None, now: Callable[[], float] = time.time
) -> tuple[str, Token]:
    """Make a token, add it to `file` (created if missing), and return it: the only time that it shows.

    Raises:
        ConfigError: the name is invalid, or the file cannot be read or written.
    """
    expires_at = None if days is None else now() + days * _DAY_S
    text, token = new_token(
        name, role, secrets.token_urlsafe(32), secrets.token_hex(4), expires_at=expires_at
    )
    try:
        token = msgspec.convert(msgspec.to_builtins(token), Token)
    except msgspec.ValidationError as refused:
        raise ConfigError(f"no token for {name!r}: {refused}", key="name") from None
    with _alone(file):
        write(file, [*(read(file) if file.exists() else []), token])
    return text, token


def revoke(file: Path, which: str) -> list[Token]:
    """Remove the token with the id `which`, or all of the principal of that name; returns them.

    Raises:
        ConfigError: there is none, or the file cannot be read or written.
    """
    with _alone(file):
        tokens = read(file)
        removed = [token for token in tokens if which in (token.id, token.name)]
        if not removed:
            raise ConfigError(f"{file} has no token {which!r}", key="token")
        write(file, [token for token in tokens if token not in removed])
    return removed


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Nobody else changes `file` meanwhile: a token that another command revoked must not come back."""
    directory = file.resolve().parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as failed:
        raise ConfigError(
            f"{file} cannot be written: {failed.strerror}", key="service.tokens_file"
        ) from failed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(file: Path, tokens: list[Token]) -> None:
    """Replace `file` in one step, so that nobody ever reads half of it. Of a link, what it leads to."""
    file = file.resolve()
    text = yaml.safe_dump({"tokens": msgspec.to_builtins(tokens)}, sort_keys=False)
    try:
        if not file.parent.exists():  # else it is the operator's, such as /etc/dspool
            private_files.make_directory(file.parent)
        # mkstemp gives 0600, and a name of its own: two commands may run at once.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as failed:
        raise ConfigError(
            f"{file} cannot be written: {failed.strerror}", key="service.tokens_file"
        ) from failed


def from_environment(environ: Mapping[str, str]) -> str | None:
    """The value of `DSPOOL_TOKENS`, or what the file holds that `DSPOOL_TOKENS_FILE` names.

    Raises:
        ConfigError: it holds no tokens, or cannot be read.
    """
    text = text_of(environ, VARIABLE)
    if text is None:
        return None
    source = _FROM_VARIABLE[said_by(environ, VARIABLE) != VARIABLE]
    # One that is empty is a mistake, and not the wish to let everybody in.
    if not parse(text, source):
        raise ConfigError(f"{source} holds no token; {_EXPECTED}", key=VARIABLE)
    return text


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    # The change time too: a file that was refused for its mode is read again once that is right.
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


__all__ = ["VARIABLE", "TokenSource", "from_environment", "issue", "parse", "read", "revoke", "write"]
