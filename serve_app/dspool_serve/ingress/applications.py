"""The application of a service in Ray Serve: put there, changed, taken away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dspool_serve.ingress.starting import in_thread

if TYPE_CHECKING:
    from ray.serve import Application

_LOOK_S = 0.1


async def deploy(app: Application, name: str) -> None:
    """Returns when `app` runs; one that ran before under this name is replaced, the new one first. Serve itself would
    wait for that without an end.

    Raises:
        RuntimeError: Serve gave up; says why.
    """
    await in_thread(lambda: _begin(app, name))
    while (status := await status_of(name)) != "RUNNING":
        if status == "DEPLOY_FAILED":
            raise RuntimeError(await asyncio.to_thread(_message_of, name))
        await asyncio.sleep(_LOOK_S)


def _begin(app: Application, name: str) -> None:
    from ray import serve

    serve.run_many([serve.RunTarget(app, name=name)], wait_for_applications_running=False)


async def status_of(name: str) -> str:
    """As Serve says it; empty: there is no such application."""
    from ray import serve

    application = (await asyncio.to_thread(serve.status)).applications.get(name)
    return "" if application is None else str(application.status.value)


def _message_of(name: str) -> str:
    from ray import serve

    return str(serve.status().applications[name].message)


def undeploy(name: str) -> None:
    from ray import serve

    serve.delete(name)


__all__ = ["deploy", "status_of", "undeploy"]
