"""`swarm-node doctor`: is this machine fit for that config? `findings` has the words, the others the checks."""
