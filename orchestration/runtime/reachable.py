"""Can Ray be reached or started? Checked before Ray is asked, which tries for minutes or fails in its own words."""

import os
import socket
import time

from sepscene.models.config import SepsceneError

PATIENCE_SECONDS = 15.0
"""How long a cluster's head may take to answer: it may just have been started."""

_SOCKET_BYTES = 107
"""The longest path of a socket that Linux takes."""
_BELOW_TEMP = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


def check_temp_folder(folder: str) -> None:
    """Raise when Ray's sockets would not fit below its folder for temporary files.

    Raises:
        SepsceneError: says how long it may be.
    """
    size = len(os.fsencode(folder))
    most = _SOCKET_BYTES - _BELOW_TEMP
    if size > most:
        raise SepsceneError(
            f"the folder for temporary files, {folder}, has a path of {size} bytes; Ray keeps sockets below it, so "
            f"that it may have {most}: set RAY_TMPDIR to a shorter one, e.g. /tmp"
        )


def check_address(address: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Raise when nothing can answer at the address of a Ray cluster.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or `local` for a Ray that is started.
        patience_seconds: how long to try.

    Raises:
        SepsceneError: says what an address looks like, or that the cluster does not answer.
    """
    if address == "local":
        return
    if address.startswith(("http://", "https://")):
        raise SepsceneError(
            f"{address} is the address of Ray's job server, which `sepscene submit --address` takes. Inside a cluster "
            "give HOST:PORT of its head, e.g. 10.0.0.1:6379, or `auto` on one of its nodes"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise SepsceneError(
            f"--address or RAY_ADDRESS {address!r} must look like HOST:PORT, e.g. 10.0.0.1:6379, or `auto`"
        )
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= deadline:
                raise SepsceneError(
                    f"no Ray cluster answers at {address} ({error}): start it (`ray start --head`), check host, port "
                    "and firewall, or unset RAY_ADDRESS to run on this machine"
                ) from None
        time.sleep(0.5)
