"""Layers in eigenvalues and eigenvectors, and what is cut by them."""

from trainers.spectral.layers import SpectralConv2d, SpectralLinear, fold, spectral_penalty, spectralize
from trainers.spectral.pruning import Cut, Plan, cut, heads, mask, plan, relevances, rescale, units_that_stay
from trainers.spectral.statistics import reestimate

__all__ = [
    "Cut",
    "Plan",
    "SpectralConv2d",
    "SpectralLinear",
    "cut",
    "fold",
    "heads",
    "mask",
    "plan",
    "reestimate",
    "relevances",
    "rescale",
    "spectral_penalty",
    "spectralize",
    "units_that_stay",
]
