"""Side by side with what people use today, each with one command and in one process: `python -m benchmarks.NAME`."""
