"""The command. Each subcommand is a module here with `add(subparsers)` and `run(options) -> exit code`."""
