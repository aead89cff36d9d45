"""Values, limits, errors, codecs and helpers that every package may use. It imports nothing of ours."""
