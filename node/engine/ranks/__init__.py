"""A learner on several devices: one process for each, started and kept by the node. Its own process computes nothing.

    processes.py   starts them, asks all of them the same thing, says which one died and why
    messages.py    what goes through the pipes: JSON, and arrays in safetensors
    learner.py     the node's end: a `Learner`, as the trainer knows one
    worker.py      a rank's end
    sharded.py     the model, with every parameter cut into as many parts as there are ranks (FSDP2)

Sequences are not cut over ranks (no context parallelism): docs/several-gpus.md says why.
"""
