"""The paper's lemmas, theorem and rates, checked numerically."""
