"""What the simulator has found: seeds that failed in production code (they must pass now), and which seed finds which broken variant."""

REGRESSIONS: dict[str, list[int]] = {
    "a follower never sleeps": [4],  # leader.idle_ms gave 0 for ever where nothing could be reaped
}

FOUND: dict[str, int] = {
    "answer before sync": 2,
    "vote not persisted": 3,
    "dedupe that forgets": 1,
    "a new leader grants no full TTL": 3,
    "half is a majority": 3,
    "snapshot installed halfway": 4,
    "learner counted as voter": 1,
    "a recall acknowledged too early": 1,
    "an ended lease commits": 1,
    "a new leader does not wait for reports": 1,
}
