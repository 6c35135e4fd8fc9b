"""Accuracy, calibration and robustness of many methods on the same data."""
