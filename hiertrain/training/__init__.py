"""The paper's third stage as the user drives it, what a run leaves behind, and training without this package."""
