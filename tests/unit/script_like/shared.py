"""What the modules of one application have in common."""

import dspy

from script_like.models import Noting, SaysItsName

notes = Noting()
dspy.configure(lm=SaysItsName("shared"), callbacks=[notes])
