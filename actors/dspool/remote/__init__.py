"""A pool over HTTP, with the methods of `Pool`: from anywhere, without Ray."""

from dspool.remote.blocking import BlockingRemotePool, BlockingRemoteSession
from dspool.remote.pool import RemotePool, RemoteSession

__all__ = ["BlockingRemotePool", "BlockingRemoteSession", "RemotePool", "RemoteSession"]
