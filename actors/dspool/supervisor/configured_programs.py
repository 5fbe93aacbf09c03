"""Pool programs as the configuration names them."""

from __future__ import annotations

import msgspec

from dspool.config import ProgramConfig
from dspool.errors import ConfigError
from dspool.messages import Deployment


def deployment_of(program: str, configured: ProgramConfig) -> Deployment:
    """The configured program as a deployment without version.

    Raises:
        ConfigError: its `state_file` cannot be read or is not JSON.
    """
    state = None
    if configured.state_file is not None:
        try:
            state = msgspec.json.decode(configured.state_file.read_bytes())
        except (OSError, msgspec.DecodeError) as unreadable:
            raise ConfigError(
                f"programs.{program}.state_file={str(configured.state_file)!r}: {unreadable}",
                key=f"programs.{program}.state_file",
            ) from unreadable
    spec = dict(configured.spec or {})
    # The spec's own choice is nearer to the program than the one beside it.
    for key in ("lm", "adapter"):
        if getattr(configured, key) is not None:
            spec.setdefault(key, getattr(configured, key))
    return Deployment(
        program,
        0,
        spec=spec or None,
        state=state,
        import_path=configured.import_path,
        kwargs=dict(configured.kwargs),
    )
