"""Figures that add up: histograms, windows, ledgers, health."""
