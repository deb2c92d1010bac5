"""Use of a trained model: captions, matches, answers, comparisons, embeddings, explanations."""
