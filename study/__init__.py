"""The paper's ablation of targets in miniature, on the demo's world."""
