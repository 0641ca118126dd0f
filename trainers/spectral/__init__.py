"""Layers in eigenvalues and eigenvectors, and pruning by them."""

from trainers.spectral.dependencies import trace
from trainers.spectral.importance import importances
from trainers.spectral.layers import SpectralConv2d, SpectralLinear, fold, spectral_penalty, spectralize
from trainers.spectral.pruning import Cut, Plan, cut, mask, plan, rounded_up, units_that_stay
from trainers.spectral.scale import rescale
from trainers.spectral.statistics import recalibrate
from trainers.spectral.units import Traced

__all__ = [
    "Cut",
    "Plan",
    "SpectralConv2d",
    "SpectralLinear",
    "Traced",
    "cut",
    "fold",
    "importances",
    "mask",
    "plan",
    "recalibrate",
    "rescale",
    "rounded_up",
    "spectral_penalty",
    "spectralize",
    "trace",
    "units_that_stay",
]
