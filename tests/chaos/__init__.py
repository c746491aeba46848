"""Real processes that are killed, stopped, cut off and made to fail (`make chaos`; docs/operations.md)."""
