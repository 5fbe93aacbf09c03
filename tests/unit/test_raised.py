"""What is told of an exception that a program's own code raises."""

from __future__ import annotations

import importlib
import sys

import failing_programs
import pydantic
import pytest
from failing_programs import SECRET

from dspool import raised
from dspool.errors import ProgramError
from dspool.quotations import without
from dspool.raised import MAX_TRACEBACK, own, own_place_of, text_of, traceback_of


def caught(name: str, *arguments: str) -> BaseException:
    try:
        getattr(failing_programs, name)(*arguments)
    except BaseException as failed:
        return failed
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in_words", "order 4711 has no line items"),
        ("of_own_class", "order 4711 is closed"),
        ("asserted", "no orders today"),
        ("exits", "no orders today"),
        ("missing_variable", "'PINECONE_API_KEY_OF_NOBODY'"),
        ("missing_key", "'line_items'"),
        ("wrong_attribute", "'dict' object has no attribute 'line_items'"),
        ("wrong_number", "invalid literal for int() with base 10: ..."),
        ("wrong_json", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("missing_file", "[Errno 2] No such file or directory"),
        ("undecodable", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("surrogate", "half \\ud800 a character\x00"),
    ],
)
def test_the_authors_words_are_told(name, text):
    assert text_of(caught(name)) == text
    assert ProgramError.of(caught(name)).text == text


@pytest.mark.parametrize("name", ["missing_data_key", "wrong_colour", "unspeakable"])
def test_what_data_says_is_not_told(name):
    assert text_of(caught(name)) == ""
    assert SECRET not in traceback_of(caught(name))


def test_pydantic_names_the_field_and_the_rule_and_not_the_value():
    text = text_of(caught("wrong_order"))
    assert text.startswith("3 validation errors for Order: number: Input should be a valid integer")
    assert "lines.0.price: Input should be a valid integer" in text
    assert "notes.[...]: Input should be a valid integer" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, found in vars(failing_programs).items()
        if callable(found) and name.islower() and name != "quoting"
    ],
)
def test_no_text_and_no_traceback_quotes_data_and_each_ends(name):
    failed = caught(name)
    trace = traceback_of(failed)
    assert SECRET not in text_of(failed) + trace
    assert len(trace) < MAX_TRACEBACK + 100
    assert f"in {name}" in trace
    (text_of(failed) + trace).encode()


def test_the_place_is_the_authors_line_also_when_a_library_raised():
    line = failing_programs.missing_variable.__code__.co_firstlineno + 1
    assert own_place_of(caught("missing_variable")) == f"failing_programs:{line}"
    assert ProgramError.of(caught("missing_variable")).at == f"failing_programs:{line}"


def test_a_traceback_has_frames_lines_causes_groups_and_notes():
    trace = traceback_of(caught("chained"))
    assert trace.count("Traceback (most recent call last):") == 2
    assert "    return int(SECRET)" in trace
    assert "ValueError: invalid literal for int() with base 10: ...\nwhile reading the order" in trace
    assert "direct cause of the following exception" in trace
    assert trace.endswith("failing_programs.OrderError: the order cannot be read")
    grouped = traceback_of(caught("grouped"))
    assert "ExceptionGroup: two orders (2 sub-exceptions)" in grouped
    assert "  | ValueError" in grouped
    assert "  | failing_programs.OrderError: second" in grouped


def test_with_content_all_is_told():
    assert SECRET in text_of(caught("missing_data_key"), whole=True)
    assert SECRET in traceback_of(caught("chained"), whole=True)


def test_of_a_value_with_thousands_of_errors_their_number_is_told():
    with pytest.raises(pydantic.ValidationError) as refused:
        pydantic.TypeAdapter(list[int]).validate_python(["x"] * 5_000)
    assert text_of(refused.value) == "5000 validation errors for list[int]"


def test_inputs_are_taken_out_of_a_text_also_in_part():
    question = "Why did those pigs so much\nlike 'Plumtree'?"
    text = text_of(caught("quoting", question), hide=without([question, {"who": ["Pigs"]}]))
    assert text == "bad question '...', and '...' again: ..."


def test_a_secret_variable_is_in_no_text(monkeypatch):
    monkeypatch.setenv("SHOP_API_KEY", "sk-123456789")
    assert text_of(caught("quoting", "sk-123456789"), hide=without({})).endswith("again: ...")


def test_quotations_are_taken_out_in_a_bounded_number_of_steps():
    many = [f"{number:06d}" for number in range(20_000)]
    assert "not told" in without({"rows": many})("x" * 8_000)
    assert "not told" in without({"text": "ab" * 5_000})("x" * 8_000)
    assert without({"rows": many})("row 000007 is odd") == "row ... is odd"
    long = [f"the secret of number {number:06d}" for number in range(100)]
    assert without(long)("a of number 000001 is told, 00") == "a... is told, 00"
    assert without(["0123456789abcdef"])("<0123456789ab0123456789abcdefcdef>") == "<......cdef>"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of the author's, installed as libraries are."""
    home = tmp_path / "site-packages"
    (home / "bookshop").mkdir(parents=True)
    (home / "bookshop" / "__init__.py").write_text("def sell(book):\n    raise ValueError(f'no {book}')\n")
    monkeypatch.syspath_prepend(str(home))
    yield importlib.import_module("bookshop")
    del sys.modules["bookshop"]
    raised._own_packages.discard("bookshop")
    raised._is_own.cache_clear()


def test_a_library_is_not_told_but_a_package_that_the_configuration_names_is(installed):
    def sold() -> ProgramError:
        try:
            installed.sell("Moby Dick")
        except ValueError as failed:
            return ProgramError.of(failed)
        raise AssertionError

    assert "text" not in sold().details
    assert sold().at == f"{__name__}:{sold.__code__.co_firstlineno + 2}"
    own(["bookshop.sales"])
    assert (sold().text, sold().at) == ("no Moby Dick", "bookshop:2")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package that nobody named, installed as libraries are, whose functions fail."""
    home = tmp_path / "site-packages"
    home.mkdir()
    (home / "retrieving.py").write_text(
        "def literal(secret):\n    raise ValueError('no index is loaded')\n"
        "def checked(secret):\n    assert secret is None, 'no index is loaded'\n"
        "def quoting(secret):\n    raise ValueError(f'no {secret}')\n"
        "def passed_on(secret):\n    raise ValueError(secret)\n"
        "def generated(secret):\n    exec(f'raise ValueError({secret!r})')\n"
    )
    monkeypatch.syspath_prepend(str(home))
    yield importlib.import_module("retrieving")
    del sys.modules["retrieving"]
    raised._is_own.cache_clear()


def failure_of(call) -> BaseException:
    with pytest.raises(Exception) as failed:  # noqa: PT011 - of any kind
        call()
    return failed.value


def test_a_text_that_stands_literally_in_a_library_is_told(library):
    assert text_of(failure_of(lambda: library.literal(SECRET))) == "no index is loaded"
    assert text_of(failure_of(lambda: library.checked(SECRET))) == "no index is loaded"


@pytest.mark.parametrize("name", ["quoting", "passed_on", "generated"])
def test_a_text_that_a_library_makes_of_data_is_not_told(library, name):
    failed = failure_of(lambda: getattr(library, name)(SECRET))
    assert text_of(failed) == ""
    assert SECRET not in traceback_of(failed)


def test_a_literal_that_the_authors_data_happens_to_equal_is_told_of_the_library_alone(library):
    # Not what is in quotation marks of another function: only the one that raises counts.
    assert text_of(failure_of(lambda: library.passed_on("no index is loaded"))) == ""


def test_what_dspy_says_literally_is_told():
    import dspy

    with dspy.context(rm=None):
        assert text_of(failure_of(lambda: dspy.Retrieve()("x"))) == "No RM is loaded."


def test_what_dspy_makes_of_data_is_not_told(monkeypatch):
    import dspy

    with pytest.raises(dspy.utils.exceptions.LMError) as failed:
        raise dspy.utils.exceptions.LMError(SECRET)
    assert text_of(failed.value) == ""
