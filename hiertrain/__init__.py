"""HierTrain: hybrid-parallel training of one DNN on a device, an edge server and a cloud."""

__version__ = "0.1.0"
