"""The experiments of the reproduction, each as functions that the notebooks call."""
