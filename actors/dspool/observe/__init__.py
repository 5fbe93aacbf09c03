"""What is shown of a pool: logs, traces, events, metrics, in the formats that operators use."""
