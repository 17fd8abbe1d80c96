"""The paper's first stage: layers and links measured, and the costs that predict fitted to the times."""
