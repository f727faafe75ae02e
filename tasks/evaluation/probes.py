"""Simple probes of a representation: a linear probe, nearest neighbours, and a two-dimensional map.

Legend: P probes of a kind, B clips, D embedding, K classes, N neighbours. All constants here are ours: the paper has
neither probe. The probes need no training budget or stopping rule, so unlike the perceptron of
`tasks.evaluation.shallow` they measure only the representation. `knn_map` is fast enough to validate with during
training.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from sepscene.tasks.evaluation.metrics import Bools, Floats, check, check_split, mean_average_precision
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.shallow import train_perceptrons

VOTE_TEMPERATURE = 0.07  # a neighbour at cosine s votes with exp(s / 0.07), as in Wu 2018 (instance discrimination)
PIECE_BYTES = 2**28
"""Memory for the similarities, and for the neighbours' labels, that `knn_probe` holds at a time."""
LINEAR_CLIPS = 100_000
"""The linear probe uses a random part of more clips; more would hardly change it."""
PENALTIES = np.logspace(-1, 6, 15)
"""Ridge penalties to choose from by leave-one-out, per class: from hardly any to nearly constant."""
MAP_NEEDS_CLIPS = 50  # with fewer clips, a map of neighbourhoods shows nothing but noise


def probe_scores(
    train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, test_targets_BK: Bools, settings: ScoringSettings
) -> tuple[dict[str, Floats], NDArray[np.intp]]:
    """Scores of the test clips by all probes. No test targets are used.

    Returns:
        "shallow" -> (P, B, K), "linear" and "knn" -> (1, B, K); the epochs of each perceptron.

    Raises:
        EvaluationError: embeddings are NaN, shapes do not match, or there are fewer than two training clips.
    """
    check_split(train_h_BD, train_targets_BK, test_h_BD, test_targets_BK)
    clips = (train_h_BD, train_targets_BK, test_h_BD)
    shallow_PBK, epochs_P = train_perceptrons(*clips, settings)
    linear_BK = linear_probe(*clips, settings.seed)
    knn_BK = knn_probe(*clips, settings.neighbours)
    return {"shallow": shallow_PBK, "linear": linear_BK[None], "knn": knn_BK[None]}, epochs_P


def linear_probe(train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, seed: int = 0) -> Floats:
    """Scores (B, K) of the test clips by ridge regression of the targets on standardised h.

    Each class's penalty is chosen by leave-one-out cross-validation. Of more than 100,000 training clips, this many are
    drawn with the seed: they are more than enough to fit a linear map of some hundred dimensions.
    """
    if len(train_h_BD) > LINEAR_CLIPS:
        rows = np.sort(np.random.default_rng(seed).permutation(len(train_h_BD))[:LINEAR_CLIPS])
        train_h_BD = train_h_BD[rows]
        train_targets_BK = train_targets_BK[rows]
    scaler = StandardScaler().fit(train_h_BD.astype(np.float64))
    ridge = RidgeCV(alphas=PENALTIES, alpha_per_target=True)
    ridge.fit(scaler.transform(train_h_BD), train_targets_BK.astype(np.float64))
    return ridge.predict(scaler.transform(test_h_BD)).reshape(len(test_h_BD), train_targets_BK.shape[1])


def knn_probe(train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, neighbours: int = 20) -> Floats:
    """Scores (B, K) of the test clips by votes of their nearest training clips, by cosine similarity.

    A score is a class's share of the votes; more similar neighbours have more weight. The number of test clips that are
    processed at a time is chosen so that their similarities to all training clips, and their neighbours' labels, fit
    into 256 MB.
    """
    train_BD = _unit(train_h_BD)
    test_BD = _unit(test_h_BD)
    targets_BK = torch.from_numpy(np.ascontiguousarray(train_targets_BK))
    voters = min(neighbours, len(train_BD))
    floats_per_clip = max(len(train_BD), voters * targets_BK.shape[1])
    pieces = []
    for piece_BD in test_BD.split(max(1, PIECE_BYTES // (4 * floats_per_clip))):
        similarity_BN, nearest_BN = (piece_BD @ train_BD.T).topk(voters, dim=1)
        votes_BN = torch.softmax(similarity_BN / VOTE_TEMPERATURE, dim=1)
        pieces.append(torch.einsum("bn,bnk->bk", votes_BN, targets_BK[nearest_BN].float()))
    return torch.cat(pieces).numpy()


def knn_map(
    train_h_BD: Floats,
    train_targets_BK: Bools,
    test_h_BD: Floats,
    test_targets_BK: Bools,
    neighbours: int = 20,
) -> float:
    """mAP of `knn_probe`: the validation metric during training, comparable across objectives.

    Raises:
        EvaluationError: as for `probe_scores`, or no class has a positive test clip.
    """
    check_split(train_h_BD, train_targets_BK, test_h_BD, test_targets_BK)
    scores_BK = knn_probe(train_h_BD, train_targets_BK, test_h_BD, neighbours)
    return mean_average_precision(scores_BK, test_targets_BK).value


def embedding_map(h_BD: Floats) -> Floats:
    """Map embeddings to two dimensions for a plot: (B, 2). Neighbourhoods can be interpreted, large distances cannot.

    t-SNE after PCA to at most 50 dimensions; only PCA for fewer than 50 clips. The same clips give the same map.
    500 clips take about two seconds; select a subset if there are more.

    Raises:
        EvaluationError: embeddings are NaN.
    """
    check(h_BD, np.ones((len(h_BD), 1), dtype=bool))
    wide_BD = h_BD.astype(np.float64)
    if np.ptp(wide_BD, axis=0).max() == 0:
        return np.zeros((len(h_BD), 2))  # one clip, or an encoder that has collapsed to a point
    dimensions = min(*h_BD.shape, 50)
    if len(h_BD) < MAP_NEEDS_CLIPS or dimensions < 3:
        plane = PCA(min(dimensions, 2), svd_solver="full").fit_transform(wide_BD)
        return np.pad(plane, ((0, 0), (0, 2)))[:, :2]
    reduced = PCA(dimensions, svd_solver="full").fit_transform(wide_BD)
    perplexity = min(30.0, (len(h_BD) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced).astype(np.float64)


def _unit(h_BD: Floats) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(h_BD.astype(np.float32)), dim=1)
