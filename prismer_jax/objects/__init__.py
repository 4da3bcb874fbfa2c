"""Objects in photos: boxes and masks as words and back, masks as polygons, run lengths and codes. NumPy only."""
