"""Figures that add up: histograms, windows, series, health."""
