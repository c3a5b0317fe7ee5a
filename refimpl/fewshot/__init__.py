"""Few-shot meta-learning, N-way K-shot. Start reading with `learner`, then `experiment`."""
