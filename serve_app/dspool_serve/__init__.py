"""The HTTP service. Ray Serve takes it as `dspool_serve:app` or `dspool_serve:builder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

    from dspool_serve.ingress.serve_application import ServeArguments, builder

    app: Application

__all__ = ["ServeArguments", "app", "builder"]


def __getattr__(name: str) -> Any:
    # Made when it is asked for: it reads the configuration, and whoever imports a part of this package has none yet.
    if name not in __all__:
        raise AttributeError(f"module 'dspool_serve' has no attribute {name!r}")
    from dspool_serve.ingress import serve_application

    return serve_application.application() if name == "app" else getattr(serve_application, name)
