"""After "Memory-Enabled ReAct Agents": tools that are methods, with what they remember on the object."""

import os

import dspy


class MemoryTools:
    """What the agent remembers of a user."""

    def __init__(self):
        self.memories: dict[str, list[str]] = {}

    def store_memory(self, content: str, user_id: str = "default_user") -> str:
        """Store information in memory."""
        self.memories.setdefault(user_id, []).append(content)
        return f"Stored memory: {content}"

    def search_memories(self, query: str, user_id: str = "default_user", limit: int = 5) -> str:
        """Search for relevant memories."""
        found = self.memories.get(user_id, [])[:limit]
        return (
            "\n".join(f"{n}. {memory}" for n, memory in enumerate(found, 1)) or "No relevant memories found."
        )


class MemoryQA(dspy.Signature):
    """You are a helpful assistant with access to memory."""

    user_input: str = dspy.InputField()
    response: str = dspy.OutputField()


class MemoryReActAgent(dspy.Module):
    def __init__(self):
        super().__init__()
        dspy.configure(
            lm=dspy.LM(
                "openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"]
            )
        )
        self.memory_tools = MemoryTools()
        self.react = dspy.ReAct(
            MemoryQA, tools=[self.memory_tools.store_memory, self.memory_tools.search_memories], max_iters=6
        )

    def forward(self, user_input: str):
        return self.react(user_input=user_input)
