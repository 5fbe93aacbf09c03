"""A pool over HTTP, with the methods of `Pool`: from anywhere, without Ray."""

from dspool.client.blocking import BlockingRemotePool, BlockingRemoteSession
from dspool.client.remote import RemotePool, RemoteSession

__all__ = ["BlockingRemotePool", "BlockingRemoteSession", "RemotePool", "RemoteSession"]
