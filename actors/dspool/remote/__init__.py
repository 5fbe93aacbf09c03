"""A pool over HTTP, with the methods of `Pool`: from anywhere, without Ray."""

from dspool.remote.pool import BlockingRemotePool, RemotePool, RemoteSession

__all__ = ["BlockingRemotePool", "RemotePool", "RemoteSession"]
