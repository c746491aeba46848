"""What one node does: its policy, its four loops, and what its operator sees."""
