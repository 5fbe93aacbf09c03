"""Where the session store may run: one database for all its lives."""

import asyncio

import pytest

from dspool.errors import ConfigError
from dspool.runtime.store_place import identity_of
from dspool.store.place import RecordedStore, node_of_store
from dspool.store.store import SessionStore

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


SERVED = RecordedStore(url=SQLITE[0], node="a", address="10.0.0.1", identity="one")


@pytest.mark.parametrize("nodes", [["a"], ["b", "a"]])
def test_a_file_that_was_served_stays_where_it_was_also_when_nodes_have_joined(nodes):
    assert node_of_store(SQLITE[0], nodes, recorded=SERVED) == "a"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [(["b"], {}), (["b"], {"b": "another"}), (["b", "c"], {"b": "one", "c": "one"}), (["b"], {"b": ""})],
)
def test_a_file_whose_node_is_away_is_refused_and_no_empty_one_takes_its_place(nodes, found):
    with pytest.raises(ConfigError, match=r"on the node 10\.0\.0\.1, which is not in the cluster"):
        node_of_store(SQLITE[0], nodes, found=found, recorded=SERVED)


def test_a_machine_that_came_back_as_another_node_is_known_by_its_file():
    assert node_of_store(SQLITE[0], ["b", "c"], found={"b": "two", "c": "one"}, recorded=SERVED) == "c"


def test_the_one_node_that_has_the_file_is_the_stores_when_nobody_remembers_it():
    assert node_of_store(SQLITE[0], ["b", "c"], found={"c": "one"}) == "c"
    with pytest.raises(ConfigError, match="PostgreSQL"):
        node_of_store(SQLITE[0], ["b", "c"], found={"b": "one", "c": "two"})


def test_another_store_url_is_the_operators_own_decision():
    assert node_of_store(SQLITE[1], ["b"], recorded=SERVED) == "b"


def test_the_identity_of_a_file_is_read_where_it_lies(tmp_path):
    async def make():
        store = SessionStore(f"sqlite:///{tmp_path}/s.db")
        await store.open()
        status = await store.describe("p")
        await store.close()
        return status

    status = asyncio.run(make())
    assert identity_of(str(tmp_path / "s.db")) == status.identity != ""
    assert (status.database, status.place, status.pinned) == ("sqlite", f"{tmp_path}/s.db", True)
    assert identity_of(str(tmp_path / "none.db")) is None
    (tmp_path / "old.db").write_text("")
    assert identity_of(str(tmp_path / "old.db")) == ""
