"""One operation as a worker runs it, before there is a worker: for the process that workers are forked from.

What Python and DSPy build at first use (validators of the configuration, a signature's prompt, adapted bytecode) is
then built once and shared. It configures nothing and leaves no history, so that each worker does that its own way.
"""

from __future__ import annotations

import pickle

import dspy

from dspool.config import PoolConfig
from dspool.config.pool import environment
from dspool.programs.models.lm import LMs
from dspool.programs.models.operation import OperationScope
from dspool.programs.program import Definition, load_program, outputs_of

_ROUNDS = 30
"""Enough for Python to adapt the bytecode of everything on the way."""
_INPUTS = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}


def rehearse() -> None:
    """Run the default program on the offline engine. Starts no thread, opens nothing."""
    with environment({}):
        config: PoolConfig = pickle.loads(pickle.dumps(PoolConfig.default()))
    lms = LMs(config.lm_profiles, config.default_lm)
    program = load_program(Definition(spec={"signature": "context, question -> answer"}), config)
    for _ in range(_ROUNDS):
        program.check_inputs(_INPUTS)
        with dspy.context(
            lm=lms.get(),
            adapter=program.adapter,
            **OperationScope().settings(),
            disable_history=True,
            trace=None,
        ):
            outputs_of(program.module(**_INPUTS))
