"""What `dspool preflight` checks. Each has a name that stays; the seed of this project listed them as items to tick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from dspool.cli.doctor import service
from dspool.cli.doctor.findings import Finding, fail, of_error, ok, warn
from dspool.cli.trial_pool import trial_pool
from dspool.config import PoolConfig
from dspool.core.wording import counted
from dspool.errors import PoolError

if TYPE_CHECKING:
    from dspool.local.pool import LocalPool

CHECKS: Final = (
    "configuration",
    "programs",
    "warm-up",
    "store",
    "language model",
    "model call",
    "benchmark",
    "monitoring",
)
"""In the order in which they are made. The seed's "run performance benchmarks" is `benchmark`, "verify pool
configuration" `configuration`, `programs`, `store` and the two of models, "test warmup strategy" `warm-up`, "configure
monitoring" `monitoring`."""
ALERTS: Final = "dspool_console.alerts"
"""Loaded when it is asked for: imports point down, and this package lies below."""
_LONGEST_PROBE_S: Final = 30.0


async def examine(
    configs: Sequence[PoolConfig], *, paid: bool, seconds: float, environ: Mapping[str, str]
) -> list[Finding]:
    """All checks of all pools."""
    findings = [_configuration(configs)]
    for config in configs:
        broken = [found for found in service.imports(config) if found.level != "ok"]
        findings += broken or [
            ok("programs", f"pool {config.name}: {', '.join(config.programs)} can be imported")
        ]
        findings.append(service.store(config, [], running=False))
        findings += service.language_models(config, environ)
        if not broken:
            findings += await _with_a_pool(config, paid=paid, seconds=seconds)
        findings.append(_monitoring(config))
    return findings


def _configuration(configs: Sequence[PoolConfig]) -> Finding:
    sizes = ", ".join(f"{one.name}: {counted(one.pool_size, 'worker')}" for one in configs)
    return ok("configuration", sizes)


async def _with_a_pool(config: PoolConfig, *, paid: bool, seconds: float) -> list[Finding]:
    """What one worker of it does, warmed as it will be, in a place of its own."""
    began = time.monotonic()
    try:
        async with trial_pool(config) as pool:
            took_s = time.monotonic() - began
            findings = [ok("warm-up", f"pool {config.name}: a worker is warm after {took_s:.1f} s")]
            findings += await _models(pool, config, paid=paid)
            findings.append(await _benchmark(pool, config, seconds))
            return findings
    except PoolError as failed:
        return [of_error("warm-up", failed, "no worker becomes ready", "correct what it names")]


async def _models(pool: LocalPool, config: PoolConfig, *, paid: bool) -> list[Finding]:
    profiles = {name: one for name, one in config.lm_profiles.items() if one.engine != "offline"}
    if not profiles:
        return [ok("model call", f"pool {config.name}: there is no model that could be asked")]
    if not paid:
        said = f"pool {config.name}: {', '.join(profiles)} not asked"
        return [warn("model call", said, "it is not known whether they answer", "--paid asks each once")]
    findings = []
    for name in profiles:
        began = time.monotonic()
        spec = {"signature": "question -> answer", "module": "Predict", "lm": name}
        session = pool.session(f"preflight-{name}")
        try:
            await session.create_program("probe", spec)
            await session.execute("probe", question="Say ok.", timeout_s=_LONGEST_PROBE_S)
        except PoolError as failed:
            findings.append(
                fail("model call", f"{name}: {failed.message}", "each call fails", "correct its profile")
            )
        else:
            findings.append(ok("model call", f"{name} answers after {time.monotonic() - began:.2f} s"))
    return findings


async def _benchmark(pool: LocalPool, config: PoolConfig, seconds: float) -> Finding:
    """What one worker does on its own, without a model: the pool's part of every operation."""
    from dspool.messages import Ping

    until, took, failed = time.monotonic() + seconds, [], 0

    async def one() -> None:
        nonlocal failed
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                await pool.run(Ping())
            except PoolError:
                failed += 1
            took.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(min(16, config.slots_per_worker))))
    rate = len(took) / (time.monotonic() - began)
    p99 = sorted(took)[int(len(took) * 0.99)] if took else 0.0
    slots = config.pool_size * config.slots_per_worker
    said = (
        f"pool {config.name}: {rate:,.0f} operations/s by one worker without a model, p99 {p99 * 1000:.1f} ms, "
        f"{failed} failed; {config.pool_size} workers have {slots} slots"
    )
    if failed:
        return fail("benchmark", said, "operations fail without load", "look at the log of `dspool dev`")
    if p99 > config.max_wait_s:
        meaning = f"that alone is more than max_wait_s={config.max_wait_s:g}"
        return warn("benchmark", said, meaning, "fewer slots_per_worker, or a machine with less to do")
    return ok("benchmark", said)


def _monitoring(config: PoolConfig) -> Finding:
    check = "monitoring"
    if not config.enable_metrics:
        return warn(check, "enable_metrics is off", "nobody sees what it does; no alert fires", "turn it on")
    rules = import_module(ALERTS).ALERTS
    return ok(check, f"{len(rules)} alerts, by the service itself and as rules for Prometheus")


__all__ = ["CHECKS", "examine"]
