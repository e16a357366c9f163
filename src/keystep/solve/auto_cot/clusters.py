"""Questions as vectors, and clusters of them: what Auto-CoT (arXiv 2210.03493) does with Sentence-BERT and k-means.

Encoders by name: `tfidf` (words and pairs of words, reduced to 100 dimensions, of length 1; needs nothing but scikit-learn),
`sentence-transformers:MODEL` (a name or a folder; the published one is all-MiniLM-L6-v2), or any model of `keystep.lm` that gives
embeddings (`http://HOST/v1#MODEL`). Clusters are by Euclidean distance, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.errors import BadInput, MissingExtra
from keystep.lm import lm

Vectors = NDArray[np.float64]  # (texts, dimensions)

DIMENSIONS = 100  # of TF-IDF, at most
SEED = 192  # of k-means, in the published code
STARTS = 10  # of k-means; the best is taken


@dataclass(frozen=True, slots=True)
class Clusters:
    """Of every cluster, the numbers of its texts, nearest to the centre first, and their distances to it."""

    members: list[list[int]]
    distances: list[list[float]]

    def __len__(self) -> int:
        return len(self.members)

    def of(self, text: int) -> int:
        """The cluster of a text."""
        return next(number for number, members in enumerate(self.members) if text in members)


async def encoded(texts: Sequence[str], encoder: str = "tfidf") -> Vectors:
    """One vector per text.

    Raises:
        BadInput: there is no such encoder, or it finds nothing in the texts.
        MissingExtra: its library is not installed.
        ModelError: a server cannot be reached.
    """
    if encoder == "tfidf":
        return tfidf(texts)
    kind, _, name = encoder.partition(":")
    if kind == "sentence-transformers":
        try:
            library = import_module("sentence_transformers")
        except ImportError:
            raise MissingExtra("encoding questions by sentence-transformers", "encode") from None
        return np.asarray(library.SentenceTransformer(name or "all-MiniLM-L6-v2").encode(list(texts)), float)
    try:
        model = lm(encoder)
    except BadInput as error:
        mend = "tfidf, sentence-transformers:MODEL, or a server that gives embeddings (http://HOST/v1#MODEL)"
        raise BadInput(f"is no encoder ({error.problem})", field="encoder", value=encoder, mend=mend) from None
    try:
        return np.asarray(await model.embed(list(texts)), float)
    finally:
        await model.close()


def tfidf(texts: Sequence[str]) -> Vectors:
    """TF-IDF of words and pairs of words, of length 1, reduced to `DIMENSIONS` by a singular value decomposition where it has more."""
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise MissingExtra("clustering questions", "solve") from None
    try:
        counted = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    except ValueError:
        raise BadInput("there are no words in the questions", field="questions", mend="use another encoder") from None
    if min(counted.shape) <= DIMENSIONS:
        return np.asarray(counted.toarray(), float)
    found = np.asarray(TruncatedSVD(DIMENSIONS, random_state=0).fit_transform(counted), float)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def clustered(vectors: Vectors, k: int, seed: int = SEED) -> Clusters:
    """k-means; no more clusters than there are different vectors.

    Raises:
        BadInput: k is below 1, or there is nothing to cluster.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtra("clustering questions", "solve") from None
    if k < 1 or not len(vectors):
        raise BadInput("must be at least 1", field="clusters" if k < 1 else "questions", value=k if k < 1 else 0)
    fitted: Any = KMeans(min(k, len(np.unique(vectors, axis=0))), random_state=seed, n_init=STARTS).fit(vectors)
    away = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1).round(9)
    members = [np.flatnonzero(fitted.labels_ == number) for number in range(fitted.n_clusters)]
    ordered = [each[np.argsort(away[each], kind="stable")] for each in members]
    return Clusters([each.tolist() for each in ordered], [away[each].tolist() for each in ordered])


# The samplers that Auto-CoT is compared with: numbers of the demonstrations for one question.


def nearest(vectors: Vectors, question: NDArray[np.float64], n: int) -> list[int]:
    """Retrieval-Q: the n most alike by cosine, the most alike first."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(question)
    alike = vectors @ question / np.maximum(lengths, 1e-12)
    return [int(number) for number in np.argsort(-alike, kind="stable")[:n]]


def at_random(count: int, n: int, draw: np.random.Generator) -> list[int]:
    """Random-Q: n of `count`."""
    return [int(number) for number in draw.choice(count, size=min(n, count), replace=False)]


def in_cluster(clusters: Clusters, cluster: int, n: int, draw: np.random.Generator) -> list[int]:
    """In-Cluster: n of the cluster that the question belongs to."""
    members = clusters.members[cluster]
    return [int(members[number]) for number in at_random(len(members), n, draw)]
