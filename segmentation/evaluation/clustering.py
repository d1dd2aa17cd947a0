"""K-means on the prototypes of a split, and its score (paper section 4).

Axes: M images, D embedding, C classes. Predicted ids: 0 outside the masks, cluster + 1 inside.
"""
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from evaluation import confusion as scoring

COMPONENTS = 32
BATCH_SIZE = 1000
N_INIT = 3  # the default of the scikit-learn that the published numbers came from


@dataclass
class Clustering:
    """clusters: M integers. by_id: (clusters + 1) x C confusion matrix of the predicted ids. classes_of: the class that each
    id was matched with. confusion: C x C, of these classes. Without labels `classes_of` gives the ids themselves, and the
    matrices are None."""
    clusters: np.ndarray
    by_id: np.ndarray
    classes_of: np.ndarray
    confusion: np.ndarray

    def prediction(self, index, mask):
        """Image `index`'s predicted classes, H x W uint8, from its mask (H x W uint8, 0 or 1)."""
        return self.classes_of[[0, self.clusters[index] + 1]].astype(np.uint8)[mask]


METRICS = {'Accuracy': lambda clustering: scoring.accuracy(clustering.confusion),
           'NMI': lambda clustering: scoring.normalised_mutual_information(clustering.by_id),
           'ARI': lambda clustering: scoring.adjusted_rand_index(clustering.by_id)}


def cluster_all(vectors, histograms, n_clusters, seeds):
    """A `Clustering` for each seed. n_clusters counts background, so K-means itself gets one less."""
    return [score(histograms, cluster(vectors, n_clusters - 1, seed), n_clusters) for seed in seeds]


def most_compact(vectors, clusterings):
    """Index of the smallest sum of squared distances, which is what K-means minimises: the best clustering without labels."""
    return int(np.argmin([(distances(vectors, clustering.clusters) ** 2).sum() for clustering in clusterings]))


def whiten(prototypes):
    """PCA with whitening to min(32, D, M) components. prototypes: M x D. Returns M x components."""
    components = min(COMPONENTS, *prototypes.shape)
    return PCA(n_components=components, whiten=True, svd_solver='full').fit_transform(prototypes)


def cluster(vectors, count, seed):
    """The cluster of each row of `vectors`: M integers in [0, count)."""
    return MiniBatchKMeans(count, batch_size=BATCH_SIZE, n_init=N_INIT, random_state=seed).fit_predict(vectors)


def distances(vectors, clusters):
    """Euclidean distance of each vector to the mean of its cluster. vectors: M x D. clusters: M integers. Returns M values."""
    members = clusters == np.unique(clusters)[:, None]                  # k x M
    means = members @ vectors / members.sum(1, keepdims=True)
    return np.linalg.norm(vectors - means[members.argmax(0)], axis=1)


def score(histograms, clusters, n_clusters):
    """Match the clusters with the classes. histograms: M x 2 x C, pixels outside and inside the mask by label, or None."""
    if histograms is None:
        return Clustering(clusters, None, np.arange(n_clusters), None)
    by_id = scoring.clustering_confusion(histograms, clusters, n_clusters - 1)
    classes_of = scoring.match(by_id)
    return Clustering(clusters, by_id, classes_of, scoring.matched(by_id, classes_of))
