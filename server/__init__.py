"""The coordinator: rounds as a resumable state machine, aggregation, checkpoints. numpy, never torch."""
