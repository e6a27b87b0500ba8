"""What a run does, one file per stage: `run(spec, parents, out)` writes the result."""
