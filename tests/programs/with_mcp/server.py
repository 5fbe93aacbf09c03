"""The airline's tools over standard input and output."""

try:
    from mcp.server import MCPServer as Server
except ImportError:  # the first version of MCP's package
    from mcp.server.fastmcp import FastMCP as Server

server = Server("airline")


@server.tool()
def fetch_flight_info(origin: str, destination: str) -> str:
    """Fetch flights from origin to destination"""
    return f"DA123 flies from {origin} to {destination}"


@server.tool()
def book_flight(flight_id: str) -> str:
    """Book a flight on behalf of the user."""
    return f"{flight_id} is booked, confirmation number abc123"


if __name__ == "__main__":
    server.run()
