"""The agent, as its tutorial has it: a session with the server for each question."""

import os
import sys
from pathlib import Path

import dspy
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
)

server_params = StdioServerParameters(
    command=sys.executable, args=[str(Path(__file__).with_name("server.py"))], env=None
)


class AirlineCustomerService(dspy.Signature):
    """You are an airline customer service agent. Use the tools to fulfil the user's request."""

    user_request: str = dspy.InputField()
    process_result: str = dspy.OutputField()


class Agent(dspy.Module):
    async def aforward(self, user_request: str):
        async with stdio_client(server_params) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            tools = await session.list_tools()
            react = dspy.ReAct(
                AirlineCustomerService, tools=[dspy.Tool.from_mcp_tool(session, tool) for tool in tools.tools]
            )
            return await react.acall(user_request=user_request)
