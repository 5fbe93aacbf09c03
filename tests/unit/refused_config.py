"""How a configuration is refused, and a secret that no refusal may repeat."""

from __future__ import annotations

import pytest

from dspool.config import PoolConfig
from dspool.errors import ConfigError

CANARY = "canary-7f3a"


def refused(**keys) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**keys)
    return caught.value
