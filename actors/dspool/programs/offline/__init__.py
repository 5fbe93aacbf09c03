"""An engine that answers without a model."""
