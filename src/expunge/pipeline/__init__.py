"""The pipeline: recipe -> plan -> steps, the only place that binds the layers together."""
