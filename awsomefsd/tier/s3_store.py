"""A bucket that speaks S3, by the library obstore (Rust `object_store`).  The only module that knows the library.

It is imported when the first store is opened: nobody else pays its 5 MiB.  Its threads begin with the first request, and a child that is
forked after that hangs in its first request: a process that uses a store is started by exec and forks nothing that uses it.

What the library would do by itself is turned off: multipart uploads, bulk deletes, tags, its own tries (`store.Tries` has ours, which count
bytes that came), and every setting that the environment could bring in, its proxies too (decision 464).  What it says in words is sorted
here by status, by the code in the body and by its kind of error, and only those are told: its texts hold URLs, bodies and tracebacks.

A redirect of a GET or DELETE is followed by the library, without credentials where it leads to another host; a PUT's is `foreign`.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.log import printable
from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier.credentials import ENVIRONMENT, Credentials, provider
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreDown, StoreError, StoreForeign, StoreRefused, StoreSlow
from awsomefsd.tier.store import CHUNK_BYTES, CONNECT_S, OBJECT_BYTES_MAX, SILENCE_S, Suffix, Tries, check_name, deadline_s
from awsomefsd.tier.store_url import S3, StoreUrl

REGION_DEFAULT = "us-east-1"
WORDS_MAX = 200
HEADERS_S = 60  # for the headers of one object
CLASS_S = 64  # deadlines of clients are this times a power of two: a client has one for all its requests

_NO_PROXY = "http://127.0.0.1:9"  # the library asks the environment unless it is given a proxy: one from which everything is excluded
_ALL = "*,0.0.0.0/0,::/0"  # "*" is names only
_NOT_PROXIED = "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254"  # where a machine asks for the credentials of its role

_STATUS = re.compile(r"non-2xx status code: (\d{3})[^:]*: ?(.*)", re.DOTALL)
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_WORDS = re.compile(r"<Message>([^<]{1,400})</Message>")
_ASKED = re.compile(r"Error performing [A-Z]+ (\S+)")
_KIND = re.compile(r"kind: (\w+)")
_SLOW = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
_FOREIGN = {"NoSuchBucket", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_DAMAGED = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "InvalidDigest"}
_FIXES = {
    "RequestTimeTooSkewed": "the clocks of this node and of the store differ too much; set this node's clock",
    "InvalidAccessKeyId": "the store does not know this key; give another",
    "SignatureDoesNotMatch": "the secret does not belong to the key id, or a proxy changes requests",
    "ExpiredToken": "the session token is over; give new credentials",
    "InvalidObjectState": "the object was moved to an archive, from where it cannot be read; restore it and end the lifecycle rule",
    "QuotaExceeded": "the account is full",
    "InvalidToken": "the store does not know this session token; give new credentials",
    "EntityTooLarge": "the store takes no object of this size; give smaller segments (--segment)",
    "AccessDenied": "these credentials may not do that; they need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
}


class S3Options(Struct, frozen=True):
    """How a bucket is reached.  `endpoint` "": Amazon's of the region.  `credentials`: see `credentials.provider`.

    `ca`: certificates (PEM) beside `ca_file`.  `proxy`: what requests go through; "": they go directly, whatever the environment says.
    """

    endpoint: str = ""
    region: str = REGION_DEFAULT
    credentials: str | Credentials = ENVIRONMENT
    ca_file: str = ""
    ca: str = ""
    proxy: str = ""


class S3Store:
    """A bucket below a prefix; see `store.ObjectStore`."""

    def __init__(self, url: StoreUrl, options: S3Options, tries: Tries | None = None) -> None:
        """Raises ConfigError for options that cannot be; asks nobody."""
        assert url.kind == S3
        self.url = str(url)
        self._bucket, self._prefix, self._options = url.place, url.prefix, options
        self._tries = tries or Tries()
        self.endpoint = _endpoint(options, url.place)
        self._ca = _certificates(options)
        self.proxy = _proxy(options.proxy)
        self._provider = provider(options.credentials)
        self._clients: dict[tuple[int, bool], Any] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        assert start >= 0 and length > 0

        def request(skipped: int) -> Iterator[Bytes]:
            return self._read(name, start + skipped, length - skipped)

        return self._tries.read(request, length)

    def suffix(self, name: str, length: int) -> Suffix:
        def request() -> Suffix:
            with _Sorted(self, name):
                found = _obstore().get(self._client(length, reads=True), check_name(name), options={"range": {"suffix": length}})
                size = int(found.meta["size"])
                raw = _joined(found.stream(CHUNK_BYTES), length, f"{self.url}: {name}")
            if len(raw) != min(length, size):
                raise ObjectDamaged(f"{self.url}: {name}: {len(raw)} bytes instead of the last {min(length, size)}")
            return Suffix(raw, size)

        return self._tries.run(request, length)

    def whole(self, name: str, bytes_max: int) -> bytes:
        def request() -> bytes:
            with _Sorted(self, name):
                found = _obstore().get(self._client(bytes_max, reads=True), check_name(name))
                return _joined(found.stream(CHUNK_BYTES), bytes_max, f"{self.url}: {name}")

        return self._tries.run(request, bytes_max)

    def put(self, name: str, body: Bytes) -> None:
        assert len(body) <= OBJECT_BYTES_MAX

        def request() -> None:
            with _Sorted(self, name):
                _obstore().put(self._client(len(body), reads=False), check_name(name), body, use_multipart=False)

        self._tries.run(request, len(body))

    def delete(self, name: str) -> None:
        def request() -> None:
            try:
                with _Sorted(self, name):
                    _obstore().delete(self._client(0, reads=False), check_name(name))
            except ObjectMissing:
                pass

        self._tries.run(request, 0)

    def headers(self, name: str) -> dict[str, str]:
        """The library keeps headers to itself, so it only signs here, for 60 s, and the standard library asks."""
        with _Sorted(self, name):
            signed = _obstore().sign(self._client(0, reads=True), "GET", check_name(name), timedelta(seconds=60))
        answers: SimpleQueue[dict[str, str] | Exception] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put(_headers(signed, self._ca, self.proxy))
            except (OSError, HTTPException, ValueError) as err:
                answers.put(err)

        threading.Thread(target=ask, name="store headers", daemon=True).start()  # a byte now and then is no silence, so it may never end
        try:
            found = answers.get(timeout=HEADERS_S)
        except Empty:
            raise StoreSlow(f"{self.url}: {name}: no headers within {HEADERS_S} s") from None
        if isinstance(found, Exception):
            raise StoreDown(f"{self.url}: {name}: {type(found).__name__}")
        return found

    def close(self) -> None:
        with self._lock:
            self._clients.clear()

    def forget_credentials(self) -> None:
        """The next request asks for credentials anew; those under way go on."""
        self.close()

    def _read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        with _Sorted(self, name):
            options = {"range": (start, start + length)}
            found = _obstore().get(self._client(length, reads=True), check_name(name), options=options)
            first, behind = found.range
            if (first, behind) != (start, start + length):
                size = int(found.meta["size"])
                raise ObjectDamaged(f"{self.url}: {name}: bytes {first} to {behind} of {size} instead of {start} to {start + length}")
            yield from found.stream(CHUNK_BYTES)

    def _client(self, length: int, *, reads: bool) -> Any:
        """Returns the library's client whose deadline is right for so many bytes; one that reads ends where nothing comes for SILENCE_S."""
        doublings = max(0, int(deadline_s(length) / CLASS_S)).bit_length()
        with self._lock:
            client = self._clients.get((doublings, reads))
            if client is None:
                client = self._clients[doublings, reads] = self._made(CLASS_S << doublings, reads)
        return client

    def _made(self, deadline: int, reads: bool) -> Any:
        client_options: dict[str, Any] = {
            "timeout": timedelta(seconds=deadline), "connect_timeout": timedelta(seconds=CONNECT_S),
            "allow_http": self.endpoint.startswith("http:"), "allow_invalid_certificates": False, "http1_only": True,
            "user_agent": "awsomefs",
        }  # fmt: skip
        if reads:
            client_options["read_timeout"] = timedelta(seconds=SILENCE_S)
        client_options |= {"proxy_url": self.proxy or _NO_PROXY, "proxy_excludes": _NOT_PROXIED if self.proxy else _ALL}
        if self._ca:
            client_options["root_certificate"] = self._ca
        config: dict[str, Any] = {
            "endpoint": self.endpoint, "aws_endpoint_url_s3": self.endpoint, "region": self._options.region,
            "virtual_hosted_style_request": not self._options.endpoint and "." not in self._bucket,
            "disable_bulk_delete": True, "disable_tagging": True, "skip_signature": False, "unsigned_payload": False,
            "s3_express": False, "request_payer": False,
        }  # fmt: skip
        return _s3_class()(
            self._bucket, prefix=self._prefix or None, config=config, client_options=client_options,
            retry_config={"max_retries": 0}, credential_provider=self._provider,
        )  # fmt: skip


class _Sorted:
    """Turns what the library raises into a StoreError.  What it said in words does not go further, not as a cause either."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store, self._name = store, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, err: BaseException | None, _trace: object) -> None:
        if err is None or not isinstance(err, Exception) or isinstance(err, StoreError | AssertionError | ConfigError):
            return
        if not _is_the_librarys(err):
            return
        through = f" (through the proxy {self._store.proxy})" if self._store.proxy else ""
        found = sorted_error(err, f"{self._store.url}: {self._name}{through}", self._store.endpoint)
        if isinstance(found, StoreRefused):
            self._store.forget_credentials()
        raise found from None


def sorted_error(err: Exception, what: str, endpoint: str) -> StoreError:
    """Returns the StoreError for an exception of the library; `what` names store and object.

    Whatever else than the endpoint was asked was asked for credentials.
    """
    text = str(err)
    asked = _ASKED.search(text)
    nobody_asked = asked is None and (type(err).__name__ == "UnauthenticatedError" or "token file" in text)
    if nobody_asked or (asked is not None and not asked[1].startswith(endpoint)):
        return StoreRefused(f"{what}: no credentials can be had from where they should come; look at the file, or at this machine's role")
    if match := _STATUS.search(text.partition("\n\nDebug source:")[0]):
        return _of_status(int(match[1]), match[2], what)
    kind = _KIND.search(text)
    if kind is not None:
        if kind[1] == "Timeout" or "TimedOut" in text:
            return StoreSlow(f"{what}: no answer within the deadline")
        if "kind: Redirect" in text:
            return StoreForeign(f"{what}: redirects without an end; check endpoint and region")
        if "certificate" in text.lower() or "UnknownIssuer" in text:
            return StoreForeign(f"{what}: its certificate is not to be trusted; give the authority's by --ca-file, or check the endpoint")
        return StoreDown(f"{what}: {'the connection was cut' if kind[1] in ('Interrupted', 'Request') else 'nobody answers'}")
    return StoreForeign(f"{what}: answers as no store does that speaks S3; check the endpoint")


def _of_status(status: int, body: str, what: str) -> StoreError:
    code = match[1] if (match := _CODE.search(body)) else ""
    words = printable(match[1])[:WORDS_MAX] if (match := _WORDS.search(body)) else ""
    said = f"{what}: status {status}{' ' + code if code else ''}{' (' + words + ')' if words else ''}"
    if code in _FIXES and status < 500:
        return StoreRefused(f"{said}; {_FIXES[code]}")
    if code in _SLOW or status in (408, 429):
        return StoreSlow(f"{said}; it asks for fewer requests")
    if code in _FOREIGN or 300 <= status < 400:
        return StoreForeign(f"{said}; check bucket, endpoint and region")
    if code in _DAMAGED:
        return StoreDown(f"{said}; what arrived there was not what was sent")
    if status == 404:
        if code == "NoSuchKey":
            return ObjectMissing(said)
        return StoreForeign(f"{said}; that is no word of a store about an object; check the endpoint, and proxies on the way")
    if status in (401, 403, 407):
        return StoreRefused(f"{said}; check credentials and rights")
    if status == 416:
        return ObjectDamaged(f"{said}: the object is shorter than it should be")
    if status == 507:
        return StoreRefused(f"{said}; the store is full")
    if status >= 500:
        return StoreDown(said)
    return StoreForeign(f"{said}; answers as no store does that speaks S3, or this request is not known there")


# --- the library ----------------------------------------------------------------------------------------------------------
def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise ConfigError("buckets need the library obstore, which is not installed here: pip install 'awsomefsd[store]'") from None
    return obstore


def _s3_class() -> Any:
    _obstore()
    from obstore.store import S3Store as Client

    return Client


def _is_the_librarys(err: Exception) -> bool:
    return type(err).__module__.startswith("obstore") or isinstance(err, OSError | ValueError)


def _joined(chunks: Iterator[Bytes], bytes_max: int, what: str) -> bytes:
    raw = bytearray()
    for chunk in chunks:
        raw += chunk
        if len(raw) > bytes_max:
            raise ObjectDamaged(f"{what}: has more than {bytes_max} bytes")
    return bytes(raw)


# --- options --------------------------------------------------------------------------------------------------------------
def _endpoint(options: S3Options, bucket: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,40}", options.region):
        raise ConfigError(f"{options.region[:80]!r} is no name of a region")
    if not options.endpoint:  # a certificate of *.s3.… is good for one name without dots
        return f"https://{'' if '.' in bucket else bucket + '.'}s3.{options.region}.amazonaws.com"
    try:
        parts = urlsplit(options.endpoint)
        whole = parts.hostname and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:  # brackets, no number for a port, or characters that are others in an address
        whole = False
    if not whole or parts.scheme not in ("http", "https") or "@" in parts.netloc or " " in parts.netloc:
        raise ConfigError("a store's endpoint is http://HOST:PORT or https://HOST:PORT, without credentials")
    return options.endpoint.rstrip("/")


def _certificates(options: S3Options) -> bytes:
    raw = options.ca.encode()
    if options.ca_file:
        try:
            raw += Path(options.ca_file).read_bytes()
        except OSError as err:
            raise ConfigError(f"certificates {options.ca_file}: {err.strerror or err}") from None
    return check_certificates(raw, options.ca_file or "of this store") if raw else b""


def check_certificates(raw: bytes, where: str) -> bytes:
    """Returns certificates (PEM).  Raises ConfigError for anything else."""
    try:
        ssl.create_default_context(cadata=raw.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"certificates {where}: holds no certificates (PEM)") from None
    return raw


def _proxy(text: str) -> str:
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        whole = parts.port is not None and parts.hostname and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:
        whole = False
    if not whole or parts.scheme != "http" or "@" in parts.netloc:
        raise ConfigError("a store's proxy is http://HOST:PORT, without credentials")
    return f"http://{parts.netloc}"


def _headers(signed: str, ca: bytes, proxy: str) -> dict[str, str]:
    parts, next_hop = urlsplit(signed), urlsplit(proxy or signed).netloc
    target = f"{parts.path}?{parts.query}"
    connection: HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if ca:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        connection = HTTPSConnection(next_hop, timeout=SILENCE_S, context=context)
        if proxy:
            connection.set_tunnel(parts.hostname or "", parts.port or 443)
    else:
        connection = HTTPConnection(next_hop, timeout=SILENCE_S)
        target = signed if proxy else target
    try:
        connection.request("GET", target, headers={"Host": parts.netloc})
        answer: HTTPResponse = connection.getresponse()
        return {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
