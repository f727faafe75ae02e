"""The paper's tables as data, its six claims, and the test that decides each claim."""
