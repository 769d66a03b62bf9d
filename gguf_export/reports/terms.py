"""Words that stand on pages, each explained in a line: a page takes those that it uses, and stays one file."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["TERMS", "meanings"]

TERMS = {
    "mean KLD": "Kullback-Leibler divergence in nats, from the base's probabilities of the next token to the model's, "
    "averaged over all scored tokens; 0 is the same. The best single figure; high quantiles show the worst moments.",
    "predicted KLD": "What the file itself says that its types were expected to cost; it was not measured here.",
    "same top": "How often the model's first guess of the next token is the base's.",
    "same experts": "Share of tokens that the router sends to the very set of experts to which the base sends them, "
    "mean over the layers.",
    "router KLD": "Mean KL divergence of the router's probabilities of all experts from the base's, in nats.",
    "PPL": "Perplexity: how many tokens the model is torn between, on average, when it guesses the next one. It can "
    "fall by chance, so it says little of small differences.",
    "PPL ratio": "The model's perplexity as a multiple of the base's, with its paired error: both read the same text.",
    "ln PPL ratio": "The natural logarithm of the PPL ratio, as llama-perplexity prints it.",
    "RMS Δp": "Root mean square of the change of the probability of the token that really came.",
    "bpw": "Bits per weight, over all tensors of the file.",
    "pp": "Tokens of a prompt that are processed per second, as in llama-bench.",
    "tg": "Tokens that are generated per second, one after the other, as in llama-bench.",
    "prior": "How many tokens' worth of weight the mean of a layer has among the importances of each of its experts, "
    "for experts that see few tokens.",
    "output error": "Normalised mean squared error of a matrix's output: the energy of the difference between the "
    "outputs of the quantized and the original matrix, as a share of the energy of the original's output. It is "
    "measured on activations of the unquantized model, matrix by matrix, so that no error is inherited from another "
    "matrix. 1 ppm is 0.0001 %.",
    "held-out text": "Text that the importances were not fitted on. All output errors are judged on it.",
    "cosine": "Mean over the held-out tokens of the cosine between the outputs of the original and the quantized "
    "matrix; 1 is no error.",
    "weight error": "Root-mean-square error of the weights themselves, as a share of their root mean square.",
    "importances": "The mean square of each input column over the calibration tokens that reach the matrix "
    "(llama.cpp's imatrix). “Without importances” is the same type, fitted without them.",
    "tokens routed": "The calibration tokens that the router sent to an expert, as a share of all. An unseen expert "
    "got none: nothing is known of its inputs.",
    "tokens routed to both": "The share of tokens, over all layers, that the router sent to both experts of a pair: "
    "pairs that are often chosen together share their work.",
    "effective": "How many equally strong tokens would tell as much about the importances (Kish's effective sample "
    "size of the squared lengths of the inputs). Far fewer than routed: a few extreme tokens decide.",
    "router entropy": "How evenly the router's probabilities are spread over the experts, as a share of the most "
    "that is possible: at 1 it cannot tell the experts apart, at 0 it is sure of one.",
    "bpw of matrices": "Bits per weight of the matrices measured here; embeddings and the output matrix are not among "
    "them.",
}
"""Word, as it stands on pages -> its meaning."""


def meanings(words: Iterable[str]) -> list[tuple[str, str]]:
    """Some of the words with their meanings, for the section of a page."""
    return [(word, TERMS[word]) for word in words]
