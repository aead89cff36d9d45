"""What the simulator has found: seeds that failed in production code (they must pass now), and which seed finds which broken variant."""

REGRESSIONS: dict[str, list[int]] = {
    "a follower never sleeps": [4],  # leader.idle_ms gave 0 for ever where nothing could be reaped
}

FOUND: dict[str, int] = {
    "answer before sync": 2,
    "dedupe that forgets": 3,
    "lease without margin": 45,
    "a new leader grants no full TTL": 2,
}
