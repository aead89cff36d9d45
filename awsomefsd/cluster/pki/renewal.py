"""The certificate of a running node renews itself at two thirds of its life, or on demand (its authority is about to go).

Only node.pem and ca.pem change; the key stays.  A renewal that fails is tried again every minute, for the third of the life that is left,
and is logged once for each new reason.  Each node renews a few per cent earlier or later, so that nodes of one age do not ask at once.
"""

from __future__ import annotations

import datetime
import logging
import random
from collections.abc import Callable

from awsomefsd.base.errors import Error, Refused
from awsomefsd.base.limits import RENEW_RETRY_MS
from awsomefsd.cluster.messages import RenewCertificate, Renewed
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles

logger = logging.getLogger(__name__)
_SPREAD = 0.05  # of the life


class Renewal:
    """The renewal of one node's certificate, on one thread; `ask` gets the leader's answer.

    Methods raise NotFound and Corrupt for the files of this node.
    """

    def __init__(
        self,
        files: PkiFiles,
        ask: Callable[[RenewCertificate], Renewed],
        now: Callable[[], datetime.datetime] = ca.now,
        spread: Callable[[], float] = lambda: random.uniform(-_SPREAD, _SPREAD),
    ) -> None:
        self._files = files
        self._ask = ask
        self._now = now
        self._spread = spread()
        self._reason = ""
        self._not_before = self._next = datetime.datetime.min.replace(tzinfo=datetime.UTC)
        self._seen: tuple[int, ...] = ()  # the files, at the last look
        self.renewed = 0
        self.failed = 0

    def identity(self) -> ca.CertifiedNode:
        return ca.identity(self._files.read_certificate())

    def issuer(self) -> str:
        """Returns the id of the authority that signed the certificate in use, "" if it is not in ca.pem."""
        return ca.issuer_of(ca.load(self._files.read_certificate()), ca.load_bundle(self._files.read_bundle()))

    def due(self) -> datetime.datetime:
        """Returns the time of the next renewal."""
        held = self.identity()
        return held.renew_at() + (held.ends - held.begins) * self._spread

    def may_be_due(self) -> bool:
        """Returns whether `renew_if_due` may find something: it is time, or the files are not those of its last look.  Does not wait."""
        return self._now() >= self._next or self._files.stamp() != self._seen

    def renew_if_due(self, signs: str) -> None:
        """Renews if it is time, or if the authority with the id `signs` is to sign and has not signed this one.

        Blocks for the leader then.
        """
        now, stamp = self._now(), self._files.stamp()
        if now >= self._not_before:
            self._look(signs, now)
        self._next, self._seen = (self._not_before if self._not_before > now else self.due()), stamp

    def _look(self, signs: str, now: datetime.datetime) -> None:
        other = bool(signs) and self.issuer() != signs
        if other or self.due() <= now:
            self._not_before = now + datetime.timedelta(seconds=RENEW_RETRY_MS / 1_000)
            failed = self.failed
            self.step(at_once=True)
            if self.failed == failed and (not signs or self.issuer() == signs):
                self._not_before = now

    def step(self, at_once: bool = False) -> float:
        """Renews if it is time; returns the seconds until the next step.  A renewal that fails is logged and not raised."""
        wait_s = (self.due() - self._now()).total_seconds()
        if wait_s > 0 and not at_once:
            return wait_s
        try:
            self._renew()
        except Error as err:
            self.failed += 1
            if str(err) != self._reason:
                self._reason = str(err)
                logger.warning("the node's certificate could not be renewed: %s", err, extra={"ends": self.identity().ends.isoformat()})
            return RENEW_RETRY_MS / 1_000
        self._reason = ""
        return max((self.due() - self._now()).total_seconds(), 0.0)

    def _renew(self) -> None:
        held = self.identity()
        answer = self._ask(RenewCertificate(ca.make_request(self._files.own_key(), held.node)))
        certificate = ca.load(answer.certificate)
        made = ca.identity(certificate)
        if (made.node, made.role, made.key) != (held.node, held.role, held.key):
            raise Refused("the leader signed for another node than this one")
        if not ca.issuer_of(certificate, ca.load_bundle(answer.bundle)):
            raise Refused("the leader signed with an authority that it does not name")
        self._files.write_bundle(answer.bundle)  # first: a reader of the new certificate must find its authority
        self._files.write_certificate(answer.certificate)
        self.renewed += 1
        logger.info("the node's certificate was renewed", extra={"ends": made.ends.isoformat()})
