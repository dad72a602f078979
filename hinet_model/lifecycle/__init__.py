"""From a trained model to a champion: registry, publishing, evaluation, promotion."""
