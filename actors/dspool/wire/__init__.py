"""What client and worker say to each other, and the connection that carries it."""
