"""What differs between kinds of Zarr stores: listings, and the sessions of Icechunk."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from zarr.abc.store import Store

T = TypeVar("T")


def icechunk_session(store: Store) -> Any:
    """The session of an Icechunk store; None for any other store. This never imports Icechunk."""
    icechunk = sys.modules.get("icechunk")
    return store.session if icechunk is not None and isinstance(store, icechunk.IcechunkStore) else None


def fork(session: Any) -> Any:
    """The store of a fork of an Icechunk session, which can be sent to workers; ValueError if it cannot be forked."""
    import icechunk

    if isinstance(session, icechunk.ForkSession):
        return session.store
    if session.has_uncommitted_changes:
        raise ValueError(
            "The Icechunk session has uncommitted changes, but only a session without any can be forked to the workers "
            "of a cluster. Type session.commit('...') and take a new session, or session.discard_changes()."
        )
    return session.fork().store


def merge(session: Any, target: Any, results: Sequence[Any]) -> None:
    """Merge what the workers wrote into the session, even after an error, so that it can be committed and resumed."""
    fork = target.session
    fork.merge(*results)
    if type(session) is not type(fork):
        session.merge(fork)


async def list_keys(keys: AsyncIterator[T]) -> list[T]:
    """All keys of a listing."""
    return [key async for key in keys]


def forget_listings(store: Store) -> None:
    """Drop the listings that fsspec keeps: other processes may have written or deleted chunks since."""
    fs = getattr(store, "fs", None)
    if fs is not None:
        getattr(fs, "sync_fs", fs).invalidate_cache()
