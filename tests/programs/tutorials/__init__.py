"""Programs after DSPy's own tutorials (dspy.ai/tutorials), written anew and small. They know nothing of dspool."""
