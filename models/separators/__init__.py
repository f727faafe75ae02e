"""Separation networks: our TDCN++, foreign separators, their folders of weights and their import."""
