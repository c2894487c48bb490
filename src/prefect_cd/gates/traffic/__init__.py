"""The zero-downtime gate: send requests during a rollout, measure them, and compare them with the limits."""
