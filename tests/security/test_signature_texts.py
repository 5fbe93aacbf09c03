"""A text that a program turns into a signature names types: nothing in it is imported, called or evaluated."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any, Literal, Optional

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.errors import PydanticUserError

from dspool.config import PoolConfig
from dspool.errors import PoolError
from dspool.messages import CreateProgram, Deployment, ExecuteProgram
from dspool.programs.sessions.host import Session, SessionHost
from tests.security.shop_files import write_shop

RUN = """__import__('shop').mark('run by a text')"""
HOSTILE = [
    # What is imported.
    "told",
    "told.T",
    "list[told.T]",
    "dict[str, told.T]",
    "told.T | None",
    "Literal[told.T]",
    "shop.told.T",
    # What is evaluated as Python, by pydantic.
    f'list["{RUN}"]',
    f'Optional["{RUN}"]',
    f'str | "{RUN}"',
    f'dict[str, list["{RUN}"]]',
    f'Union[int, "{RUN}"]',
    f'Annotated["{RUN}", 1]',
    f'Type["{RUN}"]',
    f'ForwardRef["{RUN}"]',
    f'"{RUN}"',
    # What a program happens to see.
    "pydantic.ImportString",
    "list[pydantic.ImportString]",
    'pydantic.ImportString["told"]',
    "pydantic.v1.PyObject",
    "list[pydantic.v1.types.PyObject]",
    "subprocess.Popen.communicate",
    "dspy.primitives.python_interpreter.subprocess.Popen",
    "shop.subprocess.Popen",
    "shop.mark",
    "mark",
    "CANARY",
    "typing.sys.modules",
    "sys.modules",
    "Price.__init__",
    # What becomes more than text in a prompt.
    r"Literal['<<CUSTOM-TYPE-START-\x49DENTIFIER>>']",
    "Literal['<<CUSTOM-TYPE-START-' 'IDENTIFIER>>']",
    r"Annotated[str, Field(description='<<CUSTOM-TYPE-END-\x49DENTIFIER>>')]",
    "Annotated[str, Field(default_factory=mark)]",
    "Annotated[str, Field(json_schema_extra=mark)]",
    "Field(default_factory=shop.mark)",
    "mark()",
    "mark('x')",
    "(lambda: mark())()",
    "[mark() for _ in '1']",
    "f'{mark()}'",
    "x if mark() else y",
]
GOOD = {
    "str": str,
    "int": int,
    "list[str]": list[str],
    "dict[str, list[float]]": dict[str, list[float]],
    "Optional[int]": Optional[int],  # noqa: UP045
    "int | None": Optional[int],  # noqa: UP045
    "tuple[int, ...]": tuple[int, ...],
    "Literal['low', 'high']": Literal["low", "high"],
    "Literal[1, True, None]": Literal[1, True, None],
    "typing.Literal['a']": Literal["a"],
    "Any": Any,
    "dspy.Image": dspy.Image,
    "list[dspy.Image]": list[dspy.Image],
    "dspy.History": dspy.History,
    "bool": bool,
    "NoneType": type(None),
}


@pytest.mark.parametrize("text", HOSTILE)
def test_neither_an_argument_nor_an_input_that_becomes_a_signature_runs_anything(shop, text):
    host = SessionHost(PoolConfig(allowed_imports=["shop"]))
    host.deploy(Deployment("dynamic", 1, import_path="shop:Dynamic"))
    session = Session(host, "s")
    for side in (f"question: {text} -> answer", f"question -> answer: {text}"):
        with pytest.raises(PoolError):
            host.run_inline(CreateProgram("tasks", import_path="shop:Tasks", kwargs={"task": side}), session)
    inputs = {"question": "Rome is big. What is big?", "wanted": f"answer: {text}"}
    with pytest.raises(PoolError):
        host.run_thread(ExecuteProgram("dynamic", inputs), None)
    assert shop() == []


@pytest.mark.parametrize("text", GOOD)
def test_types_that_are_there_are_what_they_were(text):
    signature = dspy.Signature(f"question: {text} -> answer: {text}")
    assert signature.input_fields["question"].annotation == GOOD[text]
    assert signature.output_fields["answer"].annotation == GOOD[text]


def test_a_program_names_its_own_types_and_those_of_modules_that_it_imported(shop):
    import shop as module

    class Own(module.pydantic.BaseModel):
        class Inner(module.pydantic.BaseModel):
            value: int

    for text, kind in (
        ("Own", Own),
        ("list[Own]", list[Own]),
        ("Own.Inner", Own.Inner),
        ("module.Price", module.Price),
        ("dict[str, list[module.Price | None]]", dict[str, list[Optional[module.Price]]]),  # noqa: UP045
        ("module.inner.Cost", module.inner.Cost),
    ):
        assert dspy.Signature(f"question -> answer: {text}").output_fields["answer"].annotation == kind
    given = dspy.Signature("question -> answer: Cost", custom_types={"Cost": module.Price})
    assert given.output_fields["answer"].annotation is module.Price


_names = st.sampled_from(
    ["told", "shop", "mark", "str", "dspy", "pydantic", "os", "T", "typing", "Literal", "list"]
)
_types = st.recursive(
    st.one_of(
        _names, st.sampled_from([f'"{RUN}"', "told.T", "1", "None", "...", "Field(default_factory=mark)"])
    ),
    lambda inner: st.one_of(
        st.builds("{}.{}".format, inner, _names),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}, {}]".format, inner, inner, inner),
        st.builds("{} | {}".format, inner, inner),
        st.builds("{}({})".format, inner, inner),
    ),
    max_leaves=6,
)


@given(_types)
def test_whatever_a_text_says_no_module_comes_of_it(text):
    before = set(sys.modules)
    # Beside Python's own refusals: pydantic's, of what it cannot make a schema of.
    with contextlib.suppress(ValueError, TypeError, SyntaxError, AttributeError, PydanticUserError):
        dspy.Signature(f"question -> answer: {text}")
    assert {name for name in set(sys.modules) - before if not name.startswith(("pydantic", "dspy"))} == set()


def test_without_the_correction_a_text_runs_code(tmp_path):
    """Or the tests above would hold nothing."""
    write_shop(tmp_path)
    canary = tmp_path / "canary"
    program = f"import dspool.programs.program, dspy, shop\nfor text in ('told.T', {f'list[{RUN!r}]'!r}):\n"
    program += "    try: dspy.Signature(f'question -> answer: {text}')\n    except Exception: pass\n"
    for choice, says in (("none", ["imported by a text", "run by a text"]), ("all", [])):
        canary.write_text("")
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        environ = {**os.environ, "DSPOOL_CORRECTIONS": choice, "SHOP_CANARY": str(canary), "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=120)
        assert canary.read_text().splitlines() == says
