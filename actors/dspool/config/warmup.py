"""The steps of a warm-up, and how a pool runs them. Durations are seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dspool.config.base import CountOrZero, ImportPath, ModuleName, Part, Seconds, refuse


class _Step(Part):
    timeout_s: Seconds | None = None
    """Deadline of this step alone; null is what is left of the worker's deadline."""


class ImportModules(_Step):
    """Import modules before the first operation needs them."""

    step: Literal["import_modules"] = "import_modules"
    modules: tuple[ModuleName, ...] = Field(min_length=1)


class ConfigureLMStep(_Step):
    """Build the LM of a profile (no call to it)."""

    step: Literal["configure_lm"] = "configure_lm"
    profile: str


class LoadPrograms(_Step):
    """Load all pool programs."""

    step: Literal["load_programs"] = "load_programs"


class Probe(_Step):
    """Run a pool program once. On a model that costs money only with `paid`."""

    step: Literal["probe"] = "probe"
    program: str
    inputs: dict[str, Any] = Field(default={})
    paid: bool = False


class CustomCode(_Step):
    """Call a function of yours, without arguments; `import_path` must be within `allowed_imports`."""

    step: Literal["custom_code"] = "custom_code"
    import_path: ImportPath


class SetupStep(_Step):
    """Call the pool's `setup`: the first step of a worker that has one. Not among the steps that a pool configures."""

    step: Literal["setup"] = "setup"
    import_path: ImportPath


WarmupStep = Annotated[
    ImportModules | ConfigureLMStep | LoadPrograms | Probe | CustomCode, Field(discriminator="step")
]
"""A step that a pool configures."""

WorkerStep = WarmupStep | SetupStep
"""A step that a worker runs."""


class WarmupConfig(Part):
    strategy: Literal["parallel", "sequential", "staged"] = "parallel"
    """All workers at once, one after the other, or a canary alone and then three stages."""
    steps: tuple[WarmupStep, ...] = ()
    """What a new worker does before it takes traffic, in order; it loads the pool programs in any case."""
    worker_deadline_s: Seconds = 60.0
    """Deadline of all steps of one worker together."""
    min_ready: CountOrZero | None = None
    """Warm workers with which the pool is ready; null is `min_pool_size`."""

    @model_validator(mode="after")
    def _steps_fit(self) -> WarmupConfig:
        for number, step in enumerate(self.steps):
            if step.timeout_s is not None and step.timeout_s > self.worker_deadline_s:
                rule = f"must not be longer than worker_deadline_s={self.worker_deadline_s}"
                refuse(f"steps.{number}.timeout_s", step.timeout_s, rule)
        return self


__all__ = [
    "ConfigureLMStep",
    "CustomCode",
    "ImportModules",
    "LoadPrograms",
    "Probe",
    "SetupStep",
    "WarmupConfig",
    "WarmupStep",
    "WorkerStep",
]
