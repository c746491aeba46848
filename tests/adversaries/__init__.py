"""Peers that misbehave, one file for each kind, and a scene to let them loose in.

They are real: a libp2p daemon with a key of its own, in the directory as it should be, that speaks the swarm's
protocols and breaks their rules, or keeps them and lies. Their victim is what a node is without its model: exchange,
intake, journal, pool and standing, put together as the daemon does it, while it follows an honest peer (`scene.py`).

A kind is either a list of groups for a log that is served as it should be (`made.py`), or the handler of a stream, or
something that is done to the victim. tests/test_adversaries.py says what becomes of each, docs/threat-model.md what
that is worth. Nothing here is used by the package.
"""
