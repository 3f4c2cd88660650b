"""Question answering and retrieval: data, model and metric of each."""
