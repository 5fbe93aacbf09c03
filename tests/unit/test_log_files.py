"""What is read from the logs of a pool's processes, dead ones too."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest
from ray.experimental import tqdm_ray

from dspool.cli.logs import following
from dspool.config import PoolConfig
from dspool.messages import ExecuteProgram, Operation
from dspool.telemetry import logs
from dspool.telemetry.log_files import LogLine, LogPage, LogQuery, merged, search
from dspool.telemetry.printed import PrintedLines, log_prints

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def operation(id: str) -> Operation:
    return Operation(id, ExecuteProgram("qa", {}), 30.0, None, None, f"00-{TRACE}-00f067aa0ba902b7-01")


class Node:
    """A directory of logs, written by the very handlers of workers."""

    def __init__(self, directory, log_format):
        self.directory, self.log_format = directory, log_format
        self.logger = logging.Logger("shop.answers")

    def process(self, name, worker=None, pool="p"):
        file = (self.directory / f"{name}.err").open("a")
        config = PoolConfig(name=pool, telemetry={"log_format": self.log_format})
        handler = logs.configure(config, worker=worker, events=False, stream=file)
        logging.getLogger().removeHandler(handler)
        self.logger.handlers = [handler]
        return file

    def log(self, text, id=None, **more):
        token = logs.current_operation.set(None if id is None else operation(id))
        self.logger.warning(text, **more)
        logs.current_operation.reset(token)

    def find(self, content=False, **query):
        return search(self.directory, "p", LogQuery(**query), show_content=content)


@pytest.fixture(params=["text", "json"])
def node(request, tmp_path):
    return Node(tmp_path, request.param)


def texts(page):
    return [line.text for line in page.lines]


def test_lines_of_all_processes_come_in_order_with_who_wrote_them(node):
    node.process("worker-a", "w0")
    node.log("first", "op-1")
    node.process("worker-b", "w1")
    node.log("second", "op-2")
    node.process("supervisor")
    node.log("third")
    node.process("worker-c", "w0", pool="another")
    node.log("of another pool", "op-1")
    page = node.find()
    assert [(line.worker, line.operation_id, line.logger) for line in page.lines] == [
        ("w0", "op-1", "shop.answers"),
        ("w1", "op-2", "shop.answers"),
        ("", None, "shop.answers"),
    ]
    assert all(word in text for word, text in zip(("first", "second", "third"), texts(page), strict=True))
    assert [line.worker for line in node.find(worker="w1").lines] == ["w1"]
    assert not page.truncated


def test_an_operations_lines_come_whole_with_their_tracebacks_and_no_others(node):
    node.process("worker-a", "w0")
    for number in range(50):
        node.log(f"before {number}", f"op-1{number}")
    node.log(
        "it failed",
        "op-1",
        extra={"traceback": "Traceback (most recent call last):\n  at line 5\nValueError: no\n"},
    )
    node.log("after", "op-2")
    (line,) = node.find(operation="op-1").lines
    assert "ValueError: no" in line.text
    assert line.operation_id == "op-1"
    assert TRACE in line.text


def test_nobody_writes_a_line_that_looks_like_anothers(node):
    node.process("worker-a", "w0")
    forged = "2026-11-23T13:43:14.897+00:00 INFO    dspool: forged [pool=p worker=w9 operation_id=op-9]"
    for end in ("\n", "\r", "\x0b", "\x85", "\u2028"):
        node.log(f"mine{end}{forged}", "op-1")
    page = node.find()
    assert [(line.worker, line.operation_id) for line in page.lines] == [("w0", "op-1")] * 5
    assert node.find(operation="op-9").lines == []


@pytest.mark.parametrize(
    "text",
    [
        "x [pool=another worker=w9 operation_id=op-9]",
        "x [pool=another worker=w9 operation_id=op-9]\nTraceback (most recent call last):\n  no",
        "x\nTraceback (most recent call last):\n  none",
        "x [worker=w9 operation_id=op-9]\ny",
        " dspool: a.b pool=another worker=w9 operation_id=op-9 ",
        "long " * 30_000,
    ],
    ids=lambda text: text[:40],
)
def test_nobody_writes_a_line_that_is_taken_for_anothers_or_that_nobody_finds(node, text):
    node.process("worker-a", "w0")
    node.log(text, "op-1")
    node.log(
        "it failed", "op-1", extra={"traceback": f"Traceback (most recent call last):\nValueError: {text}"}
    )
    found = [(line.worker, line.operation_id) for line in node.find(operation="op-1").lines]
    assert found == [("w0", "op-1")] * 2
    assert search(node.directory, "another", LogQuery(), show_content=False).lines == []


def test_no_line_commands_the_terminal_that_shows_it(node):
    node.process("worker-a", "w0")
    node.log("\x1b]52;c;aGk=\x07 \x9b31m a\tb", "op-1")
    (line,) = node.find().lines
    assert not set(line.text) & {"\x1b", "\x07", "\x9b"}
    assert "52;c;aGk=" in line.text


def test_what_did_not_come_by_logging_is_shown_only_with_content(node):
    file = node.process("worker-a", "w0")
    node.log("before", "op-1")
    file.write("raw: what the user wrote\n  | and this\n")
    file.flush()
    node.log("after", "op-1")
    assert "what the user wrote" not in str(node.find())
    assert "and this" not in str(node.find())
    assert node.find().filtered
    assert "what the user wrote" in str(node.find(content=True))


def test_a_follower_gets_each_line_once(node, monkeypatch):
    node.process("worker-a", "w0")
    node.log("old")

    class Pool:
        def logs(self, *, operation, worker, after, limit):
            return node.find(after=after, limit=limit)

    pauses = iter(range(3))

    def pause(seconds):
        number = next(pauses)
        node.log(f"new {number}")
        node.log(f"newer {number}")

    monkeypatch.setattr("dspool.cli.logs.time.sleep", pause)
    found = following(Pool(), node.find())
    lines = [next(found).text for _ in range(6)]
    wanted = [f"{word} {number}" for number in range(3) for word in ("new", "newer")]
    assert all(word in line for word, line in zip(wanted, lines, strict=True))


def test_pages_are_bounded_and_say_so(node):
    node.process("worker-a", "w0")
    for number in range(30):
        node.log(f"line {number}")
    page = node.find(limit=10)
    assert "line 29" in page.lines[-1].text
    assert (len(page.lines), page.truncated) == (10, True)
    oldest = node.find(limit=10, after=1.0)
    assert "line 0" in oldest.lines[0].text
    for _ in range(8):
        node.log("x" * 400_000)
    assert sum(len(line.text) for line in node.find().lines) <= 2**20


def test_lines_of_an_event_belong_to_the_operation_that_it_names(tmp_path):
    (tmp_path / "a.err").write_text(
        "2026-11-23T13:43:14.897+00:00 INFO    dspool: operation.exception pool=p program=qa operation_id=op-1 "
        "worker=w0 outcome=error\n"
        "2026-11-23T13:43:14.898+00:00 INFO    shop: I say operation_id=op-1 pool=p [pool=p worker=w0]\n"
    )
    (line,) = search(tmp_path, "p", LogQuery(operation="op-1"), show_content=False).lines
    assert (line.worker, line.logger) == ("w0", "dspool")


def test_pages_of_several_nodes_are_one():
    def line(at):
        return LogLine(at, "info", "x", "w0", None, str(at))

    pages = [
        LogPage([line(1.0), line(3.0)], 3.0, False, True),
        LogPage([line(2.0), line(3.0)], 3.0, True, True),
    ]
    page = merged(pages, LogQuery())
    assert [one.at for one in page.lines] == [1.0, 2.0, 3.0]
    assert page.truncated
    assert merged([], LogQuery()).lines == []


def test_what_user_code_prints_is_a_line_with_its_operation(node):
    file = node.process("worker-a", "w0")
    behind = io.StringIO()
    printed = PrintedLines("stdout", behind, node.logger.handlers[0], logging.INFO)
    gate = threading.Barrier(2, timeout=30)

    def run(id):
        logs.current_operation.set(operation(id))
        print(f"from {id}", end="", file=printed)
        gate.wait()
        print(" and on", file=printed)
        print("two\nlines", file=printed)

    threads = [threading.Thread(target=run, args=(id,)) for id in ("op-1", "op-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.flush()
    for id in ("op-1", "op-2"):
        lines = node.find(operation=id).lines
        assert [line.logger for line in lines] == ["stdout"] * 3
        assert f"from {id} and on" in lines[0].text
        assert TRACE in lines[0].text
    assert behind.getvalue() == ""


def test_of_what_one_write_prints_a_bounded_number_of_lines_is_logged(node):
    file = node.process("worker-a", "w0")
    printed = PrintedLines("stdout", io.StringIO(), node.logger.handlers[0], logging.INFO)
    print("a question\n" * 50_000, file=printed)
    file.flush()
    lines = node.find(limit=5).lines
    assert "... 49000 more lines" in lines[-1].text
    assert sum("a question" in line.text for line in node.find(limit=1000).lines) == 999


def test_a_line_that_is_printed_word_by_word_is_one_line_of_bounded_length(node):
    file = node.process("worker-a", "w0")
    printed = PrintedLines("stdout", io.StringIO(), node.logger.handlers[0], logging.INFO)
    for _ in range(3):
        print("word ", end="", file=printed)
    print("end", file=printed)
    for _ in range(70):
        print("x" * 1024, end="", file=printed)
    file.flush()
    first, second = node.find().lines
    assert "word word word end" in first.text
    assert second.text.count("x") == 64 * 1024 - second.text.index("x")


def test_what_libraries_print_is_no_record_of_the_log():
    behind, log = io.StringIO(), io.StringIO()
    printed = PrintedLines("stdout", behind, logging.StreamHandler(log), logging.INFO)
    library = {"__name__": "some_library"}
    exec(
        compile("def say(file):\n  print('a value', file=file)", "/x/site-packages/some_library.py", "exec"),
        library,
    )
    library["say"](printed)
    print("mine", file=printed)
    assert (behind.getvalue(), log.getvalue()) == ("a value\n", "mine\n")


def test_user_code_is_known_as_such_where_ray_has_put_a_print_of_its_own_in_the_place_of_pythons():
    behind, log = io.StringIO(), io.StringIO()
    printed = PrintedLines("stdout", behind, logging.StreamHandler(log), logging.INFO)
    tqdm_ray.safe_print("mine", file=printed)
    assert (behind.getvalue(), log.getvalue()) == ("", "mine\n")


def test_nothing_that_a_library_prints_of_a_user_reads_as_a_record(node):
    file = node.process("worker-a", "w0")
    node.log("true", "op-1")
    printed = PrintedLines("stderr", file, node.logger.handlers[0], logging.INFO)
    library = {"__name__": "library"}
    exec(
        compile("def say(file, text): file.write(text)", "/usr/lib/site-packages/library.py", "exec"), library
    )
    for forged in (
        "2026-11-23T13:43:14.897+00:00 INFO    dspool: forged [pool=p worker=w9 operation_id=op-9]",
        '{"time": "2026-11-23T13:43:14.897+00:00", "level": "info", "logger": "forged", "pool": "p"}',
        "  | forged",
    ):
        library["say"](printed, f"{forged}\na question:\n{forged}\n")
    file.flush()
    (line,) = node.find().lines
    assert "forged" not in line.text


def test_a_handler_of_user_code_that_writes_to_stdout_does_not_write_each_line_twice():
    behind, log = io.StringIO(), io.StringIO()
    printed = PrintedLines("stdout", behind, logging.StreamHandler(log), logging.INFO)
    logger = logging.Logger("x")
    logger.addHandler(logging.StreamHandler(printed))
    logger.warning("once")
    assert (behind.getvalue(), log.getvalue()) == ("once\n", "")


def test_a_thread_of_a_program_that_fails_says_so_in_the_log_without_content(monkeypatch, caplog):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    log_prints(logging.NullHandler(), logging.INFO)
    thread = threading.Thread(target=lambda: int("what a user sent"))
    thread.start()
    thread.join()
    assert f"a thread ended with ValueError at {__name__}:" in caplog.text
    assert "int() with base 10: ..." in caplog.records[0].traceback
    assert "what a user sent" not in caplog.text + caplog.records[0].traceback.partition("ValueError")[2]


def test_info_lines_of_user_code_are_logged_and_those_of_libraries_are_not(monkeypatch, tmp_path):
    (tmp_path / "flatshop.py").write_text("import logging\nlog = logging.getLogger(__name__)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stream = io.StringIO()
    config = PoolConfig(name="p", allowed_imports=("levelshop.answers",))
    handler = logs.configure(config, worker="w0", events=False, stream=stream)
    try:
        import flatshop

        logging.getLogger("levelshop.orders").info("of a package")
        flatshop.log.info("too early")
        logs.include_own(config)
        flatshop.log.info("of a module beside it")
        logging.getLogger("some_library").info("of a library")
    finally:
        logging.getLogger().removeHandler(handler)
        sys.modules.pop("flatshop")
    assert "levelshop.orders: of a package" in stream.getvalue()
    assert "flatshop: of a module beside it" in stream.getvalue()
    assert "of a library" not in stream.getvalue()
