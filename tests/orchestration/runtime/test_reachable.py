"""A cluster that cannot be reached, or sockets that do not fit, end in one message and not in minutes of tries."""

import socket

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.reachable import check_address, check_temp_folder


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_refused_with_its_name(closed_port: int, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    with pytest.raises(SepsceneError, match=rf"no Ray cluster answers at {address} .*ray start --head"):
        check_address(address, patience_seconds=0)


def test_an_address_where_something_listens_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}", patience_seconds=0)
    check_address("local")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "job server, which `sepscene submit --address` takes"),
        ("head", "must look like HOST:PORT"),
        ("head:port", "must look like HOST:PORT"),
        (":6379", "must look like HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
        ("no.such.host.invalid:6379", "no Ray cluster answers"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_refused(address: str, says: str) -> None:
    with pytest.raises(SepsceneError, match=says):
        check_address(address, patience_seconds=0)


def test_the_longest_folder_for_temporary_files_that_fits_a_socket() -> None:
    check_temp_folder("/" + 38 * "t")
    with pytest.raises(SepsceneError, match=r"has a path of 40 bytes.*may have 39: set RAY_TMPDIR"):
        check_temp_folder("/" + 39 * "t")
