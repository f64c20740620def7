"""Image sets: labelled images in a fixed order, their readers and fingerprints."""
