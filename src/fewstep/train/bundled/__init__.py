"""How the bundled model was made: data, stages, its VAE and the features that judge it."""
