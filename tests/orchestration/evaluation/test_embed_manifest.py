"""Embedding of manifests: the blocks of the actors are put together correctly in any order."""

import numpy as np
import pytest

from sepscene.tasks.datasets.manifest import Clip, Manifest, make_manifest

pytestmark = pytest.mark.slow  # imports Ray

CLIPS = 10  # clips 0 to 5 are in one manifest, 6 to 9 in another; clip 3 cannot be read


def clips(first: int, end: int) -> Manifest:
    return make_manifest((Clip(str(n), f"/x/{n}.wav", ("a",), "train") for n in range(first, end)), "a test")


PARTS = ((clips(0, 6), 6), (clips(6, 10), 10))
"""Each manifest with the number of its last row plus 1."""


def blocks_in_reverse() -> list[dict[str, np.ndarray]]:
    """Blocks in which all values of h of clip n are n, and its level is -n."""
    return [
        {
            "position": position,
            "h:small": np.repeat(position[:, None], 2, axis=1).astype(np.float32),
            "h:large": np.repeat(position[:, None], 5, axis=1).astype(np.float32),
            "fault": np.array(["torn" if n == 3 else "" for n in position], object),
            "level": -position.astype(np.float64),
            "background": np.repeat(-position[:, None], 3, axis=1).astype(np.float64),
        }
        for position in np.array_split(np.arange(CLIPS), 4)[::-1]
    ]


def test_clips_of_blocks_in_any_order_are_assigned_to_their_manifests() -> None:
    from sepscene.orchestration.evaluation.embed_manifest import _by_position, _readable

    done: list[int] = []
    columns = _by_position(blocks_in_reverse(), CLIPS, done.append)
    assert done == [2, 4, 7, 10]  # clips done after each block
    first, second = (_readable(columns, ("small", "large"), *part) for part in PARTS)
    for name, dimensions in (("small", 2), ("large", 5)):
        assert first[name].manifest.clips["clip_id"].to_pylist() == ["0", "1", "2", "4", "5"]
        np.testing.assert_array_equal(first[name].h_ND, np.repeat([[0], [1], [2], [4], [5]], dimensions, axis=1))
        np.testing.assert_array_equal(first[name].features.level_N, [0, -1, -2, -4, -5])
        assert second[name].manifest.clips["clip_id"].to_pylist() == ["6", "7", "8", "9"]
        np.testing.assert_array_equal(second[name].h_ND[:, 0], [6, 7, 8, 9])
        np.testing.assert_array_equal(second[name].features.background_NF[:, 2], [-6, -7, -8, -9])


def test_clips_of_a_lost_block_are_left_out() -> None:
    from sepscene.orchestration.evaluation.embed_manifest import _by_position, _readable

    columns = _by_position(blocks_in_reverse()[1:], CLIPS, lambda done: None)
    assert columns["fault"].tolist() == ["", "", "", "torn", "", "", "", ""] + ["its block was lost"] * 2
    readable = _readable(columns, ("small",), *PARTS[1])["small"].manifest
    assert readable.clips["clip_id"].to_pylist() == ["6", "7"]
