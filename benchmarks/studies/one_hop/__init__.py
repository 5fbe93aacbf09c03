"""What workers would save that answer HTTP themselves, and what they would cost: ADR 12."""
