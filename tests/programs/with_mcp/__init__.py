"""After "Use MCP in DSPy": an agent whose tools a server in a process of its own offers."""
