"""Domain errors become gRPC statuses here, in one place; any other error is a bug of ours, logged with its trace and answered INTERNAL."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import grpc

from awsomefsd.admin import trailers
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Error

logger = logging.getLogger(__name__)
DETAILS_BYTES_MAX = 7_000  # the whole trailer has 8 KiB; over that the client sees neither the words nor the error's class


def edge(rpc: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an RPC: a domain error becomes its status, any other error becomes INTERNAL; the reply is an empty one then."""

    @functools.wraps(rpc)
    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return rpc(self, request, context)
        except Error as err:
            logger.info("admin call refused", extra={"rpc": rpc.__name__, "reason": str(err)})
            fail(context, err)
        except Exception:
            logger.exception("admin call failed", extra={"rpc": rpc.__name__})
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("a bug in the daemon; its log has the details")
        return getattr(pb, _REPLIES[rpc.__name__])()

    return call


def fail(context: grpc.ServicerContext, err: Error) -> None:
    """Puts a domain error into the answer of a call: status, words, and trailing metadata."""
    context.set_trailing_metadata(trailers.trailing(err))
    context.set_code(trailers.status_of(err))
    context.set_details(_details(str(err)))


def _details(words: str) -> str:
    """Returns words as gRPC carries them: valid UTF-8, and no more than a client takes; of longer ones the beginning and the end.

    All that is no printable ASCII goes as three characters for each byte.
    """
    text = words.encode(errors="backslashreplace").decode()  # a path in them may be no UTF-8
    most = DETAILS_BYTES_MAX if text.isascii() and text.isprintable() and "%" not in text else DETAILS_BYTES_MAX // 12
    return text if len(text) <= most or len(quote(text, safe="")) <= DETAILS_BYTES_MAX else f"{text[: most // 2]} … {text[-most // 2 :]}"


_REPLIES = {method.name: method.output_type.name for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}
