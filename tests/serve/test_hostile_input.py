"""What attackers and broken clients send, over real sockets: each is refused in few words, and the service goes on."""

from __future__ import annotations

import codecs
import json
import select
import socket
import time

import httpx
import pytest

from tests.serve.local_service import LocalService

QA = "/v1/pools/default/programs/qa/execute"
GOOD = {"inputs": {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}}
SESSION = "/v1/pools/default/sessions"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with LocalService(tmp_path_factory.mktemp("service"), operation_timeout_s=120.0) as running:
        yield running


@pytest.fixture
def http(service):
    with httpx.Client(
        base_url=service.url, timeout=120, trust_env=False, headers={"content-type": "application/json"}
    ) as client:
        yield client
        # Whatever was sent: the next caller is served.
        assert client.post(QA, json=GOOD).json()["outputs"] == {"answer": "Berkeley"}


def raw(service, *parts: bytes, half_close=False, pause_s=0.0) -> bytes:
    """Send the parts as they are; what came back until the server closed or two seconds of silence."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=2) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause_s)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError:
            pass
        return answer


def post(body: bytes, path: str = QA, headers: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % path.encode()
    return head + b"content-length: %d\r\nconnection: close\r\n%b\r\n%b" % (len(body), headers, body)


DEEP = b'{"inputs":{"question":' + b"[" * 200 + b"]" * 200 + b"}}"
BODIES = {
    "empty": (b"", 400),
    "null": (b"null", 422),
    "list": (b"[]", 422),
    "number": (b"1e999", 422),
    "open": (b'{"inputs": {', 400),
    "two documents": (b'{"inputs": {}} {"inputs": {}}', 400),
    "trailing comma": (b'{"inputs": {},}', 400),
    "comment": (b'{"inputs": {} /* x */}', 400),
    "NaN": (b'{"inputs": {"question": NaN}}', 400),
    "binary": (bytes(range(256)) * 8, 400),
    "bad UTF-8": (b'{"inputs": {"question": "\xff\xfe"}}', 400),
    "overlong UTF-8": (b'{"inputs": {"question": "\xc0\xaf"}}', 400),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), 400),
    "lone surrogate": (b'{"inputs": {"question": "\\ud800", "context": "x"}}', 400),
    "NUL": (b'{"inputs": {"question": "a\\u0000b"}}', 422),
    "deep": (DEEP, 400),
    "very deep": (b'{"inputs":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}", 400),
    "large integer": (b'{"inputs": {"question": %b}}' % (b"9" * 5000), 422),
    "unknown field": (b'{"inputs": {}, "model": "x"}', 422),
    "zip": (b"PK\x03\x04" + b"\x00" * 100, 400),
    "too large": (b'{"inputs": {"question": "' + b"x" * 1_100_000 + b'"}}', 413),
    "many keys": (b'{"inputs": {' + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}}", 413),
    "form": (b"inputs=1&timeout_s=2", 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_a_problem(http, name):
    body, status = BODIES[name]
    answer = http.post(QA, content=body)
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 2000, "an answer does not echo what was sent"


def test_a_byte_order_mark_in_front_is_read_over(http):
    assert http.post(QA, content=codecs.BOM_UTF8 + json.dumps(GOOD).encode()).json()["outputs"] == {
        "answer": "Berkeley"
    }


def test_of_a_repeated_key_the_last_counts_and_one_parser_reads_it(http):
    twice = (
        b'{"inputs": {"context": "A is B.", "question": "?"}, "inputs": %b}'
        % json.dumps(GOOD["inputs"]).encode()
    )
    assert http.post(QA, content=twice).json()["outputs"] == {"answer": "Berkeley"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/pools/default/../../etc/passwd",
        "/v1/pools/default/programs/..%2f..%2fqa/execute",
        "/v1/pools/%2e%2e/programs/qa/execute",
        "/v1/pools/default//programs/qa/execute",
        "//v1/pools/default/programs/qa/execute",
        "/v1/pools/default/programs/qa/execute/",
        "/v1/pools/default/programs/qa%00/execute",
        "/v1/pools/default/programs/%ff%fe/execute",
        "/v1/pools/default/programs/" + "a" * 5000 + "/execute",
        "/v1/pools/default;x=1/programs/qa/execute",
        "/V1/POOLS/default/programs/qa/execute",
        "/v1/pools/default/programs/qa/execute%3fx=1",
        "/v1/pools/default/programs/__class__/execute",
        "/v1/pools/default/programs/os:system/execute",
        "/docs/../../../etc/passwd",
        "/docs/%2e%2e%2fauth.py",
    ],
)
def test_a_tricky_path_leads_nowhere(service, http, path):
    answer = raw(service, post(json.dumps(GOOD).encode(), path))
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404, 405, 422), answer[:300]
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", "a negative length"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na", "two lengths"),
        (b"GARBAGE\r\n\r\n", "no HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS to a plain port"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", "a bad chunk"),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", "a version of tomorrow"),
        (b"GET /x HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", "a flood of headers"),
        (b"GET /x HTTP/1.1\r\nhost: x\r\na: " + b"b" * 500_000 + b"\r\n\r\n", "an endless header"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "an endless path"),
    ],
)
def test_what_is_hardly_http_is_refused_or_dropped(service, http, sent, why):
    answer = raw(service, sent)
    assert answer == b"" or 400 <= int(answer.split(b" ", 2)[1]) < 500, (why, answer[:200])


def test_a_half_closed_connection_still_gets_its_answer_or_ends(service, http):
    answer = raw(service, post(json.dumps(GOOD).encode()), half_close=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200"), answer[:200]
    # And one that promised more than it sends.
    cut_off = post(json.dumps(GOOD).encode())[:-10]
    assert not raw(service, cut_off, half_close=True).startswith(b"HTTP/1.1 200")


def test_slow_clients_do_not_keep_others_waiting(service, http):
    slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(ASK + b"content-length: 100\r\n\r\n{")
        assert http.post(QA, json=GOOD).status_code == 200
        # Each of them is waited for still: none has been answered or dropped.
        assert select.select(slow, [], [], 0)[0] == []
    finally:
        for connection in slow:
            connection.close()


def test_pipelined_requests_are_answered_one_by_one(service, http):
    body = json.dumps(GOOD).encode()
    first = post(body).replace(b"connection: close\r\n", b"")
    answer = raw(service, first + post(b"{") + first)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"Berkeley") <= 2


@pytest.mark.parametrize(
    "header",
    [
        {"idempotency-key": "x" * 5000},
        {"idempotency-key": ""},
        {"x-request-timeout-seconds": "1e400"},
        {"traceparent": "00-" + "g" * 32 + "-0000000000000000-01"},
        {"authorization": "Bearer " + "x" * 8000},
        {"x-request-id": "x" * 8000},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-encoding": "gzip"},
        {"expect": "100-continue"},
    ],
)
def test_a_hostile_header_is_harmless(http, header):
    answer = http.post(QA, json=GOOD, headers=header)
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text[:200]


GOOD_BODY = json.dumps(GOOD).encode()
ASK = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % QA.encode()
SECOND = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (
            ASK + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % len(SECOND) + SECOND,
            "a length and chunks",
        ),
        (ASK + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SECOND, "two codings"),
        (ASK + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SECOND, "a space before the colon"),
        (ASK + b"content-length: +2\r\n\r\n{}" + SECOND, "a signed length"),
        (ASK + b"content-length: 0x2\r\n\r\n{}" + SECOND, "a length in hexadecimal"),
        (ASK + b"content-length: 99999999999999999999\r\n\r\n{}", "a length beyond 64 bits"),
        (ASK + b"a: b\x00c\r\ncontent-length: 2\r\n\r\n{}", "NUL in a header"),
        (ASK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}", "a chunk beyond 64 bits"),
    ],
)
def test_a_second_request_cannot_be_hidden_in_a_first(service, http, sent, why):
    """Whatever stands in front of the service must not see other requests than it does."""
    answer = raw(service, sent)
    assert answer == b"" or 400 <= int(answer.split(b" ", 2)[1]) < 500, (why, answer[:200])
    assert b"dspool_" not in answer, "the second request was answered"


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (b"GET http://evil.example/healthz HTTP/1.1", (200, 400, 404)),
        (b"CONNECT evil.example:443 HTTP/1.1", (400, 404, 405)),
        (b"OPTIONS * HTTP/1.1", (400, 404, 405)),
        (b"TRACE /healthz HTTP/1.1", (400, 405)),
        (b"GET /healthz#/../metrics HTTP/1.1", (200, 400, 404)),
        (b"get /healthz HTTP/1.1", (400, 405)),
        (b"GET /healthz HTTP/1.0", (200,)),
        (b"GET /v1/pools/default/sessions?cursor=%ff%fe HTTP/1.1", (400, 422)),
        (
            b"GET /v1/pools/default/sessions?"
            + b"&".join(b"limit=%d" % n for n in range(500))
            + b" HTTP/1.1",
            (422,),
        ),
        (b"GET /v1/pools/default/sessions?limit=1&limit=x HTTP/1.1", (200, 422)),
        (b"GET /v1/pools/default/sessions?limit=%F0%9F%98%80 HTTP/1.1", (422,)),
        (b"GET /v1/pools/default/sessions?limit=\xc2\xb2 HTTP/1.1", (400, 422)),
        (b"GET /v1/pools/default/sessions/a%0d%0aset-cookie:%20x=y HTTP/1.1", (400, 404)),
        (b"GET /v1/pools/default/sessions/%f0%9f%92%a3 HTTP/1.1", (404,)),
    ],
)
def test_a_strange_request_line_is_answered_or_refused_in_order(service, http, line, statuses):
    answer = raw(service, line + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert int(answer.split(b" ", 2)[1]) in statuses, answer[:300]
    assert b"set-cookie" not in answer.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("programs/qa/batch", b'{"inputs": [' + b",".join([b"{}"] * 200_000) + b"]}"),
        ("programs/qa/batch", b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}"),
        ("programs/qa/execute", b'{"inputs": {"context": "x", "question": "y"}, "timeout_s": 1e400}'),
        ("programs/qa/execute", b'{"inputs": {"context": "x", "question": "y"}, "timeout_s": -0.0}'),
        ("programs/qa/execute", b'{"inputs": {"' + b"k" * 900_000 + b'": 1}}'),
        ("sessions", b'{"id": ""}'),
        ("sessions", b'{"id": "a\\r\\nset-cookie: x=y"}'),
        ("sessions", b'{"id": "' + b"x" * 100_000 + b'"}'),
        ("resize", b'{"size": 9223372036854775807}'),
        ("resize", b'{"size": 1e300}'),
        ("warm", b'{"strategy": {"a": [[[]]]}}'),
        ("programs/qa/rollback", b'{"version": -1}'),
    ],
)
def test_hostile_values_are_refused_by_each_route_that_reads_a_body(http, path, body):
    answer = http.post(f"/v1/pools/default/{path}", content=body)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 2000
    assert "set-cookie" not in answer.headers


def test_a_variable_nested_too_deep_or_too_large_is_refused_and_one_with_odd_names_is_data(http):
    at = f"{SESSION}/odd/variables/v"
    http.put(f"{SESSION}/odd/programs/p", json={"signature": "q -> a"})
    assert http.put(at, content=b'{"value": %b}' % (b"[" * 300 + b"]" * 300)).status_code == 400
    assert http.put(at, content=b'{"value": "%b"}' % (b"x" * 1_100_000)).status_code == 413
    value = {"__proto__": {"x": 1}, "constructor": None, "": [], "\u202e": "\x00"}
    assert http.put(at, json={"value": value}).status_code in (200, 204)
    assert http.get(at).json()["value"] == value


def test_one_who_sends_a_byte_at_a_time_is_given_up(service, http):
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(ASK + b"content-length: 1000\r\n\r\n")
        ended = False
        # A body has so long in all, not so long for each byte.
        for _ in range(200):
            try:
                connection.sendall(b"{")
                connection.settimeout(0.05)
                ended = b" 408 " in connection.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended


def test_one_who_asks_for_a_stream_and_never_reads_keeps_nobody_waiting(service, http):
    body = GOOD_BODY
    stuck = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(post(body, QA.replace("/execute", "/stream")))
        stuck.append(connection)
    assert http.post(QA, json=GOOD).status_code == 200
    for connection in stuck:
        connection.close()


def test_a_specification_cannot_reach_python(http):
    for spec in (
        {"signature": "x: os.system -> y"},
        {"signature": "x -> y: __import__('os').system('true')"},
        {
            "signature": {
                "inputs": [{"name": "__class__", "type": "str"}],
                "outputs": [{"name": "y", "type": "eval"}],
            }
        },
        {"signature": "q -> a", "module": "os.system"},
        {"signature": "q -> a", "module": "dspy.PythonInterpreter"},
        {"signature": "q -> a", "lm": "file:///etc/passwd"},
    ):
        answer = http.put(f"{SESSION}/s/programs/p", json=spec)
        assert 400 <= answer.status_code < 500, (spec, answer.text[:300])
    imported = http.put(f"{SESSION}/s/programs/p", json={"import_path": "os:system"})
    assert (imported.status_code, imported.json()["code"]) == (403, "not_allowed")
