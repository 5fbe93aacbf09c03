"""Where the session store may run: one database for all its lives."""

import pytest

from dspool.errors import ConfigError
from dspool.store.place import node_of_store

SQLITE = [
    "sqlite:////var/lib/dspool/sessions.db",
    "sqlite+aiosqlite:////nfs/sessions.db",
    "sqlite:///relative.db",
]
POSTGRES = ["postgresql://db/dspool", "postgresql+asyncpg://user:secret@db/dspool"]


@pytest.mark.parametrize("url", SQLITE)
def test_a_file_stays_on_the_node_that_has_it(url):
    assert node_of_store(url, ["a"]) == "a"


@pytest.mark.parametrize("url", SQLITE)
@pytest.mark.parametrize("nodes", [["a", "b"], ["a", "b", "c"]])
def test_a_file_is_refused_on_several_nodes_with_what_to_do(url, nodes):
    with pytest.raises(ConfigError, match="set store_url to a PostgreSQL server") as refused:
        node_of_store(url, nodes)
    assert refused.value.details == {"key": "store_url", "nodes": len(nodes)}
    # Nor does it say where the file is.
    assert "sessions.db" not in refused.value.message


@pytest.mark.parametrize("url", POSTGRES)
@pytest.mark.parametrize("nodes", [["a"], ["a", "b"]])
def test_a_database_server_is_reached_from_any_node(url, nodes):
    assert node_of_store(url, nodes) is None
