"""HAM10000's own listing of its files, at the Harvard Dataverse."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from typing import Any

from skinmtl.data.prepare.download import Remote
from skinmtl.data.prepare.web import PATIENT, Patience, checked_url, read_json
from skinmtl.errors import InputError

SERVER = "https://dataverse.harvard.edu"
DOI = "doi:10.7910/DVN/DBW86T"
LICENCE = "CC BY-NC 4.0"
OURS = "HAM10000_"  # the data set holds test images of a challenge too, which we do not use


def files(server: str = SERVER, patience: Patience = PATIENT) -> list[Remote]:
    """List the files of HAM10000 with sizes and checksums, from the repository's native API.

    Tables that the Dataverse has turned into its own .tab files are asked for as they were deposited: the listed
    checksum is that of the deposited file, the listed size that of the .tab file.

    Args:
        server: the address of a Dataverse.
        patience: how long to wait for it.

    Returns:
        Them by name.

    Raises:
        InputError: the server cannot be asked, or its answer lacks what is needed.
    """
    server = checked_url(server).rstrip("/")
    url = f"{server}/api/datasets/:persistentId/?persistentId={urllib.parse.quote(DOI, safe=':/')}"
    answer = read_json(url, patience)
    try:
        listed = [entry["dataFile"] for entry in answer["data"]["latestVersion"]["files"]]
        found = [_remote(server, file) for file in listed if str(file["filename"]).startswith(OURS)]
    except (LookupError, TypeError, ValueError) as error:
        what = f"not a listing of files ({type(error).__name__}: {error})"
        raise InputError(url, " ".join(what.split()), "check --server, or try again later") from error
    if not found:
        raise InputError(url, f"no file in the listing begins with {OURS}", "check --server")
    return sorted(found, key=lambda remote: remote.name)


def _remote(server: str, file: dict[str, Any]) -> Remote:
    name, url = str(file["filename"]), f"{server}/api/access/datafile/{int(file['id'])}"
    size = file["filesize"]
    if file.get("originalFileFormat"):
        name = str(file.get("originalFileName") or re.sub(r"\.tab$", ".csv", name))
        size, url = file.get("originalFileSize"), f"{url}?format=original"
    if not re.fullmatch(r"[\w-]+(\.\w+)*", name):
        raise ValueError(f"{name!r} is not a name for a file")
    checksum = file.get("checksum") or {"type": "MD5", "value": file["md5"]}
    kind = str(checksum["type"]).lower().replace("-", "")
    if kind not in hashlib.algorithms_guaranteed:
        raise ValueError(f"a checksum of kind {kind}")
    return Remote(name, url, None if size is None else int(size), kind, str(checksum["value"]).lower())
