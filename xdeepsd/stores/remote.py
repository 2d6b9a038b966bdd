"""Object stores: which paths are URLs, their names without credentials, and what their libraries' errors mean.

Credentials are those of the environment, which each process looks up for itself (botocore, obstore and the like know
their own variables and files): none are passed on, written or logged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_LIBRARIES = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "obstore", "s3fs"}
# What an error says, in the words of botocore, s3fs, aiohttp and obstore; the first that fits counts.
_MEANINGS = {
    "bucket": "NoSuchBucket|bucket does not exist",
    "credentials": "NoCredentials|PartialCredentials|CredentialRetrieval|TokenRetrieval|SSO|latest/api/token",
    "refused": "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AccessDenied|PermissionDenied"
    "|PermissionError|Unauthenticated|Forbidden",
    "unreachable": "Connect|Timeout|ServerDisconnected|ClientPayload|IncompleteRead|error sending request|dns error",
}
_VARIABLES = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS=key.json",
    "az": "AZURE_STORAGE_CONNECTION_STRING=...",
}
_AWS = "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... (or AWS_PROFILE=...)"
_SECRET = re.compile(r"(?i)((?:key|token|secret|signature|credential|password)[\w-]*=)[^&\s]+")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names something that is not on a disk: ``s3://bucket/out.zarr``.

    >>> is_url("s3://bucket/out.zarr"), is_url("file:///data/out.zarr"), is_url("out.zarr")
    (True, False, False)
    """
    return "://" in str(path) and not str(path).startswith("file://")


def local_path(path: str) -> str:
    """The path in a ``file://`` URL; a drive of Windows has no slash before it.

    >>> local_path("file:///data/a.zarr"), local_path("file:///C:/data/a.zarr"), local_path("a.zarr")
    ('/data/a.zarr', 'C:/data/a.zarr', 'a.zarr')
    """
    return re.sub(r"^/(?=[A-Za-z]:[/\\])", "", path.removeprefix("file://")) if path.startswith("file://") else path


def without_secrets(url: str) -> str:
    """A URL without user, password and query, where a signed URL carries its signature; other text as it is.

    >>> without_secrets("https://me:word@host/a.zarr?X-Amz-Signature=12"), without_secrets("/data/a?b.zarr")
    ('https://host/a.zarr', '/data/a?b.zarr')
    """
    if not is_url(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def meaning(error: BaseException, where: str) -> OSError | None:
    """The error of an object store as one that says what to do; None if ``error`` is none of these.

    ``where`` names the store. Returned is a FileNotFoundError (no such bucket), a PermissionError (credentials) or a
    ConnectionError (out of reach).
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    foreign = any(type(one).__module__.partition(".")[0] in _LIBRARIES for one in chain)
    # s3fs raises plain OSErrors, which lose their cause on the way from a worker, but never name a local file.
    plain = is_url(where) and isinstance(error, OSError) and error.filename is None
    if not (foreign or plain):
        return None
    text = "\n".join(f"{type(one).__name__}: {one}" for one in chain)
    found = next((name for name, words in _MEANINGS.items() if re.search(words, text)), None)
    if found is None:
        return None
    said = _SECRET.sub(r"\1...", str(error).partition("\n")[0])
    variables = _VARIABLES.get(where.partition("://")[0], _AWS)
    if found == "bucket":
        return FileNotFoundError(
            f"{where}: there is no such bucket ({said}). Needed: one that exists, since none is created. Type its name."
        )
    if found == "unreachable":
        return ConnectionError(
            f"{where} cannot be reached ({said}). Needed: a connection to its server, and the right endpoint if it is "
            "not the provider's own. Type export AWS_ENDPOINT_URL=https://HOST for another S3 server."
        )
    what = "no credentials were found" if found == "credentials" else "access is refused"
    return PermissionError(
        f"{where}: {what} ({said}). Needed: credentials that may list, read and write there, in the environment of "
        f"this process and of all workers. Type export {variables}."
    )


@contextmanager
def told(where: str | os.PathLike[str]) -> Iterator[None]:
    """Raise the errors of an object store as `meaning` words them; all other errors as they are."""
    try:
        yield
    except Exception as error:
        known: Any = meaning(error, without_secrets(str(where)))
        if known is None:
            raise
        raise known from error
