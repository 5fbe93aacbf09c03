"""Two programs under settings of their module."""

import dspy

from script_like import programs
from script_like.models import SaysItsName

adapter = dspy.JSONAdapter()
dspy.configure(
    lm=SaysItsName("first", adapter=adapter),
    adapter=adapter,
    rm=lambda query, k: [dspy.Example(long_text="a passage")] * k,
)
dspy.configure_cache(enable_disk_cache=True, disk_cache_dir="/proc/nobody/can/write/here")
dspy.enable_logging()
dspy.settings.max_errors = 3
dspy.settings["num_threads"] = 2
dspy.settings.configure(house_style="terse", disable_history=False, trace=[])
seen_at_import = dspy.settings.lm.model


class Answers(programs.Answers):
    pass


class Reports(programs.Reports):
    pass
