"""The built-in model: half a million parameters, warmed up in seconds, so that a node runs with nothing downloaded."""
