"""A page in the browser that shows what a trained model says of a photo, and why: python -m tools.demo."""
