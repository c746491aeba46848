"""One module per command of `swarm-node`: `add_arguments(parser)` and `main(arguments) -> exit code`.

Each is imported when it is called for, and imports what is heavy inside of `main`, after its arguments proved right.
"""
