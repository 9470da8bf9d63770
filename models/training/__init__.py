"""Training of the committed models: one module per model, and what they share."""
