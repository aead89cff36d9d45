"""The deterministic state machine: what each command does to the rows, one subject a file."""
