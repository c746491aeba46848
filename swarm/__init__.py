"""What peers agree on: tasks, rewards, the wire and its verification. No torch, no engine."""
