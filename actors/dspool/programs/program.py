"""Programs ready to run: built from a spec, from a spec plus saved JSON state, or from an import path.

A spec is plain data:
`{"signature": ..., "module": "Predict", "lm": "fast", "adapter": "chat", "settings": {...}}`.
It reaches only the modules that `dspool.programs.modules` lists, and what `dspool.programs.imports` lets an import path
name.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import dspy
import msgspec

from dspool.config import PoolConfig
from dspool.config.environment import environment
from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.messages.limits import MAX_SPEC_BYTES, MAX_STATE_VALUES
from dspool.programs.adapters import adapter_named, refuse_message_parts
from dspool.programs.field_types import shown
from dspool.programs.imports import Imports
from dspool.programs.inputs import EntryPoint, entry_of
from dspool.programs.models.errors import translate_errors
from dspool.programs.models.lm import LMs, is_remote
from dspool.programs.models.operation import OperationScope
from dspool.programs.modules import BuiltModule, Way, build_module
from dspool.programs.outputs import outputs_of, returned_schema, to_json
from dspool.programs.saved import load_directory
from dspool.programs.schemas import SchemaField, object_schema
from dspool.programs.settings import Recording, within
from dspool.programs.signatures import BuiltSignature, Field, build_signature, cache_fields
from dspool.programs.sizes import exceeds
from dspool.programs.states import load_state

_SPEC_KEYS = frozenset({"signature", "module", "lm", "adapter", "settings"})


class Definition(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a program is made from. The session store and deployments keep it."""

    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}
    program_dir: str | None = None
    """Only of pool programs and copies of them: loading it runs code that no import path names."""

    def to_data(self) -> dict[str, JSON]:
        data: dict[str, JSON] = msgspec.to_builtins(self)
        return data


class FieldStream(NamedTuple):
    """An output field and the predictor that writes its tokens."""

    field: str
    predictor: Any
    predictor_name: str


class Program:
    """One loaded program, shared by all operations that run it."""

    __slots__ = (
        "_configured",
        "_copy",
        "_entry",
        "_schemas",
        "adapter",
        "definition",
        "kind",
        "lm",
        "module",
        "own_lm",
        "settings",
        "signature",
        "way",
    )

    def __init__(
        self,
        definition: Definition,
        built: BuiltModule,
        signature: BuiltSignature | None,
        entry: EntryPoint | None = None,
        configured: Mapping[str, Any] | None = None,
    ) -> None:
        """`configured`: what its code called `dspy.configure` with."""
        spec = definition.spec or {}
        self.definition = definition
        self.module = built.dspy
        self.kind = built.kind
        self.way: Way = built.way
        """direct: short apart from its LM call; async: has an async form; thread: only blocks."""
        self.signature = signature
        self.adapter: Any
        self.lm: str | None = spec.get("lm")
        """Name of its own LM profile."""
        self.own_lm: Any
        """The LM that its code configured. Its profile's comes first, those of a session and of the pool come after."""
        self.settings: dict[str, Any]
        """All else that its code configured."""
        self._configured = dict(configured or {})
        self.use({})
        self._copy = built.copy
        self._entry = entry
        self._schemas: dict[str, JSON] | None = None

    def use(self, defaults: Mapping[str, Any]) -> None:
        """Run under these settings of DSPy, where neither its definition nor its own code says otherwise."""
        settings = {**defaults, **self._configured}
        self.own_lm = settings.pop("lm", None)
        adapter, named = settings.pop("adapter", None), (self.definition.spec or {}).get("adapter")
        self.adapter = adapter_named(named) if named is not None or adapter is None else adapter
        self.settings = settings

    def brought(self) -> list[Any]:
        """The LMs that its code configured, or set on a predictor. Raises `ProgramError` if the module's code does."""
        with translate_errors():
            lms = [self.own_lm, *(predictor.lm for _, predictor in self.module.named_predictors())]
        return [lm for lm in lms if lm is not None]

    def forget_remote(self) -> None:
        """Forget the LMs of its code that would leave this process. Raises `ProgramError` if the module's code does."""
        if is_remote(self._configured.get("lm")):
            del self._configured["lm"]
        with translate_errors():
            for _, predictor in self.module.named_predictors():
                if is_remote(predictor.lm):
                    predictor.lm = None

    def check_inputs(self, inputs: Mapping[str, JSON]) -> Mapping[str, Any]:
        """The values to run it with: `inputs`, made into the types that it declares.

        Raises:
            InvalidRequest: one is missing, unknown, reserved, mistyped or holds a mark of DSPy; says which.
        """
        refuse_message_parts(inputs)
        if self._entry is not None:
            return self._entry.inputs.check(inputs)
        if self.signature is not None:
            self.signature.check_inputs(inputs)
        return inputs

    def runnable(self) -> Any:
        """The module for one operation: a copy where a run leaves marks on the module itself."""
        return self.module if self._copy is None else self._copy(self.module)

    def streams(self) -> list[FieldStream]:
        """The predictor of each output field: the last one that has the field."""
        streams: dict[str, FieldStream] = {}
        names = (
            {f.name for f in self.signature.outputs} | {"reasoning"} if self.signature is not None else None
        )
        for name, predictor in self.module.named_predictors():
            for field in predictor.signature.output_fields:
                if names is None or field in names:
                    streams[field] = FieldStream(field, predictor, name)
        return list(streams.values())

    @property
    def has_code(self) -> bool:
        """Whether it runs code that is neither DSPy's nor ours: a module or tools."""
        return self.definition.import_path is not None or self.kind == "ReAct"

    @property
    def is_json(self) -> bool:
        """Whether the LM answers in JSON."""
        return isinstance(self.adapter, dspy.JSONAdapter)

    def describe(self) -> dict[str, JSON]:
        """Kind, signature, LM profile and adapter, and its inputs and outputs as JSON Schema.

        The first time it may take as long as loading did. Raises `ProgramError` if the module's code does.
        """
        with translate_errors():
            predictors = [name for name, _ in self.module.named_predictors()]
            schemas = self._schemas = self._schemas or self._described()
        origin: Literal["import_path", "state", "spec"] = (
            "import_path" if self.definition.import_path else "state" if self.definition.state else "spec"
        )
        return {
            "module": self.kind,
            "origin": origin,
            "import_path": self.definition.import_path,
            "signature": self.signature.describe() if self.signature is not None else None,
            "lm": self.lm,
            "own_lm": None if self.own_lm is None else str(getattr(self.own_lm, "model", "")),
            "adapter": self._adapter_name(),
            "configured": sorted(map(str, self._configured)),
            "predictors": predictors,
            **schemas,
        }

    def _adapter_name(self) -> str:
        named: str | None = (self.definition.spec or {}).get("adapter")
        if named is None and self._configured.get("adapter") is not None:
            return type(self.adapter).__name__
        return named or "chat"

    def _described(self) -> dict[str, JSON]:
        if self._entry is not None:
            inputs, outputs = self._entry.inputs.schema(), returned_schema(self.module, self._entry.returns)
        else:
            assert self.signature is not None
            inputs = object_schema(map(_spec_field, self.signature.inputs), "validation", open=False)
            # Chains of thought and agents add fields of their own.
            outputs = object_schema(map(_spec_field, self.signature.outputs), "serialization", open=True)
        return {"inputs": inputs, "outputs": outputs}


def _spec_field(field: Field) -> SchemaField:
    return SchemaField(field.name, field.type.annotation, not field.type.is_optional, field.desc)


def load_program(definition: Definition, config: PoolConfig) -> Program:
    """The program of `definition`.

    Raises:
        InvalidRequest: the spec, state or arguments do not fit; names the part.
        NotAllowed: an import path that `dspool.programs.imports` refuses, or a module that would run code.
        ProgramError: the imported code raised.
    """
    _check_size(definition)
    for part in (definition.spec, definition.kwargs):
        refuse_message_parts(part or {})
    if definition.import_path is not None or definition.program_dir is not None:
        with translate_errors(), within() as recording:
            return _imported(definition, config, recording)
    spec = definition.spec
    if not isinstance(spec, dict):
        raise InvalidRequest("a program needs a spec, or an import_path")
    if unknown := set(spec) - _SPEC_KEYS:
        raise InvalidRequest(
            f"unknown key {shown(min(unknown))} in a program spec; known are {', '.join(sorted(_SPEC_KEYS))}"
        )
    if "signature" not in spec:
        raise InvalidRequest("a program spec needs a signature", field="signature")
    _check_names(spec)
    signature = build_signature(spec["signature"])
    imports = Imports.of(config, None, {}, spec)
    with within() as recording:
        module = build_module(spec.get("module", "Predict"), signature, spec.get("settings") or {}, imports)
    if definition.state is not None:
        load_state(module.dspy, definition.state, adapter_named(spec.get("adapter")))
    _cache_fields(module.dspy)
    return Program(definition, module, signature, configured=recording.settings)


def _cache_fields(module: Any) -> None:
    for _, predictor in module.named_predictors():
        cache_fields(predictor.signature)


def _check_names(spec: dict[str, JSON]) -> None:
    for key in ("lm", "adapter"):
        if spec.get(key) is not None and not isinstance(spec[key], str):
            raise InvalidRequest(f"{key} must be a name", field=key)
    adapter_named(spec.get("adapter"))


def _imported(definition: Definition, config: PoolConfig, recording: Recording) -> Program:
    spec = definition.spec or {}
    if set(spec) - {"lm", "adapter"}:
        raise InvalidRequest("a program from an import path takes kwargs, and of a spec only lm and adapter")
    _check_names(spec)
    if definition.program_dir is not None:
        if definition.import_path is not None or definition.kwargs:
            raise InvalidRequest(
                "a saved program takes neither an import_path nor kwargs", field="program_dir"
            )
        module = load_directory(definition.program_dir, config)
    else:
        imports = Imports.of(config, definition.import_path, definition.kwargs, None)
        module = imports.program(definition.import_path, definition.kwargs)
    if definition.state is not None:
        load_state(module, definition.state, adapter_named(spec.get("adapter")))
    _cache_fields(module)
    entry = entry_of(module)
    loaded = BuiltModule(module, type(module).__name__, "async" if entry.is_async else "thread", None)
    return Program(definition, loaded, None, entry, recording.settings)


def _check_size(definition: Definition) -> None:
    for what in ("spec", "kwargs"):
        try:
            size = len(msgspec.json.encode(getattr(definition, what)))
        except (TypeError, ValueError, RecursionError) as refused:
            raise InvalidRequest(f"{what} must be plain JSON", field=what) from refused
        if size > MAX_SPEC_BYTES:
            raise InvalidRequest(f"{what} has at most {MAX_SPEC_BYTES} bytes as JSON, got {size}", field=what)
    if exceeds(definition.state, values=MAX_STATE_VALUES):
        raise InvalidRequest(f"the saved state has more than {MAX_STATE_VALUES} values", field="state")


_ROUNDS = 30
"""Enough for Python to adapt the bytecode of everything on the way."""
_INPUTS = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}


def rehearse() -> None:
    """Run the default program on the offline engine, without starting a thread or opening a file."""
    with environment({}):
        config: PoolConfig = pickle.loads(pickle.dumps(PoolConfig.default()))
    lms = LMs(config.lm_profiles, config.default_lm)
    program = load_program(Definition(spec={"signature": "context, question -> answer"}), config)
    for _ in range(_ROUNDS):
        with dspy.context(
            lm=lms.get(),
            adapter=program.adapter,
            **OperationScope().settings(),
            disable_history=True,
            trace=None,
        ):
            outputs_of(program.module(**program.check_inputs(_INPUTS)))


__all__ = ["Definition", "FieldStream", "Program", "load_program", "outputs_of", "rehearse", "to_json"]
