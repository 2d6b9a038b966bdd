"""Models at an address: fetched once, checked against a checksum that the user gives, and kept in the user's cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xdeepsd._extras import require

SCHEMES = ("https://", "http://", "hf://", "doi:")


def base_url(address: str) -> str:
    """Where the two files of a model are (of a DOI, pooch finds out). ValueError for no address of Hugging Face.

    >>> base_url("hf://owner/rain@v1/model")
    'https://huggingface.co/owner/rain/resolve/v1/model'
    >>> base_url("https://zenodo.org/records/1234/files/")
    'https://zenodo.org/records/1234/files'
    """
    if not address.startswith("hf://"):
        return address.rstrip("/")
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(/.+?)?/?", address)
    if found is None:
        raise ValueError(f"No repository of Hugging Face: {address!r}. Needed: 'hf://OWNER/NAME@REVISION/FOLDER'.")
    repository, revision, folder = found.groups()
    return f"https://huggingface.co/{repository}/resolve/{revision or 'main'}{folder or ''}"


def fetch(address: str, sha256: str | None) -> Path:
    """The folder in the user's cache that holds the model at ``address``; only what is not there yet is fetched.

    ``sha256`` is that of its ``model.json``, which holds that of its ``model.safetensors``: so both are pinned. A file
    that does not match is not kept, nor is one that breaks off.
    """
    if sha256 is None or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(
            f"sha256 is {sha256!r}, for a model at {address}. Needed: the SHA-256 of its model.json, 64 hexadecimal "
            "digits, from somebody you trust. Type load_model(address, sha256='...')."
        )
    url = base_url(address)
    require("hub", "A model at an address")
    import pooch

    folder = Path(pooch.os_cache("xdeepsd")) / "models" / sha256
    description = _fetch_file(f"{url}/model.json", sha256, folder)
    try:
        tensors = str(json.loads(description.read_text(encoding="utf-8"))["tensors_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}/model.json does not describe a model of xdeepsd ({error!r}).") from error
    _fetch_file(f"{url}/model.safetensors", tensors, folder)
    return folder


def _fetch_file(url: str, sha256: str, folder: Path) -> Path:
    import pooch

    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=url.rpartition("/")[2], path=folder))
    except OSError as error:  # of requests too
        raise OSError(
            f"{url} was not fetched: {error}. Needed: a connection, for a model that is not yet whole in {folder}."
        ) from error
    except (ValueError, KeyError) as error:
        if "hash of downloaded file" not in str(error):  # what pooch says of a DOI
            raise ValueError(
                f"{url} was not found: {error}. Needed: the DOI of a record on Zenodo, figshare or a Dataverse that "
                "holds model.json and model.safetensors."
            ) from error
        raise ValueError(
            f"{url} is another file than expected: its SHA-256 is not {sha256}. It was not kept. Needed: the address "
            "and the sha256 of one and the same model."
        ) from error
