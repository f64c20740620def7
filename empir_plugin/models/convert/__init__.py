"""Convert any network to low precision: selection of layers, calibration, and a report."""
