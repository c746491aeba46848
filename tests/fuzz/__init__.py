"""Hostile bytes for everything that reads bytes from a peer: `python -m tests.fuzz` (docs/fuzzing.md).

seeds.py     valid messages with every feature, made by code
mutation.py  damages them, as protobuf fields and as bytes
targets.py   what is fed with them, and what it may answer: the list to extend
watch.py     how long one input may take, and how much memory
loop.py      blind: mutations of the seeds, the same for the same number
guided.py    coverage-guided: libFuzzer, by way of atheris, in a process per target
"""
