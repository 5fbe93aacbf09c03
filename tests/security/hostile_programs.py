"""Signatures, specs and saved states: see `corpus`."""

from __future__ import annotations

from typing import Any

from dspool.programs.marks import MARKS
from tests.security.hostile_inputs import MEGABYTE, Entries, nested


def signature(kind: Any) -> dict[str, Any]:
    return {"inputs": ["question"], "outputs": [{"name": "answer", "type": kind}]}


def fields(count: int, kind: Any = "str", prefix: str = "f", **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"{prefix}{number}", "type": kind, **more} for number in range(count)]


def objects(depth: int, width: int, leaf: Any = "str") -> dict[str, Any]:
    inner = leaf if depth == 1 else objects(depth - 1, width, leaf)
    return {"type": "object", "name": f"Level{depth}", "fields": fields(width, inner)}


def predictor(**parts: Any) -> dict[str, Any]:
    """The state that DSPy saves for `question -> answer`, with other parts."""
    two = [
        {"prefix": "Question:", "description": "${question}"},
        {"prefix": "Answer:", "description": "${answer}"},
    ]
    state = {"instructions": "Given the fields `question`, produce the fields `answer`.", "fields": two}
    return {"traces": [], "train": [], "demos": [], "signature": state, "lm": None, **parts}


def demo(question: Any = "q", answer: Any = "a") -> dict[str, Any]:
    return {"question": question, "answer": answer}


def signatures() -> Entries:
    """As text and as data."""
    yield "spaces before a mark that is no type", lambda: "a" + " " * 19_980 + "! -> b"
    yield "spaces within a name", lambda: "a" + " " * 9_000 + "b" + " " * 9_000 + "c -> d"
    yield "spaces after a colon", lambda: "a:" + " " * 19_900 + "-> b"
    yield "words for a type", lambda: "a:" + " x" * 9_900 + " -> b"
    yield "colons", lambda: "a" + ":" * 19_900 + " -> b"
    yield "arrows", lambda: "->" * 10_000
    yield "commas", lambda: "a" + "," * 19_900 + " -> b"
    yield "many short fields", lambda: ",".join(f"f{n}" for n in range(3_000)) + " -> b"
    yield "a quote that never ends", lambda: "a: Literal['" + "x" * 19_000 + " -> b"
    yield "backslashes in a quote", lambda: "a: Literal['" + "\\" * 19_000 + "'] -> b"
    yield "quotes", lambda: "a: Literal[" + "'" * 19_000 + "] -> b"
    yield "brackets that open", lambda: "a -> b: " + "list[" * 3_900
    yield "brackets that close", lambda: "a -> b: str" + "]" * 19_000
    yield "lists in lists", lambda: "a -> b: " + "list[" * 1_900 + "]" * 1_900
    yield "optional and so on", lambda: "a -> b: " + "Optional[" * 900 + "int" + "]" * 900
    yield "or none and so on", lambda: "a -> b: int" + " | None" * 2_000
    yield "5,000 digits", lambda: f"a -> b: Literal[{'9' * 5_000}]"
    yield "19 digits", lambda: f"a -> b: Literal[{'9' * 19}]"
    yield "20 digits", lambda: f"a -> b: Literal[{'9' * 20}]"
    yield "a minus alone", lambda: "a -> b: Literal[-]"
    yield "digits of another script", lambda: "a -> b: Literal[\u0663\u0664]"
    yield "a number with zeros before it", lambda: "a -> b: Literal[007]"
    for name, text in (
        ("half an escape", "\\x"),
        ("half a surrogate pair", "\\ud800"),
        ("a character beyond the last", "\\U00110000"),
        ("a character's name", "\\N{BULLET}"),
        ("a digit escape", "\\d"),
        ("an octal escape", "\\777"),
        ("a null", "\0"),
        ("a line end", "\n"),
        ("an escaped line end", "\\\n"),
    ):
        yield f"{name} in a literal", lambda text=text: f"a -> b: Literal['{text}']"
    yield "no literal", lambda: "a -> b: Literal[]"
    yield "a literal of nothing", lambda: "a -> b: Literal[,]"
    yield "unicode spaces", lambda: "a" + "\u2003" * 9_000 + "-> b"
    yield "a name of another script", lambda: "\u00aa, \uff41 -> b"
    yield (
        "a mark of DSPy in escapes",
        lambda: f"a -> b: Literal['{MARKS[0].replace('C', chr(92) + 'x43')}[]{MARKS[1]}']",
    )
    yield "a dotted type", lambda: "a -> b: os.path"
    yield "a call", lambda: "a -> b: __import__('os').system('true')"
    yield "a long name", lambda: "a" * 19_000 + " -> b"
    yield "only spaces", lambda: " " * 19_990
    yield "nothing", lambda: ""
    yield "a list", lambda: []
    yield "null", lambda: None
    yield (
        "half a surrogate pair in a text",
        lambda: {"inputs": ["q"], "outputs": ["a"], "instructions": "\ud800"},
    )
    yield "half a surrogate pair in a name", lambda: {"inputs": ["\ud800"], "outputs": ["a"]}
    yield (
        "half a surrogate pair in a desc",
        lambda: {"inputs": [{"name": "q", "desc": "\ud800"}], "outputs": ["a"]},
    )
    yield "half a surrogate pair as a value", lambda: signature({"type": "literal", "values": ["\ud800"]})
    yield "a key of a megabyte", lambda: {"k" * MEGABYTE: 1}
    yield "a million keys", lambda: {str(number): 0 for number in range(100_000)}
    yield "64 fields on each side", lambda: {"inputs": fields(64), "outputs": fields(64, prefix="o")}
    yield "10,000 fields", lambda: {"inputs": fields(10_000), "outputs": ["a"]}
    yield "10,000 names", lambda: {"inputs": [f"f{n}" for n in range(10_000)], "outputs": ["a"]}
    yield "long descriptions", lambda: {"inputs": fields(64, desc="d" * 9_999), "outputs": ["a"]}
    yield "long instructions", lambda: {"inputs": ["q"], "outputs": ["a"], "instructions": "i" * MEGABYTE}
    yield (
        "instructions full of braces",
        lambda: {"inputs": ["q"], "outputs": ["a"], "instructions": "{x}$" * 4_900},
    )
    yield "an object of 64 fields", lambda: signature(objects(1, 64))
    yield "objects in objects, 10 by 10", lambda: signature(objects(2, 10))
    yield "objects in objects, 8 by 8 by 8", lambda: signature(objects(3, 8))
    yield "objects seven deep", lambda: signature(objects(7, 2))
    yield "objects a hundred deep", lambda: signature(objects(100, 1))
    yield "objects as wide as fits", lambda: signature(objects(2, 64))
    yield (
        "as many types as are allowed",
        lambda: {
            "inputs": ["q"],
            "outputs": [{"name": f"o{n}", "type": objects(1, 6, "Optional[list[int]]")} for n in range(6)],
        },
    )
    yield (
        "lists deep in data and in text",
        lambda: signature({"type": "list", "items": "list[" * 8 + "int" + "]" * 8}),
    )
    yield "lists a thousand deep", lambda: signature(_list_type(1_000))
    yield "a type of types", lambda: signature(_type_type(60))
    yield (
        "200 literals in each of 64 fields",
        lambda: {
            "inputs": ["q"],
            "outputs": fields(64, {"type": "literal", "values": [f"v{n}" for n in range(200)]}),
        },
    )
    yield (
        "as many literals as are allowed",
        lambda: {
            "inputs": ["q"],
            "outputs": fields(5, {"type": "literal", "values": [f"v{n}" * 4 for n in range(200)]}),
        },
    )
    yield "a literal of a megabyte", lambda: signature({"type": "literal", "values": ["v" * MEGABYTE]})
    yield "a literal that is no scalar", lambda: signature({"type": "literal", "values": [[], {}, 1.5, None]})
    yield "a literal beyond 64 bits", lambda: signature({"type": "literal", "values": [10**30]})
    yield "literals that are equal", lambda: signature({"type": "literal", "values": [1, True, 1, "1"]})
    yield (
        "a name that pydantic keeps for itself",
        lambda: signature({"type": "object", "fields": [{"name": "model_fields"}, {"name": "schema"}]}),
    )
    yield (
        "an object called like a base class",
        lambda: signature({"type": "object", "name": "BaseModel", "fields": [{"name": "a", "type": "int"}]}),
    )
    yield "types of wrong kinds", lambda: signature({"type": {"type": "list"}, "items": 5})
    yield "a type that is a number", lambda: signature(5)


def _list_type(depth: int) -> Any:
    kind: Any = "int"
    for _ in range(depth):
        kind = {"type": "list", "items": kind}
    return kind


def _type_type(depth: int) -> Any:
    kind: Any = "int"
    for _ in range(depth):
        kind = {"type": kind}
    return kind


def specs() -> Entries:
    plain = "question -> answer"
    yield "no signature", lambda: {}
    yield "an unknown key of a megabyte", lambda: {"signature": plain, "k" * MEGABYTE: 1}
    yield "100,000 unknown keys", lambda: {"signature": plain, **{str(n): 0 for n in range(100_000)}}
    yield "settings of a megabyte", lambda: {"signature": plain, "settings": {"stop": ["x" * MEGABYTE]}}
    yield "settings nested deep", lambda: {"signature": plain, "settings": {"stop": nested(60)}}
    yield "settings that are a list", lambda: {"signature": plain, "settings": [1]}
    yield "a module of a megabyte", lambda: {"signature": plain, "module": "M" * MEGABYTE}
    yield "a module that is an object", lambda: {"signature": plain, "module": {}}
    yield "an adapter that is an object", lambda: {"signature": plain, "adapter": {}}
    yield "an LM that is a list", lambda: {"signature": plain, "lm": []}
    yield "a seed beyond 64 bits", lambda: {"signature": plain, "settings": {"seed": 10**30}}
    yield (
        "a threshold beyond all numbers",
        lambda: {
            "signature": plain,
            "module": "BestOfN",
            "settings": {"reward": "a:b", "threshold": 10**400},
        },
    )
    yield (
        "100,000 tools",
        lambda: {"signature": plain, "module": "ReAct", "settings": {"tools": ["a:b"] * 100_000}},
    )
    yield (
        "tools that are objects",
        lambda: {"signature": plain, "module": "ReAct", "settings": {"tools": [{}, 5]}},
    )
    yield (
        "ten chains over 128 fields",
        lambda: {
            "signature": {"inputs": fields(64), "outputs": fields(64, prefix="o")},
            "module": "MultiChainComparison",
            "settings": {"attempts": 10},
        },
    )
    yield (
        "an agent over 128 fields",
        lambda: {
            "signature": {"inputs": fields(64), "outputs": fields(64, prefix="o")},
            "module": "ReAct",
        },
    )
    yield (
        "as many types as are allowed, in XML",
        lambda: {
            "signature": {"inputs": ["question"], "outputs": [{"name": "o", "type": objects(2, 10)}]},
            "adapter": "xml",
        },
    )
    yield (
        "as many types as are allowed, in JSON",
        lambda: {
            "signature": {"inputs": ["question"], "outputs": [{"name": "o", "type": objects(2, 10)}]},
            "adapter": "json",
        },
    )


def states() -> Entries:
    wrong: tuple[Any, ...] = (5, "x", True, None, [5], {"a": 1}, [[]], [None])
    for part in ("demos", "traces", "train", "signature", "lm", "fields"):
        for value in wrong:
            yield f"{part} is {value!r}", lambda part=part, value=value: predictor(**{part: value})
    for value in (5, "x", [1], None):
        yield f"metadata is {value!r}", lambda value=value: {**predictor(), "metadata": value}
    for value in wrong:
        yield f"a predictor is {value!r}", lambda value=value: {"self": value}
        signature = predictor()["signature"]
        yield (
            f"instructions are {value!r}",
            lambda value=value, s=signature: predictor(signature={**s, "instructions": value}),
        )
        yield (
            f"fields are {value!r}",
            lambda value=value, s=signature: predictor(signature={**s, "fields": value}),
        )
        yield (
            f"a prefix is {value!r}",
            lambda value=value, s=signature: predictor(
                signature={**s, "fields": [{"prefix": value, "description": "d"}, s["fields"][1]]}
            ),
        )
    yield "an unknown predictor", lambda: {"other": predictor()}
    yield "an unknown part", lambda: predictor(forward="x")
    yield "a part of a megabyte", lambda: predictor(**{"k" * MEGABYTE: 1})
    yield (
        "more fields than the signature has",
        lambda: predictor(
            signature={**predictor()["signature"], "fields": [{"prefix": "p", "description": "d"}] * 50}
        ),
    )
    yield (
        "fewer fields than the signature has",
        lambda: predictor(signature={**predictor()["signature"], "fields": []}),
    )
    yield (
        "settings of decisions",
        lambda: predictor(fields={"answer": {"weights": {}, "instructions": "i" * 5_000}}),
    )
    yield "20,000 demonstrations", lambda: predictor(demos=[demo()] * 20_000)
    yield "5,000 demonstrations", lambda: predictor(demos=[demo()] * 5_000)
    yield "a demonstration of a megabyte", lambda: predictor(demos=[demo("q" * MEGABYTE)])
    yield "a demonstration that is deep", lambda: predictor(demos=[demo(nested(55))])
    yield "a demonstration of 200,000 numbers", lambda: predictor(demos=[demo([1] * 200_000)])
    yield (
        "demonstrations of every kind",
        lambda: predictor(demos=[demo(value, value) for value in (None, 5, 1.5, True, [1], {"a": 1})]),
    )
    yield (
        "instructions of a megabyte",
        lambda: predictor(signature={**predictor()["signature"], "instructions": "i" * MEGABYTE}),
    )
    yield "a key of DSPy's own objects", lambda: predictor(demos=[{"__class__": "x", "question": "q"}])
    yield (
        "an LM from elsewhere",
        lambda: predictor(lm={"model": "openai/x", "api_base": "http://127.0.0.1:9"}),
    )
