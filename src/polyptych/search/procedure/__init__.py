"""The search itself: train the supermodel, judge policies on it, choose finalists and baselines, train these."""
