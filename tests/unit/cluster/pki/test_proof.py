"""The proof of the founding secret: each part of the transcript counts."""

from __future__ import annotations

import msgspec

from awsomefsd.cluster.pki import proof


def test_each_part_of_a_transcript_counts() -> None:
    keys = proof.verifier(bytes(32))
    base = proof.Transcript("t", "a", "b", b"1" * 32, b"2" * 32, "c", "d", "e", "f", False)
    others = [
        msgspec.structs.replace(base, **{name: not value if isinstance(value, bool) else value + value[:1]})
        for name, value in msgspec.structs.asdict(base).items()
    ]
    proofs = {make(keys, one) for make in (proof.of_dialling, proof.of_listening) for one in (base, *others)}
    assert len(proofs) == 2 * (len(others) + 1)
