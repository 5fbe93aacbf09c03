"""What connections alone can do: held in numbers, silent, slow, never read, strange. A real HAProxy, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
from unittest import mock

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
import ray
import ray.serve

from dspool import PoolConfig
from dspool.corrections import haproxy_frontend
from dspool.corrections.haproxy_frontend import Limits, most_connections
from dspool.errors import ConfigError
from dspool_serve.api import ROUTES
from dspool_serve.ingress import haproxy
from dspool_serve.ingress.service import Service
from tests.serve.haproxy_front import Front, certificate, needs_haproxy

__all__ = ["certificate"]

pytestmark = [pytest.mark.serve, needs_haproxy]

STRANGER, OTHER, GUEST = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""Not 127.0.0.1, which no limit of one address holds."""
PATIENCE_S = 60.0
SLOWLY_S = 300.0
SMALL = Limits(max_connections=100, per_address=20)


@pytest.fixture(autouse=True)
def on_a_busy_machine(monkeypatch):
    """Those that are to be held are held however long it takes to open them; what is to end soon says `soon`."""
    monkeypatch.setattr(haproxy_frontend, "HEAD_S", SLOWLY_S)


async def connection(front, source, *, host="127.0.0.1", **options):
    return await asyncio.open_connection(host, front.port, local_addr=(source, 0), **options)


async def is_let_in(front, source, path=b"/"):
    """Whether a request from `source` is answered; the status of the answer, else None."""
    try:
        reader, writer = await connection(front, source)
        writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    except ConnectionError:
        return None
    return int(answer.split(b" ", 2)[1]) if answer else None


async def hold(front, source, number):
    """So many connections that send nothing; those that HAProxy keeps."""
    held = []
    for _ in range(number):
        try:
            reader, writer = await connection(front, source)
        except ConnectionError:
            continue
        held.append((reader, writer))
    # An answer to a request that comes later: by then HAProxy has looked at all that came before.
    await is_let_in(front, "127.0.0.1")
    return [(reader, writer) for reader, writer in held if not reader.at_eof() and not reader.exception()]


def let_go(held):
    for _, writer in held:
        writer.close()


async def talk(front, sent, source=STRANGER):
    reader, writer = await connection(front, source)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return answer


# --- how many ---------------------------------------------------------------------------------------


async def test_one_address_holds_its_share_of_the_connections_and_no_more(tmp_path):
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        held = await hold(front, STRANGER, 60)
        assert len(held) <= 20
        assert await is_let_in(front, STRANGER) is None
        assert await is_let_in(front, OTHER) == 200
        assert await is_let_in(front, "127.0.0.1") == 200
        let_go(held)


async def test_the_machine_itself_has_no_share_of_one_address_and_yet_cannot_take_all(tmp_path):
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        # Not even with a token.
        assert await is_let_in(front, OTHER, b"/v1/pools") == 200
        assert await is_let_in(front, "127.0.0.1", b"/v1/pools") == 200
        held = await hold(front, "127.0.0.1", 60)
        assert len(held) == 60
        held += await hold(front, "127.0.0.1", 60)
        assert len(held) <= 75
        assert await is_let_in(front, "127.0.0.1") is None
        assert await is_let_in(front, OTHER) == 200
        let_go(held)


async def test_a_reverse_proxy_is_not_held_to_the_share_of_one_address(tmp_path):
    limits = SMALL._replace(trusted_proxies=(f"{STRANGER}/32",))
    async with Front(tmp_path, limits=limits, request_s=SLOWLY_S) as front:
        held = await hold(front, STRANGER, 40)
        assert len(held) == 40
        let_go(held)


async def test_the_last_quarter_is_for_addresses_that_have_shown_a_token(tmp_path):
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        # Below /v1/ a request without a valid token is a 401: this one was let in.
        assert await is_let_in(front, GUEST, b"/v1/pools") == 200
        assert await is_let_in(front, OTHER, b"/healthz") == 200
        held = []
        # More than there is room for, of which those before may have taken some for a moment longer.
        for number in range(6):
            held += await hold(front, f"127.0.1.{number}", 20)
        assert len(held) >= 74
        assert await is_let_in(front, OTHER) is None
        assert await is_let_in(front, GUEST) == 200
        let_go(held)


async def test_with_half_of_all_connections_taken_those_of_strangers_end_with_their_answer(tmp_path):
    ask = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        await is_let_in(front, GUEST, b"/v1/pools")
        held = await hold(front, "127.0.0.1", 60)
        answer = await talk(front, ask)  # reads until HAProxy closes
        assert b"connection: close" in answer.lower()
        reader, writer = await connection(front, GUEST)
        writer.write(ask)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert b"connection: close" not in head.lower()
        let_go([*held, (reader, writer)])


async def test_with_half_of_all_connections_taken_a_stranger_has_little_time_for_a_body(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(haproxy_frontend, "CROWDED_BODY_S", 0.5)
    slow = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        await is_let_in(front, GUEST, b"/v1/pools")
        held = await hold(front, "127.0.0.1", 60)
        guest = await connection(front, GUEST)
        guest[1].write(slow)
        answer = await talk(front, slow)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request_too_slow"
        guest[1].write(b"defghi")
        assert (await asyncio.wait_for(guest[0].readuntil(b"\r\n"), PATIENCE_S)).startswith(b"HTTP/1.1 200")
        let_go([*held, guest])


async def test_an_ipv6_address_counts_with_its_network(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with Front(tmp_path, host="::1") as front:
        _, writer = await connection(front, "::1", host="::1")
        table = front.table("http_frontend")
        writer.close()
    # ::1 in its /64.
    assert "key=:: " in table


async def test_all_routes_below_v1_need_a_token_so_that_an_answer_from_there_proves_one():
    assert not [route.path for route in ROUTES if route.path.startswith("/v1/") and route.role is None]


@pytest.mark.parametrize(
    ("open_files", "wanted", "connections"),
    [(1_000_000, None, 10_000), (20_000, None, 7_880), (1024, None, 289), (20_000, 500, 500)],
)
def test_there_are_as_many_connections_as_files_may_be_open(open_files, wanted, connections):
    assert most_connections(open_files, wanted) == connections


def test_more_connections_than_files_may_be_open_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"5000 connections need 12,800 open files .* 4,096") as refused:
        most_connections(4096, 5000)
    assert refused.value.details["key"] == "service.max_connections"


@pytest.mark.parametrize(
    "service",
    [
        {"max_connections": 0},
        {"max_connections": 99},
        {"max_connections": True},
        {"max_connections_per_address": 0},
        {"max_connections": 100, "max_connections_per_address": 101},
        {"trusted_proxies": ["0.0.0.0/0"]},
        {"trusted_proxies": ["::/0"]},
        {"trusted_proxies": ["10.0.0.1/8"]},
        {"trusted_proxies": ["proxy.example"]},
        {"trusted_proxies": ["127.0.0.1\n    acl x always_true"]},
        {"host": "0.0.0.0:8000 ssl"},
        {"host": "x\ny"},
    ],
)
def test_settings_of_connections_that_make_no_sense_are_refused(service):
    with pytest.raises(ConfigError, match=r"service\."):
        PoolConfig(service=service)


def test_limits_are_refused_where_nothing_would_hold_them():
    haproxy.refuse_limits(PoolConfig().service, "here")
    for given in ({"max_connections": 500}, {"trusted_proxies": ["10.0.0.1"]}):
        with pytest.raises(ConfigError, match="reverse proxy"):
            haproxy.refuse_limits(PoolConfig(service=given).service, "here")


# --- how long ---------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    """What waits half a minute elsewhere waits a second here."""
    monkeypatch.setattr(haproxy_frontend, "STALL_S", 1.0)
    monkeypatch.setattr(haproxy_frontend, "KEEP_ALIVE_S", 1.0)


async def test_one_who_sends_no_whole_head_is_given_up(tmp_path, soon):
    heads = (b"", b"GET", b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    async with Front(tmp_path, request_s=1.0) as front:
        await asyncio.gather(*(talk(front, head) for head in heads))
        assert front.replica.seen == []


async def test_one_who_sends_a_byte_of_the_head_at_a_time_is_given_up(tmp_path, soon):
    async with Front(tmp_path, request_s=1.0) as front:
        reader, writer = await connection(front, STRANGER)
        ended = asyncio.ensure_future(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        async with asyncio.timeout(PATIENCE_S):
            while not ended.done():
                writer.write(b"a")
                await asyncio.wait([ended], timeout=0.1)
        writer.close()


async def test_a_connection_that_asks_no_more_ends_before_one_that_has_not_asked_yet(tmp_path, soon):
    async with Front(tmp_path) as front:
        silent = await connection(front, STRANGER)
        asked = await connection(front, STRANGER)
        asked[1].write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        ends = [asyncio.ensure_future(reader.read()) for reader, _ in (asked, silent)]
        done, _ = await asyncio.wait(ends, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert done == {ends[0]}
        assert ends[0].result().startswith(b"HTTP/1.1 200")
        ends[1].cancel()
        let_go([asked, silent])


async def test_a_tls_handshake_without_an_end_is_given_up(tmp_path, soon, certificate):
    async with Front(tmp_path, tls=certificate, request_s=1.0) as front:
        beginnings = (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await asyncio.gather(*(talk(front, beginning) for beginning in beginnings))


async def test_one_who_does_not_read_the_answer_is_given_up_and_the_replica_is_told(tmp_path, soon):
    async with Front(tmp_path, request_s=1.0) as front:
        reader, writer = await connection(front, STRANGER, limit=1024)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(front.replica.left.wait(), PATIENCE_S)
        assert not reader.at_eof()
        writer.close()


async def test_one_who_waits_long_for_an_answer_is_not_given_up(tmp_path, soon):
    async with Front(tmp_path, request_s=1.0) as front:
        waiting = asyncio.ensure_future(is_let_in(front, STRANGER, b"/held"))
        # Meanwhile one who really stalls is given up, twice: so long the other has been silent.
        for _ in range(2):
            await talk(front, b"GET")
        front.replica.let_go.set()
        assert await waiting == 200


async def test_a_half_closed_connection_gets_its_answer_or_ends(tmp_path, soon):
    async with Front(tmp_path, request_s=1.0) as front:
        for path in (b"/", b"/endless"):
            reader, writer = await connection(front, STRANGER)
            writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
            writer.write_eof()
            if path == b"/endless":
                await asyncio.wait_for(front.replica.left.wait(), PATIENCE_S)
            else:
                await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()


# --- HTTP/2 -----------------------------------------------------------------------------------------


class Multiplexed:
    """An HTTP/2 connection without TLS, which HAProxy understands on any port."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.statuses = {}
        self.ended = set()

    def ask(self, path="/held", method="GET", **more):
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *more.items()]
        self.h2.send_headers(stream, head, end_stream=True)
        return stream

    def open(self, streams):
        return [one for one in streams if one not in self.statuses and one not in self.ended]

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    async def read(self):
        """What came; false when the connection has ended."""
        data = await asyncio.wait_for(self.reader.read(65536), PATIENCE_S)
        for event in self.h2.receive_data(data) if data else ():
            if isinstance(event, h2.events.ResponseReceived):
                self.statuses[event.stream_id] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.StreamReset):
                self.ended.add(event.stream_id)
        self.flush()
        return bool(data)


@pytest.mark.parametrize(("source", "most"), [(STRANGER, 20), ("127.0.0.1", 75)])
async def test_over_http2_an_address_has_as_many_requests_under_way_as_connections(tmp_path, source, most):
    async with Front(tmp_path, limits=SMALL, request_s=SLOWLY_S) as front:
        peer = Multiplexed(*await connection(front, source))
        asked = [peer.ask() for _ in range(most + 10)]
        peer.flush()
        while len(peer.statuses) < 10:
            assert await peer.read()
        assert set(peer.statuses.values()) == {429}
        assert await is_let_in(front, OTHER) == 200
        front.replica.let_go.set()
        while len(peer.statuses) < len(asked):
            assert await peer.read()
        assert sorted(peer.statuses.values()) == [200] * most + [429] * 10
        peer.writer.close()


@pytest.mark.parametrize("flood", ["reset", "settings", "ping"])
async def test_a_flood_of_frames_without_requests_keeps_nobody_waiting(tmp_path, soon, flood):
    async with Front(tmp_path, limits=SMALL, request_s=1.0) as front:
        reader, writer = await connection(front, STRANGER)
        peer = Multiplexed(reader, writer)
        for _ in range(50):
            for _ in range(50):
                if flood == "reset":
                    peer.h2.reset_stream(peer.ask())
                elif flood == "settings":
                    peer.h2.update_settings({})
                else:
                    peer.h2.ping(b"x" * 8)
            peer.flush()
            assert await is_let_in(front, OTHER) == 200
        # It is not kept for its noise either.
        while await asyncio.wait_for(reader.read(65536), PATIENCE_S):
            pass
        assert len(front.replica.seen) < 50 + 2500
        writer.close()


async def test_one_who_keeps_breaking_the_rules_of_http2_loses_the_connection(tmp_path):
    async with Front(tmp_path) as front:
        peer = Multiplexed(*await connection(front, STRANGER))
        peer.h2.config.validate_outbound_headers = peer.h2.config.normalize_outbound_headers = False
        with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
            for _ in range(20):
                # No more at once than may be under way; the answers end them.
                wrong = [peer.ask("/", Upper="x") for _ in range(50)]
                peer.flush()
                while peer.open(wrong):
                    if not await peer.read():
                        raise ConnectionError
            pytest.fail("the connection lives on")
        assert front.replica.seen == []


async def test_an_extended_connect_over_http2_is_no_way_to_another_protocol(tmp_path):
    async with Front(tmp_path) as front:
        peer = Multiplexed(*await connection(front, STRANGER))
        stream = peer.h2.get_next_available_stream_id()
        frame = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/v1/pools"),
        ]
        peer.h2.config.validate_outbound_headers = False
        peer.h2.send_headers(stream, [*frame, (":authority", "x")])
        peer.flush()
        await peer.read()
        while stream not in peer.statuses and await peer.read():
            pass
        assert peer.statuses.get(stream) != 101
        assert not any("upgrade" in line.lower() for line in front.replica.seen)
        peer.writer.close()


# --- what goes on to a replica -----------------------------------------------------------------------


async def test_of_what_serve_answers_by_itself_only_that_it_lives_is_told(tmp_path):
    paths = ["/-/routes", "/-/ROUTES", "/-/routes?x", "/-/", "/-/metrics", "/-/HEALTHZ"]
    paths += ["/%2d/routes", "/-%2froutes", "/%2D%2Fhealthz"]
    async with Front(tmp_path) as front:
        for path in paths:
            answer = await talk(
                front, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
            )
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 404 "), path
            assert json.loads(body)["code"] == "not_found"
        assert front.replica.seen == []
        # In the template of these tests a replica answers it; in Serve's, HAProxy.
        assert await is_let_in(front, STRANGER, b"/-/healthz") == 200


async def test_a_request_without_a_path_meets_no_replica(tmp_path):
    async with Front(tmp_path) as front:
        for line in (
            "OPTIONS * HTTP/1.1\r\nhost: x",
            "CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443",
        ):
            answer = await talk(front, line.encode() + b"\r\nconnection: close\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), line
            assert json.loads(body)["code"] == "malformed_request"
        assert front.replica.seen == []


async def test_what_can_be_read_in_two_ways_meets_no_replica(tmp_path):
    heads = [
        b"GET http://evil.example/ HTTP/1.1\r\nhost: x",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 2",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1 1",
        b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity",
        b"GET / HTTP/1.1\r\nhost: x\r\na\x00b: y",
        b"GET / HTTP/1.1\r\nhost: x\r\na b: y",
        b"GET / HTTP/1.1\r\nhost: x\r\na : y",
        b"GET /a b HTTP/1.1\r\nhost: x",
        b"GET /\x7f HTTP/1.1\r\nhost: x",
    ]
    async with Front(tmp_path) as front:
        for head in heads:
            answer = await talk(front, head + b"\r\nconnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 "), head
        assert front.replica.seen == []


async def test_no_other_protocol_is_asked_of_a_replica(tmp_path):
    more = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\nhttp2-settings: AAMAAABk\r\n"
    async with Front(tmp_path) as front:
        for protocol in ("websocket", "h2c", "tls/1.0"):
            reader, writer = await connection(front, STRANGER)
            writer.write(
                f"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n{more}\r\n".encode()
            )
            assert (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.1 200 "), (
                protocol
            )
            body = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE_S)
            assert "upgrade" not in json.loads(body.partition(b"\r\n\r\n")[2])
            writer.close()


async def test_an_address_is_believed_from_proxies_that_are_named_and_from_nobody_else(tmp_path):
    header = haproxy.new_client_header()
    forged = (
        f"{header}: 6.6.6.6\r\nx-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 10.1.1.1, 10.2.2.2\r\n".encode()
    )

    async def seen(front, source, more=forged):
        ask = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b\r\n" % more
        return json.loads((await talk(front, ask, source)).partition(b"\r\n\r\n")[2])[header]

    async with Front(tmp_path, client_header=header) as front:
        assert await seen(front, STRANGER) == STRANGER
        assert await seen(front, "127.0.0.1") == "127.0.0.1"
    behind = tmp_path / "behind"
    behind.mkdir()
    limits = SMALL._replace(trusted_proxies=(f"{OTHER}/32",))
    async with Front(behind, limits=limits, client_header=header) as front:
        assert await seen(front, STRANGER) == STRANGER
        # What it said last: earlier ones are the client's own words.
        assert await seen(front, OTHER) == "10.2.2.2"
        # A proxy that says nothing, or nonsense, is itself who asks.
        assert await seen(front, OTHER, b"") == OTHER
        assert await seen(front, OTHER, b"x-forwarded-for: 6.6.6.6, nobody\r\n") == OTHER


# --- what it tells ----------------------------------------------------------------------------------


async def test_no_request_is_logged_anywhere(tmp_path, soon):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.setblocking(False)
        async with Front(tmp_path, request_s=1.0, log=f"127.0.0.1:{syslog.getsockname()[1]}") as front:
            assert await is_let_in(front, STRANGER, b"/v1/pools/default/sessions/of-ada") == 200
            assert await is_let_in(front, STRANGER, b"/-/of-ada") == 404
            await talk(front, b"GET /of-ada HTTP/9.9\r\n\r\n")
        with contextlib.suppress(BlockingIOError):
            while message := syslog.recv(65536):
                assert b"of-ada" not in message


def test_serve_gives_haproxy_no_log_to_write_to():
    variables = haproxy.serve_variables()
    assert variables["RAY_SERVE_HAPROXY_LOG_TARGET"] == "/dev/null"
    assert haproxy.joined_environment({})["RAY_SERVE_HAPROXY_LOG_TARGET"] == "/dev/null"


class Started(Exception):
    """As far as a test goes."""


def test_serve_its_replicas_and_its_own_proxy_listen_on_loopback_whatever_the_services_address(monkeypatch):
    # Around HAProxy there are no limits, and there is no TLS.
    with mock.patch.dict(os.environ):
        service = Service(PoolConfig(service={"host": "0.0.0.0", "port": haproxy.free_ports(1)[0]}))
        monkeypatch.setattr(ray, "init", mock.Mock(side_effect=Started))
        monkeypatch.setattr(ray, "get_actor", mock.Mock())
        monkeypatch.setattr(ray.serve, "start", start := mock.Mock(side_effect=Started))
        monkeypatch.setattr("dspool.runtime.cluster.living_nodes", lambda: ["this one"])
        try:
            with pytest.raises(Started):
                service._start_ray()
            with pytest.raises(Started):
                service._start_serve()
            assert start.call_args.kwargs["http_options"].host == "127.0.0.1"
            assert "bind 0.0.0.0:" in (service.temp_dir / "h" / "haproxy").read_text()
        finally:
            service._surroundings.close()
            service._held.release()
            shutil.rmtree(service.temp_dir)


async def test_haproxy_listens_where_the_service_is_to(tmp_path):
    async with Front(tmp_path, host="0.0.0.0") as front:
        text = front.config.read_text()
        assert f"bind 0.0.0.0:{front.port}" in text
        assert await is_let_in(front, STRANGER) == 200
    for address in ("x#y", "", "a b", "a\nb"):
        with pytest.raises(ConfigError):
            haproxy_frontend.addresses(address)


async def test_with_a_certificate_the_address_moves_too(tmp_path, certificate):
    async with Front(tmp_path, host="0.0.0.0", tls=certificate) as front:
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        _, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=trust)
        writer.close()
